"""Refuses changes of access data by which a caller would give more than it has.

* A rule gives its level on its resources: the caller has that level on all of them.
* A membership gives all rights of the group or role, and of those that it is in.
* A fallback gives its level on all resources of a type.
* A removal may raise the caller's rights when what is removed holds them down; it is refused then.
* A lock does not match its maker.

For a pattern of resources the level that counts is the lowest that the caller is sure to have on
any resource that the pattern matches. The comparison is conservative: what cannot be compared
counts as not held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.patterns import Pattern, compile_pattern, contains, literal_of
from aether_trio.model.access.rules import ANY, RESOURCE_TYPES, WILDCARD, WILDCARDS, Lock, Member, Rule
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access.authorizer import DIRECT, AccessQuestion, Actor, Authority
from aether_trio.services.access.rule_authorizer import RuleAuthorizer

_PATTERN_TIER: Final = 5
_FALLBACK_TIER: Final = 6


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


class Granting:
    """Decides what callers may give away, by the rules in memory."""

    def __init__(self, authorizer: RuleAuthorizer) -> None:
        self.authorizer: Final = authorizer

    def by(self, authorizer: RuleAuthorizer) -> Granting:
        """Return what decides likewise, by the rules of another authorizer."""
        return type(self)(authorizer)

    @property
    def _index(self) -> AccessIndex:
        return self.authorizer.index

    def check_rule(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than the rule gives."""
        held = self.level_over(actor, rule.resource_type, rule.resource_id, authority)
        if held < rule.level:
            raise _refusal(f"a rule cannot give {rule.level.name} on {rule.resource}", held)

    def check_fallback(self, actor: Actor, category: str, level: AccessLevel, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than a fallback would give."""
        resource_type = next((one for one in RESOURCE_TYPES if category.endswith(f"_{one}")), "")
        held = self.level_over(actor, resource_type, ANY, authority) if resource_type else AccessLevel.NONE
        if not resource_type and level > AccessLevel.NONE:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                f"{category} is no category: it is the type of a principal and of a resource, such as agent_workspace",
            )
        if held < level:
            raise _refusal(f"a fallback cannot give {level.name} on all of {resource_type}", held)

    def check_membership(self, actor: Actor, member: Member, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the actor has less than the group or role gives."""
        kind, name = member.kind, member.name
        subjects = set(self._index.subjects(kind, name, self.authorizer.now_ms()))
        for rule in self._rules_of(subjects):
            held = self.level_over(actor, rule.resource_type, rule.resource_id, authority)
            if held < rule.level:
                raise _refusal(f"{kind} {name} gives {rule.level.name} on {rule.resource}", held)

    def check_removal(self, actor: Actor, rule: Rule, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the removal of a rule would raise the actor's rights."""

        def remove() -> Callable[[], None]:
            self._index.remove_rule(rule.rule_id)
            return lambda: self._index.put_rule(rule)

        if self._index.rule(rule.rule_id) is not None:
            self._check_without(actor, remove, [rule], authority)

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

        self._check_without(actor, remove, rules, authority)

    def check_member_removal(self, actor: Actor, member: Member, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a membership would raise the actor's rights."""
        index = self._index
        known = next((one for one in index.memberships() if _same_member(one, member)), None)
        if known is None:
            return

        def remove() -> Callable[[], None]:
            index.remove_membership(known.kind, known.name, known.member_type, known.member_id)
            return lambda: index.put_membership(known)

        subjects = set(index.subjects(member.kind, member.name, self.authorizer.now_ms()))
        self._check_without(actor, remove, self._rules_of(subjects), authority)

    def check_group_removal(self, actor: Actor, kind: str, name: str, authority: Authority = DIRECT) -> None:
        """Raise RequestError if the end of a group would raise the actor's rights."""
        index = self._index
        container = f"{kind}:{name}"
        members = [one for one in index.memberships() if container in {one.container, one.member}]
        subjects = set(index.subjects(kind, name, self.authorizer.now_ms()))
        rules = list(self._rules_of(subjects))

        def remove() -> Callable[[], None]:
            for one in members:
                index.remove_membership(one.kind, one.name, one.member_type, one.member_id)

            def put_back() -> None:
                for one in members:
                    index.put_membership(one)

            return put_back

        self._check_without(actor, remove, rules, authority)

    def check_lock(self, actor: Actor, lock: Lock) -> None:
        """Raise RequestError if a lock would bar its maker."""
        identity = actor.identity
        trial = AccessIndex()
        trial.put_lock(lock)
        if trial.locked(identity.type_name, identity.canonical_id, identity.text, lock.locked_ms) is not None:
            raise RequestError(Code.INVALID_ARGUMENT, f"{lock.pattern} would lock you out as well: name others")

    def _check_without(
        self, actor: Actor, remove: Callable[[], Callable[[], None]], rules: Iterable[Rule], authority: Authority
    ) -> None:
        held_down = [rule for rule in rules if rule.level < AccessLevel.SUPERADMIN]
        before = [self.level_over(actor, rule.resource_type, rule.resource_id, authority) for rule in held_down]
        put_back = remove()
        self.authorizer.forget_verdicts()
        try:
            after = [self.level_over(actor, rule.resource_type, rule.resource_id, authority) for rule in held_down]
        finally:
            put_back()
            self.authorizer.forget_verdicts()
        for rule, old, new in zip(held_down, before, after, strict=True):
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
        principal = (actor.identity.type_name, actor.identity.canonical_id) if grant is None else grant.subject
        subjects = {*self._index.subjects(*principal, self.authorizer.now_ms())}
        if grant is None:
            for group in actor.groups:
                subjects.update(self._index.subjects("group", group, self.authorizer.now_ms()))
        wildcard = WILDCARDS.get(principal[0])
        if wildcard is not None:
            subjects.add(f"{WILDCARD}:{wildcard}")
        return HeldRights(self.authorizer, actor, authority, principal[0], self._rules_of(subjects))

    def _rules_of(self, subjects: set[str]) -> Sequence[Rule]:
        """Return the live rules of these subjects, by their names or by patterns."""
        return rules_of(self._index.rules(), subjects, self.authorizer.now_ms())


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
            self._rules[rule.resource_type].append(rule)

    def level_over(self, resource_type: str, resource_id: str) -> AccessLevel:
        """Return the level that is sure on all that a pattern names."""
        if resource_id != ANY and literal_of(resource_id) is not None:
            return _level_on(self._authorizer, self._actor, resource_type, resource_id, self._authority)
        fallbacks = self._authorizer.index.fallbacks()
        fallback = fallbacks.get(f"{self._principal_type}_{resource_type}", AccessLevel.NONE)
        return min(self._cap, _sure_level(self._rules.get(resource_type, ()), resource_id, fallback))


def rules_of(rules: Iterable[Rule], subjects: Collection[str], now_ms: int) -> list[Rule]:
    """Return the live rules of these subjects, by their names or by patterns."""
    found: list[Rule] = []
    for rule in rules:
        subject = rule.subject
        named = subject in subjects
        if not named and rule.principal_type != WILDCARD and (literal := literal_of(rule.principal_id)) is None:
            pattern = _compiled(subject)
            named = any(pattern.matches(one) for one in subjects)
        elif not named and rule.principal_type != WILDCARD and literal != rule.principal_id:
            named = f"{rule.principal_type}:{literal}" in subjects
        if named and rule.is_live(now_ms):
            found.append(rule)
    return found


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


def _sure_level(mine: Sequence[Rule], asked: str, fallback: AccessLevel) -> AccessLevel:
    """Return the lowest level that rules give on any resource that a pattern matches."""
    best = (_FALLBACK_TIER, fallback)
    for rule in mine:
        if rule.resource_id == ANY or (asked != ANY and contains(_compiled(rule.resource_id), _compiled(asked))):
            tier = _tier(rule)
            if tier < best[0] or (tier == best[0] and rule.level > best[1]):
                best = (tier, rule.level)
    tier, level = best
    earlier = [rule.level for rule in mine if _tier(rule) < tier and _may_overlap(rule, asked)]
    return min([level, *earlier])


def _may_overlap(rule: Rule, asked: str) -> bool:
    if ANY in {asked, rule.resource_id}:
        return True
    literal = literal_of(rule.resource_id)
    return literal is None or _compiled(asked).matches(literal)


def _same_member(one: Member, other: Member) -> bool:
    return (one.kind, one.name, one.member_type, one.member_id) == (
        other.kind, other.name, other.member_type, other.member_id,
    )  # fmt: skip


def _refusal(what: str, held: AccessLevel) -> RequestError:
    return RequestError(Code.PERMISSION_DENIED, f"you cannot give more than you have: {what}, and you have {held.name}")
