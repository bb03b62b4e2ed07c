"""Refuses changes of access data by which a caller would give more than it has.

* A rule gives its level on its resources until it ends: the caller has that level on all of them,
  and for as long.
* A membership gives all rights of the group or role, and of those that it is in.
* A fallback gives its level on all resources of a type, for ever.
* A removal may raise the caller's rights when what is removed holds them down; it is refused then.
  So is a rule or membership in the place of one that lasts longer.
* A lock does not match its maker.

For a pattern of resources the level that counts is the lowest that the caller is sure to have on
any resource that the pattern matches. The comparison is conservative: what cannot be compared
counts as not held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.patterns import Pattern, compile_pattern, contains, literal_of
from aether_trio.model.access.rules import ANY, RESOURCE_TYPES, WILDCARD, WILDCARDS, Lock, Member, Rule
from aether_trio.model.api_tokens import contained
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access.authorizer import DIRECT, AccessQuestion, Actor, Authority
from aether_trio.services.access.rule_authorizer import RuleAuthorizer

FOREVER: Final = 1 << 61
"""A moment after all expiries."""
MAX_MOMENTS: Final = 16
"""Ends of rules at which rights are compared; further ones count as never."""
_PATTERN_TIER: Final = 5
_FALLBACK_TIER: Final = 6
_WITHOUT_SLASH: Final = frozenset({"workspace", "agent", "task", "user", "session", "topic", "service_impl"})
"""Types whose names have no "/": a star matches them all."""


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Pattern:
    return compile_pattern(text)


def check_reach(actor: Actor) -> None:
    """Raise RequestError unless the actor's credential reaches all workspaces."""
    if not actor.reaches_everything:
        raise RequestError(
            Code.PERMISSION_DENIED,
            "access is administered with a credential that reaches all workspaces; this one does not",
        )


class _Ending(Protocol):
    """What is changed: a rule or a membership."""

    @property
    def expires_ms(self) -> int: ...


