"""Finds access rules that do not do what their author may think.

Nothing here changes a decision. Findings come in the order of their codes and rules. With 100,000
rules this takes seconds: long for the thread of an event loop.
"""

from __future__ import annotations

import enum
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import Pattern, compile_pattern, contains, escape, literal_of
from aether_trio.model.access.rules import ANY, GROUP, OWN_PRINCIPAL, ROLE, WILDCARD, WILDCARDS, Member, Rule
from aether_trio.model.identity import SEPARATOR
from aether_trio.model.text import shown

MOST_COMPARED: Final = 200  # patterns of one subject that are compared with each other

_CONCRETE_PARTS: Final[Mapping[str, int]] = MappingProxyType(
    dict.fromkeys(("ag", "tu", "ta"), 3) | dict.fromkeys(("sv", "br", "us", "orc"), 2)
)
"""By the prefix of an identity: the parts that a pattern should have before its first wildcard."""
_PREFIXES_OF_TYPE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"agent": ("ag",), "task": ("tu", "ta"), "service": ("sv",), "bridge": ("br",), "orchestrator": ("orc",)}
)
_FOREIGN: Final = re.compile(r"\{[^{}]*,[^{}]*\}|%|(?:^|[.:/])>$|\.\+|\$$|^\^|#$")
"""What has a meaning in other languages of patterns: braces, SQL, topics, regular expressions."""


class LintCode(enum.StrEnum):
    """What is wrong with a rule or membership."""

    BROAD = "broad"
    EMPTY_GROUP = "empty_group"
    EXPIRED = "expired"
    LOOKS_LIKE_NAME = "looks_like_name"
    LOOKS_LIKE_PATTERN = "looks_like_pattern"
    NEVER = "never"
    OUTVOTED = "outvoted"
    SHADOWED = "shadowed"
    WEAK_BAN = "weak_ban"


@dataclass(frozen=True, slots=True, order=True)
class LintFinding:
    """One thing that is wrong, with the rule ("" for a membership) and a sentence."""

    code: LintCode
    rule_id: str
    subject: str
    resource: str
    message: str


def lint(index: AccessIndex, now_ms: int) -> list[LintFinding]:
    """Return what is wrong with the rules and memberships of an index."""
    members = list(index.memberships())
    found = {*_expired_members(members, now_ms), *_odd_names(members)}
    live = []
    for rule in index.rules():
        if rule.is_live(now_ms):
            live.append(rule)
        else:
            found.add(_finding(LintCode.EXPIRED, rule, "expired; it counts no more"))
    inhabited = {one.container for one in members if one.is_live(now_ms)}
    every = _Rules(live)
    for rule in live:
        found.update(_about(rule, every, inhabited))
    found.update(_outvoted(live))
    return sorted(found)


def _finding(code: LintCode, rule: Rule, message: str) -> LintFinding:
    return LintFinding(code, rule.rule_id, rule.subject, rule.resource, message)


