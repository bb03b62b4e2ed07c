"""Refuses changes of access data by which a caller would give more than it has.

* A rule gives its level on its resources until it ends: the caller has that level on all of them,
  at each moment until then. The rule "own" gives it on every workspace.
* A membership gives all rights of the group or role, and of those that it is in.
* A fallback gives its level on all resources of a type, for ever.
* A removal may raise the caller's rights when what is removed holds them down, now or later; it is
  refused then. So is a rule or membership in the place of one that lasts longer.
* A lock does not match its maker.

A caller by a token has no more than the token's makers have, and its makers gain nothing either.
For patterns rights are compared conservatively (model/access/holdings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.holdings import Holder, Holdings, given_by, subjects_of
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.patterns import literal_of
from aether_trio.model.access.rules import ANY, RESOURCE_TYPES, Lock, Member, Rule
from aether_trio.model.api_tokens import contained
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access.authorizer import DIRECT, AccessQuestion, Actor, Authority
from aether_trio.services.access.rule_authorizer import (
    RuleAuthorizer,
    bounded_by_makers,
    makers_of,
    most_of_maker,
    workspace_of,
)

MAX_MOMENTS: Final = 64
"""Ends of a caller's rights at which they are compared; one with more is refused."""


def check_reach(actor: Actor) -> None:
    """Raise RequestError unless the actor's credential reaches all workspaces."""
    if not actor.reaches_everything:
        raise RequestError(
            Code.PERMISSION_DENIED,
            "access is administered with a credential that reaches all workspaces; this one does not",
        )


