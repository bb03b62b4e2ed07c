"""A policy: roles, groups, rules, fallbacks, locks and tests, as one document.

A policy is compared with the present state of the access data, which gives a list of changes, and
the state after them; the tests of the policy are run against that state. Nothing here is changed
anywhere: services make the changes, `policy_reading` reads files.

    Policy + AccessState ──difference──▶ changes ──apply_changes──▶ AccessState ──▶ AccessIndex
                                                                     ──run_tests──▶ outcomes

A policy adds and changes. It takes away only with `prune`: then, of each section that the policy
has, what it does not name goes. Rules of its `base` (model/access/seeds.py) stay.

Invariants: the difference between a policy and the state that applying it with `prune` gives is
empty. Entries of a policy that have expired count as not there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from aether_trio.model.access.ladder import AccessIndex, Verdict
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import literal_of
from aether_trio.model.access.rules import GROUP, MAX_DEPTH, ROLE, Lock, Member, Rule
from aether_trio.model.access.seeds import ADMINISTRATORS, SYSTEM, seeds
from aether_trio.model.access.spellings import moment_text, principal_text, resource_text
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.text import shown

VERSION: Final = 1
NO_BASE: Final = "none"
BASES: Final = ("closed", "open", NO_BASE)
SECTIONS: Final = ("roles", "groups", "rules", "fallbacks", "locks", "tests")

RuleKey: TypeAlias = tuple[str, str, str, str]
GroupKey: TypeAlias = tuple[str, str]
Action: TypeAlias = Literal["add", "change", "remove"]


class PolicyGroup(NamedTuple):
    """A group or role (`kind`) of a policy; description "": whatever it is."""

    kind: str
    name: str
    description: str = ""


class PolicyMember(NamedTuple):
    """A membership of a policy; times in Unix ms, 0: never."""

    kind: str
    name: str
    member_type: str
    member_id: str
    expires_ms: int = 0


class PolicyRule(NamedTuple):
    """A rule of a policy, as it is stored, with its line in the file."""

    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    level: AccessLevel
    expires_ms: int = 0
    reason: str = ""
    line: int = 0

    @property
    def key(self) -> RuleKey:
        return self[:4]


class PolicyLock(NamedTuple):
    """A lock of a policy."""

    pattern: str
    reason: str = ""
    expires_ms: int = 0


class PolicyTest(NamedTuple):
    """A test: whether a principal may access a resource at a moment; 0: now."""

    text: str
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    level: AccessLevel
    allowed: bool
    at_ms: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The content of a policy file, normalised; `sections` are those that it has."""

    base: str = "closed"
    sections: tuple[str, ...] = ()
    groups: tuple[PolicyGroup, ...] = ()
    members: tuple[PolicyMember, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    fallbacks: tuple[tuple[str, AccessLevel], ...] = ()
    locks: tuple[PolicyLock, ...] = ()
    tests: tuple[PolicyTest, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessState:
    """All access data at a moment."""

    rules: Mapping[RuleKey, Rule] = field(default_factory=dict)
    groups: Mapping[GroupKey, str] = field(default_factory=dict)
    """By kind and name: the description."""
    members: Mapping[tuple[str, str, str, str], Member] = field(default_factory=dict)
    fallbacks: Mapping[str, AccessLevel] = field(default_factory=dict)
    locks: tuple[Lock, ...] = ()

    @classmethod
    def of(
        cls,
        rules: Iterable[Rule],
        groups: Mapping[GroupKey, str],
        members: Iterable[Member],
        fallbacks: Mapping[str, AccessLevel],
        locks: Iterable[Lock],
    ) -> AccessState:
        """Return the state of these records."""
        return cls(
            {rule_key(one): one for one in rules},
            dict(groups),
            {member_key(one): one for one in members},
            dict(fallbacks),
            tuple(locks),
        )

    def index(self) -> AccessIndex:
        """Return an index that decides by this state."""
        index = AccessIndex()
        for rule in self.rules.values():
            index.put_rule(rule)
        for member in self.members.values():
            index.put_membership(member)
        for category, level in self.fallbacks.items():
            index.set_fallback(category, level)
        for lock in self.locks:
            index.put_lock(lock)
        return index


class FallbackLevel(NamedTuple):
    """The level of a category, as a change has it before or after."""

    category: str
    level: AccessLevel


Entry: TypeAlias = Rule | Member | Lock | PolicyGroup | FallbackLevel


class PolicyChange(NamedTuple):
    """One change: `before` is None for what is new, `after` for what is removed."""

    before: Entry | None
    after: Entry | None

    @property
    def action(self) -> Action:
        if self.before is None:
            return "add"
        return "remove" if self.after is None else "change"

    @property
    def entry(self) -> Entry:
        found = self.after if self.after is not None else self.before
        assert found is not None
        return found

    def line(self) -> ChangeLine:
        """Return the change as texts."""
        kind, name = _named(self.entry)
        before = "" if self.before is None else _content(self.before)
        after = "" if self.after is None else _content(self.after)
        return ChangeLine(self.action, kind, name, before, after)


class ChangeLine(NamedTuple):
    """A change as people read it: what kind of thing, its name, its content."""

    action: Action
    kind: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        sign = {"add": "+", "change": "~", "remove": "-"}[self.action]
        content = f"{self.before} -> {self.after}" if self.action == "change" else self.before or self.after
        return f"{sign} {self.kind} {self.name}{': ' if content else ''}{content}"


@dataclass(frozen=True, slots=True)
class Difference:
    """What applying a policy changes, and how much of the state it does not name."""

    changes: tuple[PolicyChange, ...]
    unnamed: int
    """What is in a section of the policy's, and is neither in it nor in its base."""

    def count(self, action: Action) -> int:
        """Return how many changes add, change or remove something."""
        return sum(one.action == action for one in self.changes)


class PolicyOutcome(NamedTuple):
    """The result of a test, and what decided."""

    test: PolicyTest
    passed: bool
    why: str


# -- states ----------------------------------------------------------------------------------------


def rule_key(rule: Rule) -> RuleKey:
    """Return what makes a rule this one: its principal and resource."""
    return rule.principal_type, rule.principal_id, rule.resource_type, rule.resource_id


def member_key(member: Member | PolicyMember) -> tuple[str, str, str, str]:
    """Return what makes a membership this one: its group or role, and its member."""
    return member.kind, member.name, member.member_type, member.member_id


def base_state(base: str) -> AccessState:
    """Return the state of a new gateway with these seeds; "none": nothing."""
    if base == NO_BASE:
        return AccessState()
    chosen = seeds(base)
    return AccessState.of(
        [Rule(one.rule_id, *one[1:5], one.level, SYSTEM, 0, 0, one.reason) for one in chosen.rules],
        {(ROLE, ADMINISTRATORS): "administer the gateway"},
        [Member(ROLE, ADMINISTRATORS, *one, SYSTEM) for one in chosen.administrators],
        chosen.fallbacks,
        (),
    )


def state_problems(state: AccessState) -> list[str]:
    """Return what is wrong with the groups of a state: unknown, a circle, too deep."""
    problems: list[str] = []
    above: dict[GroupKey, set[GroupKey]] = defaultdict(set)
    for kind, name, member_type, member_id in state.members:
        problems += [
            f"{one[0]} not found: {shown(one[1])}"
            for one in ((kind, name), (member_type, member_id))
            if one[0] in {GROUP, ROLE} and one not in state.groups
        ]
        if member_type in {GROUP, ROLE}:
            above[member_type, member_id].add((kind, name))
    depths: dict[GroupKey, int] = {}
    for start in list(above):
        problem = _depth(start, above, depths)
        if problem:
            return [*dict.fromkeys(problems), problem]
    deepest = max(depths.values(), default=0)
    if deepest > MAX_DEPTH:
        problems.append(f"groups and roles would nest {deepest} deep; at most {MAX_DEPTH} are allowed")
    return list(dict.fromkeys(problems))


def _depth(start: GroupKey, above: Mapping[GroupKey, set[GroupKey]], depths: dict[GroupKey, int]) -> str:
    """Fill in the depths of a group and those that it is in; return a circle's text."""
    open_now: set[GroupKey] = set()
    stack = [start]
    while stack:
        one = stack[-1]
        if one in depths:
            stack.pop()
            continue
        open_now.add(one)
        missing = [other for other in above.get(one, ()) if other not in depths]
        if circle := next((other for other in missing if other in open_now), None):
            return f"membership would create a cycle: {shown(':'.join(circle))} would be in itself"
        if missing:
            stack.append(missing[0])
            continue
        depths[one] = 1 + max((depths[other] for other in above.get(one, ())), default=0)
        open_now.discard(one)
        stack.pop()
    return ""


# -- the difference --------------------------------------------------------------------------------


def difference(
    policy: Policy, state: AccessState, *, now_ms: int, by: str = "", new_id: Callable[[], str], prune: bool = False
) -> Difference:
    """Return what applying a policy changes, in an order in which it can be done.

    `by` is the principal who grants what is new; `new_id` makes the ids of rules and locks.
    """
    base = base_state(policy.base)
    changes: list[PolicyChange] = []
    unnamed = 0

    def take_away(gone: Sequence[Entry]) -> None:
        nonlocal unnamed
        unnamed += len(gone)
        if prune:
            changes.extend(PolicyChange(one, None) for one in gone)

    groups = {(one.kind, one.name): one for one in policy.groups}
    dropped = _dropped_groups(policy, state, base, groups)
    members = {member_key(one): one for one in policy.members if _is_live(one.expires_ms, now_ms)}
    rules = {one.key: one for one in policy.rules if _is_live(one.expires_ms, now_ms)}
    take_away([one for key, one in state.members.items() if _is_dropped_member(key, members, groups, dropped)])
    take_away([one for key, one in state.rules.items() if _is_dropped_rule(policy, key, rules, base, dropped)])
    take_away([PolicyGroup(kind, name, state.groups[kind, name]) for kind, name in dropped])
    for key, group in groups.items():
        known = state.groups.get(key)
        if known is None:
            changes.append(PolicyChange(None, group))
        elif group.description not in {"", known}:
            changes.append(PolicyChange(PolicyGroup(*key, known), group))
    for of, member in members.items():
        old = state.members.get(of)
        if old is None or old.expires_ms != member.expires_ms:
            changes.append(PolicyChange(old, Member(*of, by, now_ms, member.expires_ms)))
    for rule in rules.values():
        present = state.rules.get(rule.key)
        if present is None or _terms(present) != _terms(rule):
            rule_id = new_id() if present is None else present.rule_id
            new = Rule(rule_id, *rule.key, rule.level, by, now_ms, rule.expires_ms, rule.reason)
            changes.append(PolicyChange(present, new))
    _fallback_changes(policy, state, base, changes, take_away)
    _lock_changes(policy, state, now_ms, by, new_id, changes, take_away)
    return Difference(tuple(changes), unnamed)


def _dropped_groups(
    policy: Policy, state: AccessState, base: AccessState, groups: Mapping[GroupKey, PolicyGroup]
) -> set[GroupKey]:
    """Return the groups and roles that a policy with such a section does not name."""
    managed = {kind for kind, section in ((GROUP, "groups"), (ROLE, "roles")) if section in policy.sections}
    named = {*groups, *base.groups, *((one.member_type, one.member_id) for one in policy.members)}
    named.update((one.principal_type, literal_of(one.principal_id) or "") for one in policy.rules)
    return {key for key in state.groups if key[0] in managed and key not in named}


def _is_dropped_member(
    key: tuple[str, str, str, str],
    members: Mapping[tuple[str, str, str, str], PolicyMember],
    groups: Mapping[GroupKey, PolicyGroup],
    dropped: set[GroupKey],
) -> bool:
    """Whether a membership of a group that the policy names, or drops, is not named."""
    if key[:2] in dropped or key[2:] in dropped:
        return True
    return key[:2] in groups and key not in members


def _is_dropped_rule(
    policy: Policy, key: RuleKey, rules: Mapping[RuleKey, PolicyRule], base: AccessState, dropped: set[GroupKey]
) -> bool:
    if dropped and (key[0], literal_of(key[1])) in dropped:
        return True
    return "rules" in policy.sections and key not in rules and key not in base.rules


def _fallback_changes(
    policy: Policy,
    state: AccessState,
    base: AccessState,
    changes: list[PolicyChange],
    take_away: Callable[[Sequence[Entry]], None],
) -> None:
    wanted = dict(policy.fallbacks)
    for category, level in wanted.items():
        known = state.fallbacks.get(category)
        if known is not level:
            before = None if known is None else FallbackLevel(category, known)
            changes.append(PolicyChange(before, FallbackLevel(category, level)))
    if "fallbacks" in policy.sections:
        gone = [one for one in state.fallbacks.items() if one[0] not in wanted and one[0] not in base.fallbacks]
        take_away([FallbackLevel(*one) for one in gone])


def _lock_changes(
    policy: Policy,
    state: AccessState,
    now_ms: int,
    by: str,
    new_id: Callable[[], str],
    changes: list[PolicyChange],
    take_away: Callable[[Sequence[Entry]], None],
) -> None:
    wanted = {one.pattern: one for one in policy.locks if _is_live(one.expires_ms, now_ms)}
    known: dict[str, Lock] = {}
    gone: list[Lock] = []
    for lock in state.locks:
        if lock.pattern in wanted and lock.pattern not in known:
            known[lock.pattern] = lock
        else:
            gone.append(lock)
    for pattern, one in wanted.items():
        old = known.get(pattern)
        if old is None or (old.reason, old.expires_ms) != (one.reason, one.expires_ms):
            lock_id = new_id() if old is None else old.lock_id
            changes.append(PolicyChange(old, Lock(lock_id, pattern, one.reason, by, now_ms, one.expires_ms)))
    if "locks" in policy.sections:
        take_away(gone)


def _terms(rule: Rule | PolicyRule) -> tuple[AccessLevel, int, str]:
    return rule.level, rule.expires_ms, rule.reason


def _is_live(expires_ms: int, now_ms: int) -> bool:
    return not expires_ms or now_ms < expires_ms


def apply_changes(state: AccessState, changes: Iterable[PolicyChange]) -> AccessState:
    """Return the state after these changes."""
    rules, groups, members = dict(state.rules), dict(state.groups), dict(state.members)
    fallbacks = dict(state.fallbacks)
    locks = {one.lock_id: one for one in state.locks}
    for before, after in changes:
        entry = after if after is not None else before
        if isinstance(entry, Rule):
            _set(rules, rule_key(entry), after)
        elif isinstance(entry, Member):
            _set(members, member_key(entry), after)
        elif isinstance(entry, Lock):
            _set(locks, entry.lock_id, after)
        elif isinstance(entry, FallbackLevel):
            _set(fallbacks, entry.category, None if after is None else entry.level)
        elif isinstance(entry, PolicyGroup):
            _set(groups, (entry.kind, entry.name), None if after is None else entry.description)
    return AccessState(rules, groups, members, fallbacks, tuple(locks.values()))


def _set(into: dict[Any, Any], key: object, value: object) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


# -- tests -----------------------------------------------------------------------------------------


def rehearsed(policy: Policy, *, now_ms: int) -> AccessState:
    """Return the state of a new gateway to which a policy is applied.

    The ids of rules are "line-N", by their lines in the file; further ones on a line "line-N.2".
    """
    state = base_state(policy.base)
    numbers = count(1)
    changed = difference(policy, state, now_ms=now_ms, new_id=lambda: f"new-{next(numbers)}")
    lines: dict[RuleKey, str] = {}
    on_line: dict[int, int] = defaultdict(int)
    for rule in policy.rules:
        on_line[rule.line] += 1
        again = f".{on_line[rule.line]}" if on_line[rule.line] > 1 else ""
        lines[rule.key] = f"line-{rule.line}{again}"
    named = [
        PolicyChange(before, replace(after, rule_id=lines[rule_key(after)]) if isinstance(after, Rule) else after)
        for before, after in changed.changes
    ]
    return apply_changes(state, named)


def run_tests(tests: Iterable[PolicyTest], index: AccessIndex, now_ms: int) -> list[PolicyOutcome]:
    """Run tests against an index; in their order."""
    return [_outcome(one, index, one.at_ms or now_ms) for one in tests]


def _outcome(test: PolicyTest, index: AccessIndex, now_ms: int) -> PolicyOutcome:
    allowed, why = judge(index, test[1:3], test[3:5], test.level, now_ms)
    return PolicyOutcome(test, allowed is test.allowed, why)


def judge(
    index: AccessIndex, principal: tuple[str, str], resource: tuple[str, str], level: AccessLevel, now_ms: int
) -> tuple[bool, str]:
    """Decide, by locks and the ladder, whether a principal may; and say what decided."""
    principal_type, principal_id = principal
    text = f"us::{principal_id}::" if principal_type == "user" else principal_id
    lock = index.locked(principal_type, principal_id, text, now_ms)
    if lock is not None:
        return False, f"the lock on {lock.pattern}"
    verdict = index.decide(*principal, *resource, now_ms, own_workspace=workspace_of(*principal))
    return verdict.level >= level > AccessLevel.NONE, decided_by(index, verdict)


def decided_by(index: AccessIndex, verdict: Verdict) -> str:
    """Say what decided: the rule with its id, or the reason where there is none."""
    rule = index.rule(verdict.rule_id) if verdict.rule_id else None
    if rule is None:
        return verdict.reason
    return f"rule {rule.rule_id}: {rule_text(rule)} (tier {verdict.tier}{', via ' if verdict.via else ''}{verdict.via})"


def workspace_of(principal_type: str, principal_id: str) -> str:
    """Return the workspace that a principal belongs to, "" for none."""
    if principal_type not in {"agent", "task"}:
        return ""
    try:
        return Identity.parse(principal_id, strict=False).workspace
    except IdentityError:
        return ""


# -- texts -----------------------------------------------------------------------------------------


def rule_text(rule: Rule | PolicyRule) -> str:
    """Return a rule on one line: who, which level, on what."""
    who = principal_text(rule.principal_type, rule.principal_id)
    return f"{who} {rule.level.name.lower()} {resource_text(rule.resource_type, rule.resource_id)}"


def _named(entry: Entry) -> tuple[str, str]:
    if isinstance(entry, Rule):
        what = resource_text(entry.resource_type, entry.resource_id)
        return "rule", f"{principal_text(entry.principal_type, entry.principal_id)} {what}"
    if isinstance(entry, Member):
        return "member", f"{principal_text(entry.member_type, entry.member_id)} in {entry.container}"
    if isinstance(entry, Lock):
        return "lock", entry.pattern
    if isinstance(entry, PolicyGroup):
        return entry.kind, entry.name
    return "fallback", entry.category


def _content(entry: Entry) -> str:
    if isinstance(entry, PolicyGroup):
        return entry.description
    if isinstance(entry, FallbackLevel):
        return entry.level.name.lower()
    until = f"until {moment_text(entry.expires_ms)}" if entry.expires_ms else ""
    if isinstance(entry, Member):
        return until
    reason = f"({entry.reason})" if entry.reason else ""
    level = entry.level.name.lower() if isinstance(entry, Rule) else ""
    return " ".join(filter(None, (level, until, reason)))