class Granting:
    """Decides what callers may give away, by the rules in memory."""

    def __init__(self, authorizer: RuleAuthorizer) -> None:
        self.authorizer: Final = authorizer

    def by(self, authorizer: RuleAuthorizer) -> Granting:
        """Return what decides likewise, by the rules of another authorizer."""
        return type(self)(authorizer)

    def at(self, moment_ms: int) -> Granting:
        """Return what decides by the same rules at another moment."""
        return self.by(self.authorizer.at(moment_ms))

    @property
    def _index(self) -> AccessIndex:
        return self.authorizer.index

    def check_rule(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than the rule gives, or gains by it."""
        held = self.lasting(actor, authority)
        held.check(
            rule.resource_type,
            rule.resource_id,
            rule.level,
            rule.expires_ms,
            f"a rule cannot give {{}} on {rule.resource}",
        )
        known = self._index.same_rule(rule)
        if known is not None and _ends_earlier(rule, known):

            def replace() -> Callable[[], None]:
                self._index.remove_rule(known.rule_id)
                return lambda: self._index.put_rule(known)

            self._check_without(actor, replace, [known], [known], authority)

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
        subjects = self._index.subjects(kind, name, self.authorizer.now_ms())
        rules = self._rules_of(subjects)
        held = self.lasting(actor, authority)
        for rule in rules:
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
            self._check_without_member(actor, known, authority)

    def check_removal(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the removal of a rule would raise the actor's rights."""

        def remove() -> Callable[[], None]:
            self._index.remove_rule(rule.rule_id)
            return lambda: self._index.put_rule(rule)

        if self._index.rule(rule.rule_id) is not None:
            self._check_without(actor, remove, [rule], [rule], authority)

    def check_resource_removal(
        self, actor: Actor, resource_type: str, resource_id: str, authority: Authority = DIRECT
    ) -> None:
        """Raise RequestError if without rules on a resource the actor had more rights."""
        index = self._index
        rules = [one for one in index.rules() if (one.resource_type, one.resource_id) == (resource_type, resource_id)]

        def remove() -> Callable[[], None]:
            for rule in rules:
                index.remove_rule(rule.rule_id)

            def put_back() -> None:
                for rule in rules:
                    index.put_rule(rule)

            return put_back

        self._check_without(actor, remove, rules, rules, authority)

    def check_member_removal(self, actor: Actor, member: Member, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a membership would raise the actor's rights."""
        known = self._index.membership(member.member, member.container)
        if known is not None:
            self._check_without_member(actor, known, authority)

    def _check_without_member(self, actor: Actor, known: Member, authority: Authority) -> None:
        index = self._index
        if known.member not in self._subjects(actor, authority):
            return

        def remove() -> Callable[[], None]:
            index.remove_membership(known.kind, known.name, known.member_type, known.member_id)
            return lambda: index.put_membership(known)

        subjects = index.subjects(known.kind, known.name, self.authorizer.now_ms())
        self._check_without(actor, remove, self._rules_of(subjects), [known], authority)

    def check_group_removal(self, actor: Actor, kind: str, name: str, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a group would raise the actor's rights."""
        index = self._index
        container = f"{kind}:{name}"
        if container not in self._subjects(actor, authority):
            return
        members = [one for one in index.memberships() if container in {one.container, one.member}]
        rules = self._rules_of(index.subjects(kind, name, self.authorizer.now_ms()))

        def remove() -> Callable[[], None]:
            for one in members:
                index.remove_membership(one.kind, one.name, one.member_type, one.member_id)

            def put_back() -> None:
                for one in members:
                    index.put_membership(one)

            return put_back

        self._check_without(actor, remove, rules, members, authority)

    def check_lock(self, actor: Actor, lock: Lock) -> None:
        """Raise RequestError if a lock would bar its maker."""
        identity = actor.identity
        trial = AccessIndex()
        trial.put_lock(lock)
        if trial.locked(identity.type_name, identity.canonical_id, identity.text, lock.locked_ms) is not None:
            raise RequestError(Code.INVALID_ARGUMENT, f"{lock.pattern} would lock you out as well: name others")

    def _check_without(
        self,
        actor: Actor,
        remove: Callable[[], Callable[[], None]],
        rules: Iterable[Rule],
        removed: Iterable[_Ending],
        authority: Authority,
    ) -> None:
        """Raise RequestError if the actor gains by a removal, now or later.

        `rules` are those that count no more, `removed` what is taken away.
        """
        held_down = [rule for rule in rules if rule.level < AccessLevel.SUPERADMIN]
        if not held_down:
            return
        ends = sorted({one.expires_ms for one in (*removed, *held_down) if one.expires_ms})[:MAX_MOMENTS]
        moments = [self, self.at(FOREVER), *(self.at(one - 1) for one in ends)]

        def levels() -> list[list[AccessLevel]]:
            found: list[list[AccessLevel]] = []
            for one in moments:
                one.authorizer.forget_verdicts()
                held = one.held(actor, authority)
                found.append([held.level_over(rule.resource_type, rule.resource_id) for rule in held_down])
            return found

        before = levels()
        put_back = remove()
        try:
            after = levels()
        finally:
            put_back()
            self.authorizer.forget_verdicts()
        for old_levels, new_levels in zip(before, after, strict=True):
            for rule, old, new in zip(held_down, old_levels, new_levels, strict=True):
                if new > old:
                    raise RequestError(
                        Code.PERMISSION_DENIED,
                        f"without it you would have {new.name} instead of {old.name} on {rule.resource}: "
                        "another administrator may remove it",
                    )

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
        grant = authority.grant
        principal_type = actor.identity.type_name if grant is None else grant.subject[0]
        rules = self._rules_of(self._subjects(actor, authority))
        return HeldRights(self.authorizer, actor, authority, principal_type, rules)

    def lasting(self, actor: Actor, authority: Authority = DIRECT) -> LastingRights:
        """Return what an actor has now and later."""
        return LastingRights(self, actor, authority)

    def _subjects(self, actor: Actor, authority: Authority) -> set[str]:
        grant = authority.grant
        now_ms = self.authorizer.now_ms()
        principal = (actor.identity.type_name, actor.identity.canonical_id) if grant is None else grant.subject
        subjects = {*self._index.subjects(*principal, now_ms)}
        if grant is None:
            for group in actor.groups:
                subjects.update(self._index.subjects("group", group, now_ms))
        wildcard = WILDCARDS.get(principal[0])
        if wildcard is not None:
            subjects.add(f"{WILDCARD}:{wildcard}")
        return subjects

    def _rules_of(self, subjects: Iterable[str]) -> Sequence[Rule]:
        """Return the live rules of these subjects, by their names or by patterns."""
        now_ms = self.authorizer.now_ms()
        return [one for one in self._index.rules_of(subjects) if one.is_live(now_ms)]


class HeldRights:
    """What an actor has by the rules of a moment; keep it no longer than a step."""

    def __init__(
        self,
        authorizer: RuleAuthorizer,
        actor: Actor,
        authority: Authority,
        principal_type: str,
        rules: Iterable[Rule],
    ) -> None:
        self._authorizer = authorizer
        self._actor = actor
        self._authority = authority
        self._principal_type = principal_type
        self._cap = actor.cap if authority.grant is None else min(actor.cap, authority.grant.max_level)
        self._rules: dict[str, list[Rule]] = defaultdict(list)
        for rule in rules:
            # A rule of a wildcard about a pattern is in no tier of the ladder.
            if rule.principal_type != WILDCARD or rule.resource_id == ANY or literal_of(rule.resource_id) is not None:
                self._rules[rule.resource_type].append(rule)

    def level_over(self, resource_type: str, resource_id: str) -> AccessLevel:
        """Return the level that is sure on all that a pattern names."""
        if resource_id != ANY and literal_of(resource_id) is not None:
            return _level_on(self._authorizer, self._actor, resource_type, resource_id, self._authority)
        if resource_type == "workspace" and not reaches_all_of(self._actor, resource_id):
            return AccessLevel.NONE
        fallbacks = self._authorizer.index.fallbacks()
        fallback = fallbacks.get(f"{self._principal_type}_{resource_type}", AccessLevel.NONE)
        return min(self._cap, _sure_level(self._rules.get(resource_type, ()), resource_type, resource_id, fallback))


class LastingRights:
    """What an actor has now and until later moments; keep it no longer than a step."""

    def __init__(self, granting: Granting, actor: Actor, authority: Authority) -> None:
        self._granting = granting
        self._actor = actor
        self._authority = authority
        self._now: HeldRights | None = None
        self._later: dict[int, HeldRights] = {}

    def check(self, resource_type: str, resource_id: str, level: AccessLevel, ends_ms: int, what: str) -> None:
        """Raise RequestError if the actor has less than a level, now or at its end.

        `ends_ms` 0 is never. `what` says what gives the level, with {} for its name.
        """
        if not level:
            return
        if self._now is None:
            self._now = self._granting.held(self._actor, self._authority)
        held = self._now.level_over(resource_type, resource_id)
        if held < level:
            raise _refusal(what.format(level.name), held)
        later = self._at(ends_ms - 1 if ends_ms else FOREVER).level_over(resource_type, resource_id)
        if later < level or self._outlasts_grant(ends_ms):
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
            if len(self._later) >= MAX_MOMENTS and moment_ms != FOREVER:
                return self._at(FOREVER)
            held = self._later[moment_ms] = self._granting.at(moment_ms).held(self._actor, self._authority)
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


def _tier(rule: Rule) -> int:
    wildcard = rule.principal_type == WILDCARD
    if not wildcard and literal_of(rule.principal_id) is None:
        return _PATTERN_TIER
    if rule.resource_id == ANY:
        return 4 if wildcard else 3
    if literal_of(rule.resource_id) is None:
        return _PATTERN_TIER
    return 2 if wildcard else 1


def _covers(rule: Rule, resource_type: str, asked: str) -> bool:
    """Return whether a rule applies to all that a pattern of resources names."""
    if rule.resource_id == ANY and _tier(rule) < _PATTERN_TIER:
        return True
    # The star of a rule whose subject is a pattern matches no "/".
    if asked == ANY:
        return rule.resource_id == ANY and resource_type in _WITHOUT_SLASH
    return contains(_compiled(rule.resource_id), _compiled(asked))


def _sure_level(mine: Sequence[Rule], resource_type: str, asked: str, fallback: AccessLevel) -> AccessLevel:
    """Return the lowest level that rules give on any resource that a pattern matches."""
    best = (_FALLBACK_TIER, fallback)
    for rule in mine:
        tier = _tier(rule)
        better = tier < best[0] or (tier == best[0] and rule.level > best[1])
        if better and _covers(rule, resource_type, asked):
            best = (tier, rule.level)
    tier, level = best
    earlier = [rule.level for rule in mine if rule.level < level and _tier(rule) < tier and _may_overlap(rule, asked)]
    return min([level, *earlier])


def _may_overlap(rule: Rule, asked: str) -> bool:
    if ANY in {asked, rule.resource_id}:
        return True
    literal = literal_of(rule.resource_id)
    return literal is None or _compiled(asked).matches(literal)


def _ends_earlier(new: _Ending, known: _Ending) -> bool:
    return new.expires_ms != 0 and (known.expires_ms == 0 or new.expires_ms < known.expires_ms)


def _earlier(one_ms: int, other_ms: int) -> int:
    """Return the earlier of two ends, of which 0 is never."""
    return min(one_ms, other_ms) if one_ms and other_ms else one_ms or other_ms


def _refusal(what: str, held: AccessLevel) -> RequestError:
    return RequestError(Code.PERMISSION_DENIED, f"you cannot give more than you have: {what}, and you have {held.name}")