class Granting:
    """Decides what callers may give away, by the rules in memory."""

    def __init__(self, authorizer: RuleAuthorizer) -> None:
        self.authorizer: Final = authorizer

    @property
    def _index(self) -> AccessIndex:
        return self.authorizer.index

    def check_rule(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than the rule gives, or gains by it."""
        held = self.lasting(actor, authority)
        for resource_type, resource_id in given_by(rule):
            what = f"a rule cannot give {{}} on {rule.resource}"
            held.check(resource_type, resource_id, rule.level, rule.expires_ms, what)
        known = self._index.same_rule(rule)
        if known is not None and _ends_earlier(rule, known):
            self._check_without_rules(actor, [known], authority)

    def check_fallback(self, actor: Actor, category: str, level: AccessLevel, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than a fallback would give."""
        resource_type = next((one for one in RESOURCE_TYPES if category.endswith(f"_{one}")), "")
        if not resource_type and level > AccessLevel.NONE:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"{category} is no category: it is the type of a principal and of a resource, such as agent_workspace",
            )
        if resource_type:
            held = self.lasting(actor, authority)
            held.check(resource_type, ANY, level, 0, f"a fallback cannot give {{}} on all of {resource_type}")

    def check_membership(self, actor: Actor, member: Member, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than the group or role gives, or gains."""
        kind, name = member.kind, member.name
        held = self.lasting(actor, authority)
        for rule in self._rules_of(kind, name):
            ends_ms = _earlier(rule.expires_ms, member.expires_ms)
            held.check(
                rule.resource_type,
                rule.resource_id,
                rule.level,
                ends_ms,
                f"{kind} {name} gives {{}} on {rule.resource}",
            )
        known = self._index.membership(member.member, member.container)
        if known is not None and _ends_earlier(member, known):
            self._check_without_members(actor, [known], self._rules_of(kind, name), authority)

    def check_removal(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the removal of a rule would raise the actor's rights."""
        known = self._index.rule(rule.rule_id)
        if known is not None:
            self._check_without_rules(actor, [known], authority)

    def check_resource_removal(
        self, actor: Actor, resource_type: str, resource_id: str, authority: Authority = DIRECT
    ) -> None:
        """Raise RequestError if without rules on a resource the actor had more rights."""
        about = resource_type, resource_id
        rules = [one for one in self._index.rules() if (one.resource_type, one.resource_id) == about]
        self._check_without_rules(actor, rules, authority)

    def check_member_removal(self, actor: Actor, member: Member, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a membership would raise the actor's rights."""
        known = self._index.membership(member.member, member.container)
        if known is not None:
            self._check_without_members(actor, [known], self._rules_of(known.kind, known.name), authority)

    def check_group_removal(self, actor: Actor, kind: str, name: str, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a group would raise the actor's rights."""
        container = f"{kind}:{name}"
        members = [one for one in self._index.memberships() if container in {one.container, one.member}]
        self._check_without_members(actor, members, self._rules_of(kind, name), authority)

    def check_lock(self, actor: Actor, lock: Lock) -> None:
        """Raise RequestError if a lock would bar its maker."""
        identity = actor.identity
        trial = AccessIndex()
        trial.put_lock(lock)
        if trial.locked(identity.type_name, identity.canonical_id, identity.text, lock.locked_ms) is not None:
            raise RequestError(Code.INVALID_ARGUMENT, f"{lock.pattern} would lock you out as well: name others")

    # -- gains -------------------------------------------------------------------------------------

    def _check_without_rules(self, actor: Actor, rules: Sequence[Rule], authority: Authority) -> None:
        index = self._index

        def remove() -> None:
            for rule in rules:
                index.remove_rule(rule.rule_id)

        def put_back() -> None:
            for rule in rules:
                index.put_rule(rule)

        self._check_without(actor, remove, put_back, rules, authority)

    def _check_without_members(
        self, actor: Actor, members: Sequence[Member], rules: Sequence[Rule], authority: Authority
    ) -> None:
        """Check the end of memberships by which members have these rules."""
        index = self._index

        def remove() -> None:
            for one in members:
                index.remove_membership(one.kind, one.name, one.member_type, one.member_id)

        def put_back() -> None:
            for one in members:
                index.put_membership(one)

        self._check_without(actor, remove, put_back, rules, authority)

    def _check_without(
        self,
        actor: Actor,
        remove: Callable[[], None],
        put_back: Callable[[], None],
        rules: Sequence[Rule],
        authority: Authority,
    ) -> None:
        """Raise RequestError if the actor gains by a removal, now or later.

        `rules` are those that may count no more.
        """
        if all(rule.level >= AccessLevel.SUPERADMIN for rule in rules):
            return
        cap = cap_of(actor, authority)
        now_ms = self.authorizer.now_ms()
        before = []
        for holder in self.holders(actor, authority):
            now = Holdings(self._index, holder, now_ms)
            if any(map(now.has, rules)):
                for moment_ms in moments_of(now_ms, now.ends()):
                    then = now.at(moment_ms)
                    before.append((holder, moment_ms, then.held_down(rules, cap)))
        remove()
        try:
            for holder, moment_ms, held_down in before:
                gain = Holdings(self._index, holder, moment_ms).gain(held_down, cap) if held_down else None
                if gain is not None:
                    raise RequestError(
                        Code.PERMISSION_DENIED,
                        f"without it {who_gains(actor, holder)} would have {gain.new.name} instead of {gain.old.name} "
                        f"on {gain.rule.resource}: another administrator may remove it",
                    )
        finally:
            put_back()

    # -- what an actor has -------------------------------------------------------------------------

    def level_over(
        self, actor: Actor, resource_type: str, resource_id: str, authority: Authority = DIRECT
    ) -> AccessLevel:
        """Return the level that an actor is sure to have on all that a pattern names."""
        if resource_id != ANY and literal_of(resource_id) is not None:
            return _level_on(self.authorizer, actor, resource_type, resource_id, authority)
        return self.held(actor, authority).level_over(resource_type, resource_id)

    def held(self, actor: Actor, authority: Authority = DIRECT) -> HeldRights:
        """Return what an actor has now, to be compared with many rules."""
        now_ms = self.authorizer.now_ms()
        holdings = [Holdings(self._index, one, now_ms) for one in self.holders(actor, authority)]
        return HeldRights(self.authorizer, actor, authority, holdings)

    def lasting(self, actor: Actor, authority: Authority = DIRECT) -> LastingRights:
        """Return what an actor has now and later."""
        return LastingRights(self, actor, authority)

    def holders(self, actor: Actor, authority: Authority = DIRECT) -> Sequence[Holder]:
        """Return whose rights count for an actor: itself, and the makers of its token."""
        grant = authority.grant
        if grant is None:
            identity = actor.identity
            first = Holder(identity.type_name, identity.canonical_id, identity.workspace, actor.groups)
        else:
            first = Holder(*grant.subject, workspace_of(*grant.subject))
        makers = dict.fromkeys(makers_of(actor, authority))
        return [first, *(Holder(*one, workspace_of(*one)) for one in makers)]

    def _rules_of(self, kind: str, name: str) -> Sequence[Rule]:
        """Return the live rules of a group or role, and of those that it is in."""
        now_ms = self.authorizer.now_ms()
        subjects = subjects_of(self._index, Holder(kind, name), now_ms)
        return [one for one in self._index.rules_of(subjects) if one.is_live(now_ms)]


def cap_of(actor: Actor, authority: Authority) -> AccessLevel:
    """Return the highest level that an actor's credential and grant give."""
    return actor.cap if authority.grant is None else min(actor.cap, authority.grant.max_level)


def moments_of(now_ms: int, ends: Iterable[int], before_ms: int = 0) -> Sequence[int]:
    """Return now and these ends, up to a moment; 0 is never.

    Between two of them nothing changes. Raises RequestError if there are too many.
    """
    found = sorted(one for one in ends if one > now_ms and (not before_ms or one < before_ms))
    if len(found) > MAX_MOMENTS:
        raise RequestError(
            Code.PERMISSION_DENIED,
            f"your rights end at {len(found)} different moments, too many to compare: another administrator may do it",
        )
    return [now_ms, *found]


def who_gains(actor: Actor, holder: Holder) -> str:
    """Return how a refusal calls a holder."""
    is_caller = (holder.principal_type, holder.principal_id) == (actor.identity.type_name, actor.identity.canonical_id)
    return "you" if is_caller else f"{holder.principal_type} {holder.principal_id}"


class HeldRights:
    """What an actor has by the rules of a moment; keep it no longer than a step."""

    def __init__(
        self, authorizer: RuleAuthorizer, actor: Actor, authority: Authority, holdings: Sequence[Holdings]
    ) -> None:
        """`holdings`: of the actor or its subject; then of makers of its token."""
        self._authorizer = authorizer
        self._actor = actor
        self._authority = authority
        self._cap = cap_of(actor, authority)
        self._holdings = holdings

    def ends(self, resource_type: str) -> set[int]:
        """Return the moments at which some of the rights on a type of resources end."""
        return set[int]().union(*(one.ends(resource_type) for one in self._holdings))

    def at(self, moment_ms: int) -> HeldRights:
        """Return what is left of it at a later moment."""
        holdings = [one.at(moment_ms) for one in self._holdings]
        return HeldRights(self._authorizer.at(moment_ms), self._actor, self._authority, holdings)

    def level_over(self, resource_type: str, resource_id: str) -> AccessLevel:
        """Return the level that is sure on all that a pattern names."""
        if resource_id != ANY and literal_of(resource_id) is not None:
            return _level_on(self._authorizer, self._actor, resource_type, resource_id, self._authority)
        if resource_type == "workspace" and not reaches_all_of(self._actor, resource_id):
            return AccessLevel.NONE
        mine, *makers = (one.sure(resource_type, resource_id) for one in self._holdings)
        level = min(self._cap, mine)
        if bounded_by_makers(resource_type):
            level = min([level, *(most_of_maker(resource_type, one) for one in makers)])
        return level


class LastingRights:
    """What an actor has now and until later moments; keep it no longer than a step."""

    def __init__(self, granting: Granting, actor: Actor, authority: Authority) -> None:
        self._authority = authority
        self._now_ms = granting.authorizer.now_ms()
        self._now = granting.held(actor, authority)
        self._later: dict[int, HeldRights] = {}
        self._ends: dict[str, set[int]] = {}

    def check(self, resource_type: str, resource_id: str, level: AccessLevel, ends_ms: int, what: str) -> None:
        """Raise RequestError if the actor has less than a level, until its end.

        `ends_ms` 0 is never. `what` says what gives the level, with {} for its name.
        """
        if not level:
            return
        held = self._now.level_over(resource_type, resource_id)
        if held < level:
            raise _refusal(what.format(level.name), held)
        ends = self._ends.get(resource_type)
        if ends is None:
            ends = self._ends[resource_type] = self._now.ends(resource_type)
        _, *later = moments_of(self._now_ms, ends, ends_ms)
        if self._outlasts_grant(ends_ms) or any(
            self._at(one).level_over(resource_type, resource_id) < level for one in later
        ):
            raise RequestError(
                Code.PERMISSION_DENIED,
                f"you cannot give more than you have, nor for longer: {what.format(level.name)}, which you will not "
                "have for as long; give it an earlier end",
            )

    def _outlasts_grant(self, ends_ms: int) -> bool:
        grant = self._authority.grant
        return grant is not None and grant.expires_ms > 0 and not 0 < ends_ms <= grant.expires_ms

    def _at(self, moment_ms: int) -> HeldRights:
        held = self._later.get(moment_ms)
        if held is None:
            held = self._later[moment_ms] = self._now.at(moment_ms)
        return held


def reaches_all_of(actor: Actor, pattern: str) -> bool:
    """Return whether an actor's credential reaches all workspaces of a pattern."""
    return all(contained([pattern], limit) is None for limit in actor.accepted.workspace_limits)


def _level_on(
    authorizer: RuleAuthorizer, actor: Actor, resource_type: str, resource_id: str, authority: Authority
) -> AccessLevel:
    """Return the level that an actor has on one resource; its id may be escaped."""
    name = literal_of(resource_id)
    assert name is not None
    workspace = name if resource_type == "workspace" else ""
    access = AccessQuestion("acl_grant", resource_type, name, workspace, AccessLevel.READ)
    return authorizer.decide(actor, access, authority).level


def _ends_earlier(new: Rule | Member, known: Rule | Member) -> bool:
    return new.expires_ms != 0 and (known.expires_ms == 0 or new.expires_ms < known.expires_ms)


def _earlier(one_ms: int, other_ms: int) -> int:
    """Return the earlier of two ends, of which 0 is never."""
    return min(one_ms, other_ms) if one_ms and other_ms else one_ms or other_ms


def _refusal(what: str, held: AccessLevel) -> RequestError:
    return RequestError(Code.PERMISSION_DENIED, f"you cannot give more than you have: {what}, and you have {held.name}")