class _Rules:
    """Live rules by subject and resource, as they are written; and their patterns."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.pattern: Final = functools.cache(compile_pattern)
        self._rules = {(rule.subject, rule.resource): rule for rule in rules}

    def lasting(self, subject: str, resource: str, other: Rule) -> Rule | None:
        """Return the rule of this subject and resource, if it outlives the other one."""
        rule = self._rules.get((subject, resource))
        return rule if rule is not None and rule is not other and _outlives(rule, other) else None


def _outlives(rule: Rule, other: Rule) -> bool:
    return not rule.expires_ms or 0 < other.expires_ms <= rule.expires_ms


def _about(rule: Rule, every: _Rules, inhabited: set[str]) -> Iterator[LintFinding]:
    """Yield what is wrong with one rule."""
    if rule.principal_type == WILDCARD and rule.principal_id == OWN_PRINCIPAL:
        return
    subject = every.pattern(rule.principal_id)
    resource = every.pattern(rule.resource_id)
    if rule.principal_type == WILDCARD and resource.literal is None and rule.resource_id != ANY:
        yield _finding(
            LintCode.NEVER, rule, f"wildcards have no rules on patterns; name the resource, or all with {ANY}"
        )
    is_of_tier_5 = subject.literal is None or (resource.literal is None and rule.resource_id != ANY)
    if is_of_tier_5 and (shadow := _shadow(rule, subject, resource, every)) is not None:
        yield _finding(
            LintCode.SHADOWED,
            rule,
            f"rule {shadow.rule_id} ({shadow.subject} on {shadow.resource}) decides in an earlier tier",
        )
    yield from _groups(rule, subject, inhabited)
    if rule.level > AccessLevel.NONE:
        yield from _breadth(rule, subject, resource)
    elif subject.literal is None:
        yield _finding(
            LintCode.WEAK_BAN,
            rule,
            "a pattern misses names with '/', and groups and earlier tiers outvote NONE; to ban, lock",
        )
    yield from _names(rule, subject, resource)


def _shadow(rule: Rule, subject: Pattern, resource: Pattern, every: _Rules) -> Rule | None:
    """Return a rule of an earlier tier that applies wherever this one of tier 5 does."""
    every_resource = f"{rule.resource_type}:{ANY}"
    if subject.literal is not None and (found := every.lasting(rule.subject, every_resource, rule)) is not None:
        return found
    wildcard = WILDCARDS.get(rule.principal_type)
    if wildcard is None:
        return None
    found = every.lasting(f"{WILDCARD}:{wildcard}", every_resource, rule)
    if found is None and resource.literal is not None:
        found = every.lasting(f"{WILDCARD}:{wildcard}", rule.resource, rule)
    return found


def _groups(rule: Rule, subject: Pattern, inhabited: set[str]) -> Iterator[LintFinding]:
    if rule.principal_type not in {GROUP, ROLE}:
        return
    if subject.literal is not None:
        if f"{rule.principal_type}:{subject.literal}" not in inhabited:
            yield _finding(LintCode.EMPTY_GROUP, rule, f"{shown(rule.subject)} has no members")
    elif not any(
        subject.matches(name)
        for kind, _, name in (one.partition(":") for one in inhabited)
        if kind == rule.principal_type
    ):
        yield _finding(LintCode.EMPTY_GROUP, rule, f"no {rule.principal_type} with members matches")


def _breadth(rule: Rule, subject: Pattern, resource: Pattern) -> Iterator[LintFinding]:
    for pattern, prefixes in (
        (subject, _PREFIXES_OF_TYPE.get(rule.principal_type, ())),
        (resource, _PREFIXES_OF_TYPE.get(rule.resource_type, ())),
    ):
        if pattern.literal is not None or (pattern is resource and rule.resource_id == ANY):
            continue
        parts = pattern.prefix.split(SEPARATOR)[:-1]
        begins = parts[0] if parts else ""
        needed = _CONCRETE_PARTS.get(begins) or max((_CONCRETE_PARTS[one] for one in prefixes), default=0)
        if len(parts) < needed:
            yield _finding(
                LintCode.BROAD,
                rule,
                f"{shown(pattern.text)} has {len(parts)} parts before its first wildcard; {needed} say whom it is for",
            )


def _names(rule: Rule, subject: Pattern, resource: Pattern) -> Iterator[LintFinding]:
    if rule.principal_type == "user" and rule.principal_id.startswith("us::"):
        yield _finding(
            LintCode.NEVER, rule, "users are known by their id alone, without 'us::' and window; this matches none"
        )
    for pattern in (subject, resource):
        if pattern.literal is not None:
            if _FOREIGN.search(pattern.literal):
                yield _finding(
                    LintCode.LOOKS_LIKE_PATTERN,
                    rule,
                    f"{shown(pattern.text)} is a name; the wildcards of patterns are *, ? and [...]",
                )
        elif "**" in pattern.text or ".*" in pattern.text:
            yield _finding(
                LintCode.LOOKS_LIKE_PATTERN,
                rule,
                f"{shown(pattern.text)} is no pattern of that language: '*' is any text without '/', also twice; "
                "'.' is a dot",
            )
        elif "*" not in pattern.text:
            yield _finding(
                LintCode.LOOKS_LIKE_NAME,
                rule,
                f"{shown(pattern.text)} is a pattern; as a name it is written {shown(escape(pattern.text))}",
            )


def _outvoted(live: Iterable[Rule]) -> Iterator[LintFinding]:
    """Yield rules of tier 5 with a wider one of the same subject and no lower level."""
    by_subject: dict[tuple[str, str], list[tuple[Rule, Pattern]]] = defaultdict(list)
    for rule in live:
        if rule.resource_id != ANY and rule.principal_type != WILDCARD and literal_of(rule.resource_id) is None:
            by_subject[rule.subject, rule.resource_type].append((rule, compile_pattern(rule.resource_id)))
    for rules in by_subject.values():
        compared = rules[:MOST_COMPARED]
        for rule, pattern in compared:
            for other, wider in compared:
                if other is rule or other.level < rule.level or not _outlives(other, rule):
                    continue
                if contains(wider, pattern) and not (
                    other.level == rule.level
                    and _outlives(rule, other)
                    and other.rule_id > rule.rule_id
                    and contains(pattern, wider)
                ):
                    yield _finding(
                        LintCode.OUTVOTED,
                        rule,
                        f"rule {other.rule_id} on {shown(other.resource)} covers it with {other.level.name}",
                    )
                    break


def _expired_members(members: Iterable[Member], now_ms: int) -> Iterator[LintFinding]:
    for one in members:
        if not one.is_live(now_ms):
            yield LintFinding(LintCode.EXPIRED, "", one.member, one.container, "the membership expired")


def _odd_names(members: Iterable[Member]) -> Iterator[LintFinding]:
    for one in members:
        if escape(one.name) != one.name:
            yield LintFinding(
                LintCode.LOOKS_LIKE_PATTERN,
                "",
                one.container,
                "",
                f"the {one.kind} {shown(one.name)} is a name; in rules it is written {shown(escape(one.name))}",
            )
