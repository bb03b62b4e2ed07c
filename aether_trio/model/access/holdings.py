"""Compares what principals have by the rules of a moment, also over patterns.

`sure` is the lowest level on any resource that a pattern names, as far as it is certain: what one
may give away. `gain` finds a resource on which a principal may have more after a change: what one
may not take away. Both are conservative, and what cannot be compared counts against the change.

Beyond the ladder, `gain` knows where another resource decides for one without a rule: the scope for
a key, the scope of all users for that of one, the workspace for a message to a user.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import (
    MAX_COMPARED,
    Pattern,
    Steps,
    compile_pattern,
    contains,
    escape,
    literal_of,
)
from aether_trio.model.access.rules import ANY, OWN_PRINCIPAL, WILDCARD, WILDCARDS, Rule

NONE: Final = AccessLevel.NONE
PATTERN_TIER: Final = 5
FALLBACK_TIER: Final = 6
_WITHOUT_SLASH: Final = frozenset({"workspace", "agent", "task", "user", "session", "topic", "service_impl"})
"""Types whose names have no "/": a star matches them all."""
_OWN_TYPES: Final = {"workspace": None, "kv_scope": "workspace"}
"""Types of which the rule "own" gives something: the name; None: the own workspace."""


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Pattern:
    return compile_pattern(text)


class Holder(NamedTuple):
    """A principal whose rights are compared."""

    principal_type: str
    principal_id: str
    own_workspace: str = ""
    groups: tuple[str, ...] = ()
    """Groups that its credential names, beside those of which it is a member."""


class Gain(NamedTuple):
    """A resource on which a principal may have more after a change."""

    rule: Rule  # that counts no more
    old: AccessLevel
    new: AccessLevel


def subjects_of(index: AccessIndex, holder: Holder, now_ms: int) -> set[str]:
    """Return a principal, its groups and roles and its wildcard, as "type:id"."""
    subjects = {*index.subjects(holder.principal_type, holder.principal_id, now_ms)}
    for group in holder.groups:
        subjects.update(index.subjects("group", group, now_ms))
    wildcard = WILDCARDS.get(holder.principal_type)
    if wildcard is not None:
        subjects.add(f"{WILDCARD}:{wildcard}")
    return subjects


class Holdings:
    """What a principal has by the rules of a moment; keep it no longer than a step."""

    def __init__(self, index: AccessIndex, holder: Holder, now_ms: int, known: Iterable[Rule] | None = None) -> None:
        """`known`: the rules that it had before; None: they are looked up among all."""
        self.holder: Final = holder
        self.now_ms: Final = now_ms
        self._index = index
        self._subjects = subjects_of(index, holder, now_ms)
        rules = index.rules_of(self._subjects) if known is None else _still_of(known, self._subjects)
        self._rules: dict[str, dict[str, Rule]] = defaultdict(dict)
        for rule in rules:
            if rule.is_live(now_ms) and _counts(rule):
                self._rules[rule.resource_type][rule.rule_id] = rule

    def at(self, moment_ms: int) -> Holdings:
        """Return what is left of it at a later moment."""
        if moment_ms == self.now_ms:
            return self
        return Holdings(self._index, self.holder, moment_ms, self.rules())

    def rules(self, resource_type: str = "") -> Iterator[Rule]:
        """Yield the live rules of the principal, of one type of resources or of all."""
        for of_type in [resource_type] if resource_type else list(self._rules):
            yield from self._rules.get(of_type, {}).values()

    def ends(self, resource_type: str = "") -> set[int]:
        """Return the moments at which some of it ends."""
        found = {rule.expires_ms for rule in self.rules(resource_type) if rule.expires_ms}
        for subject in self._subjects:
            found.update(one.expires_ms for one in self._index.memberships_of(subject) if one.expires_ms > self.now_ms)
        own = self._own
        if own is not None and own.expires_ms:
            found.add(own.expires_ms)
        return found

    @property
    def terms(self) -> set[tuple[str, int]]:
        """Its rules and the memberships of the principal, each with its end."""
        rules = {(rule.rule_id, rule.expires_ms) for rule in self.rules()}
        return rules.union(
            (f"{subject} in {one.container}", one.expires_ms)
            for subject in self._subjects
            for one in self._index.memberships_of(subject)
        )

    @property
    def _own(self) -> Rule | None:
        """The rule "own", if there is something of which it is."""
        rule = self._index.own_rule if self.holder.own_workspace else None
        return rule if rule is not None and rule.is_live(self.now_ms) else None

    def level(self, resource_type: str, name: str) -> AccessLevel:
        """Return the level on one resource."""
        return self._verdict(resource_type, name)[0]

    def _verdict(self, resource_type: str, name: str) -> tuple[AccessLevel, int]:
        holder = self.holder
        found = self._index.decide(
            holder.principal_type,
            holder.principal_id,
            resource_type,
            name,
            self.now_ms,
            own_workspace=holder.own_workspace if resource_type in _OWN_TYPES else "",
            groups=holder.groups,
        )
        return found.level, found.tier

    def sure(self, resource_type: str, asked: str) -> AccessLevel:
        """Return the lowest level on any resource that a pattern names."""
        name = literal_of(asked)
        if name is not None and asked != ANY:
            return self.level(resource_type, name)
        mine = list(self.rules(resource_type))
        steps = Steps(MAX_COMPARED)
        best = (FALLBACK_TIER, self._fallback(resource_type))
        for rule in mine:
            tier = tier_of(rule)
            better = tier < best[0] or (tier == best[0] and rule.level > best[1])
            if better and _covers(rule, asked, steps):
                best = (tier, rule.level)
        tier, level = best
        earlier = [
            rule.level for rule in mine if rule.level < level and tier_of(rule) < tier and _may_overlap(rule, asked)
        ]
        return min([level, *earlier])

    def _fallback(self, resource_type: str) -> AccessLevel:
        return self._index.fallbacks().get(f"{self.holder.principal_type}_{resource_type}", NONE)

    def has(self, rule: Rule) -> bool:
        """Return whether a rule, by its id, is among those of the principal."""
        return rule.rule_id in self._rules.get(rule.resource_type, ())

    def held_down(self, rules: Iterable[Rule], cap: AccessLevel) -> list[tuple[Rule, AccessLevel]]:
        """Return which of these rules may hold down, with the level where they do."""
        return [
            (rule, rule.level if (name := _name_in(rule)) is None else self._effective(rule.resource_type, name))
            for rule in rules
            if rule.level < cap and self.has(rule)
        ]

    def gain(self, before: Iterable[tuple[Rule, AccessLevel]], cap: AccessLevel) -> Gain | None:
        """Return where the principal has more, now that some rules count no more.

        `before` is what `held_down` has returned.
        """
        for rule, old in before:
            if self.has(rule):
                continue
            name = _name_in(rule)
            new = min(cap, self._behind(rule) if name is None else self._effective(rule.resource_type, name))
            if new > old:
                return Gain(rule, old, new)
        return None

    def _effective(self, resource_type: str, name: str) -> AccessLevel:
        """Return the level on one resource, also by what decides where no rule does."""
        level, tier = self._verdict(resource_type, name)
        return level if tier < FALLBACK_TIER else max(level, self._otherwise(resource_type, escape(name)))

    def _otherwise(self, resource_type: str, asked: str) -> AccessLevel:
        """Return the highest level on such resources where no rule of their type decides."""
        if resource_type == "kv_key":
            return self._most("kv_scope")
        if resource_type == "kv_scope" and (asked == ANY or "/" in asked or literal_of(asked) is None):
            return max(self.level("kv_scope", one) for one in ("user-shared", "user-workspace-shared"))
        return AccessLevel.READWRITE if resource_type == "user" else NONE

    def _most(self, resource_type: str) -> AccessLevel:
        """Return a level that the principal does not exceed on any resource of a type."""
        own = self._own
        levels = [rule.level for rule in self.rules(resource_type)]
        return max([self._fallback(resource_type), NONE if own is None else own.level, *levels])

    def _behind(self, gone: Rule) -> AccessLevel:
        """Return a level that is not exceeded where a rule about a pattern decided."""
        asked, resource_type, tier = gone.resource_id, gone.resource_type, tier_of(gone)
        mine = list(self.rules(resource_type))
        steps = Steps(MAX_COMPARED)
        if any(tier_of(rule) <= tier and _covers(rule, asked, steps) for rule in mine):
            return NONE  # it is decided by another rule of the tier, which was there, or earlier
        later = [rule.level for rule in mine if tier_of(rule) > tier and _may_overlap(rule, asked)]
        levels = [self._fallback(resource_type), self._otherwise(resource_type, asked), *later]
        own = self._own
        if own is not None and resource_type in _OWN_TYPES:
            name = _OWN_TYPES[resource_type] or self.holder.own_workspace
            if asked == ANY or _compiled(asked).matches(name):
                levels.append(own.level)
        return max(levels)


def given_by(rule: Rule) -> Sequence[tuple[str, str]]:
    """Return the resources (type, pattern) on which a rule gives its level."""
    if rule.principal_type == WILDCARD and rule.principal_id == OWN_PRINCIPAL:
        return (("workspace", ANY), ("kv_scope", "workspace"))  # to each participant in its own one
    return ((rule.resource_type, rule.resource_id),)


def tier_of(rule: Rule) -> int:
    """Return the tier of the ladder in which a rule counts."""
    wildcard = rule.principal_type == WILDCARD
    if not wildcard and literal_of(rule.principal_id) is None:
        return PATTERN_TIER
    if rule.resource_id == ANY:
        return 4 if wildcard else 3
    if literal_of(rule.resource_id) is None:
        return PATTERN_TIER
    return 2 if wildcard else 1


def _name_in(rule: Rule) -> str | None:
    """Return the name of the only resource of a rule; None for a pattern."""
    return None if rule.resource_id == ANY else literal_of(rule.resource_id)


def _counts(rule: Rule) -> bool:
    """Return whether a rule is in a tier: of a wildcard about a pattern, none."""
    return rule.principal_type != WILDCARD or rule.resource_id == ANY or literal_of(rule.resource_id) is not None


def _still_of(rules: Iterable[Rule], subjects: set[str]) -> Iterator[Rule]:
    """Yield the rules of these subjects, by names or by patterns."""
    for rule in rules:
        name = literal_of(rule.principal_id)
        if name is not None:
            if f"{rule.principal_type}:{name}" in subjects:
                yield rule
            continue
        pattern, of_type = _compiled(rule.subject), f"{rule.principal_type}:"
        if any(one.startswith(of_type) and pattern.matches(one) for one in subjects):
            yield rule


def _covers(rule: Rule, asked: str, steps: Steps) -> bool:
    """Return whether a rule applies to all that a pattern of its type names."""
    if rule.resource_id == ANY and tier_of(rule) < PATTERN_TIER:
        return True
    # The star of a rule whose subject is a pattern matches no "/".
    if asked == ANY:
        return rule.resource_id == ANY and rule.resource_type in _WITHOUT_SLASH
    return contains(_compiled(rule.resource_id), _compiled(asked), steps)


def _may_overlap(rule: Rule, asked: str) -> bool:
    if ANY in {asked, rule.resource_id}:
        return True
    literal = literal_of(rule.resource_id)
    return literal is None or _compiled(asked).matches(literal)
