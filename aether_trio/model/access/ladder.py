"""The ladder: which level a principal has on a resource, by all rules.

The first tier with a live rule decides, by its highest level, even if that is NONE:

| tier | subject | resource |
|---|---|---|
| 1 | the principal, its groups and roles | the exact name |
| 2 | the wildcard of its type (`_any_agent`) | the exact name |
| 3 | as 1 | `*`, alone: all of the type |
| 4 | as 2 | `*`, alone |
| 5 | as 1 | patterns, on either side or both |
| 6 | the type of the principal | the fallback of both types; the rule "own" |

Groups and roles hold groups and roles, MAX_DEPTH deep. What is asked for is a name, never a
pattern. Rules of wildcards with patterns of resources are in no tier.

Invariants: each change is one step and leaves the index complete. An answer is what a search of all
rules would give. Its cost grows with the groups of the principal, and with the logarithm of the
number of patterns (unless many of them share their subject and their literal end).
"""

from __future__ import annotations

import heapq
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar

from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import Pattern, compile_pattern, escape, literal_of, respelt
from aether_trio.model.access.rules import (
    ANY,
    GROUP,
    MAX_DEPTH,
    OWN_PRINCIPAL,
    ROLE,
    WILDCARD,
    WILDCARDS,
    Lock,
    Member,
    Rule,
)

MAX_REMEMBERED: Final = 4096  # principals and their groups, and places of names in one index
MAX_ASKED: Final = 256  # principals whose rules are kept together
_NEVER: Final = 1 << 62
_KEY: Final = "kv_key"
MAX_KEY_RULES: Final = 256
"""Rules about keys that `may_have_key_rules` looks through."""
_KV_SCOPE_OF_WORKSPACE: Final = ("kv_scope", "workspace")

_REASONS: Final[Mapping[int, Mapping[AccessLevel, str]]] = MappingProxyType(
    {
        tier: MappingProxyType({level: f"{text}: {level.name}" for level in AccessLevel})
        for tier, text in {
            1: "Explicit rule",
            2: "Wildcard rule",
            3: "Any-resource rule",
            4: "Wildcard any-resource rule",
            5: "Glob pattern rule",
            6: "Rule own",
        }.items()
    }
)
_WILDCARD_SUBJECTS: Final[Mapping[str, str]] = MappingProxyType(
    {principal_type: f"{WILDCARD}:{name}" for principal_type, name in WILDCARDS.items()}
)


class Verdict(NamedTuple):
    """The level that the ladder gives; a tuple, since many are made."""

    level: AccessLevel
    tier: int
    rule_id: str
    """The rule that decided; "" for a fallback and where nothing applies."""
    via: str
    """The group or role ("group:x") by which the rule applies; "" if it names the principal."""
    reason: str
    until_ms: int
    """From this moment the verdict may differ, by expiry alone; 0: it cannot."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """A rule, or the fallback, that matches a question, whether or not it decides."""

    subject: str
    rule_id: str
    level: AccessLevel
    tier: int
    resource: str
    """The resource as the rule has it, "type:id" or a pattern; the category of a fallback."""
    expired: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that a verdict rests on: subjects, the nearest first, and rules by tier."""

    subjects: tuple[str, ...]
    contributions: tuple[Contribution, ...]
    verdict: Verdict


class _Subjects:
    """A principal with all that it is in, from `since_ms` until before `until_ms`."""

    __slots__ = ("buckets", "reached", "since_ms", "text", "typed", "types", "until_ms", "version", "wildcard")

    def __init__(self, principal_type: str, text: str, now_ms: int) -> None:
        self.text = text
        self.wildcard = _WILDCARD_SUBJECTS.get(principal_type)
        self.reached = {text: _NEVER}
        """By subject ("type:id"), the principal first: the moment until which it is in it."""
        self.typed = [(principal_type, text)]
        """The subjects, each behind its type."""
        self.types: Iterable[str] = (principal_type,)
        self.buckets: list[tuple[_Bucket[_PatternRule], str]] = []
        """Places of rules whose patterns these subjects may match, each with the subject."""
        self.version = -1
        """The index's number when `buckets` was filled."""
        self.since_ms = now_ms
        self.until_ms = _NEVER


class _PatternRule(NamedTuple):
    """A rule of tier 5, with its patterns; None for a side that is a name."""

    rule: Rule
    subject: Pattern | None
    resource: Pattern | None

    def matches(self, subject: str, resource: str) -> bool:
        """Whether the patterns match; the index has compared the names."""
        return (self.subject is None or self.subject.matches(subject)) and (
            self.resource is None or self.resource.matches(resource)
        )


_Found = tuple[Rule, str]
"""A rule, and the subject that it applies by."""
_Item = TypeVar("_Item")


class _Bucket(Generic[_Item]):
    """The values of one literal prefix, by another key."""

    __slots__ = ("items", "parent", "prefix")

    def __init__(self, prefix: str, parent: _Bucket[_Item] | None) -> None:
        self.prefix: Final = prefix
        self.parent = parent
        """The bucket of the longest other prefix that this one begins with."""
        self.items: dict[str, list[_Item]] = {}


class _Prefixes(Generic[_Item]):
    """Values by the literal prefix of a pattern; found by a text that it may match.

    The prefixes of a text come before it in their order. The last entry before the text is the
    longest one, or begins with it: so a search and the chain of parents find them all.
    """

    __slots__ = ("_buckets", "_prefixes", "_remembered")

    def __init__(self) -> None:
        self._prefixes: list[str] = []
        self._buckets: list[_Bucket[_Item]] = []
        self._remembered: dict[str, _Bucket[_Item] | None] = {}

    def __len__(self) -> int:
        return len(self._prefixes)

    def longest(self, text: str) -> _Bucket[_Item] | None:
        """Return the bucket of the longest prefix of a text; its parents are the others."""
        at = bisect_right(self._prefixes, text)
        bucket = self._buckets[at - 1] if at else None
        while bucket is not None and not text.startswith(bucket.prefix):
            bucket = bucket.parent
        return bucket

    def longest_again(self, text: str) -> _Bucket[_Item] | None:
        """Return what `longest` does, for a text that is looked up many times."""
        try:
            return self._remembered[text]
        except KeyError:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            bucket = self._remembered[text] = self.longest(text)
            return bucket

    def add(self, prefix: str, key: str, item: _Item) -> None:
        parent = self.longest(prefix)
        if parent is not None and parent.prefix == prefix:
            bucket = parent
        else:
            bucket = _Bucket(prefix, parent)
            at = bisect_right(self._prefixes, prefix)
            self._adopt(at, prefix, parent, bucket)
            self._prefixes.insert(at, prefix)
            self._buckets.insert(at, bucket)
            self._remembered.clear()
        bucket.items.setdefault(key, []).append(item)

    def discard(self, prefix: str, key: str, item: _Item) -> None:
        at = bisect_right(self._prefixes, prefix) - 1
        bucket = self._buckets[at]
        rest = [one for one in bucket.items[key] if one is not item]
        if rest:
            bucket.items[key] = rest
            return
        del bucket.items[key]
        if not bucket.items:
            del self._prefixes[at]
            del self._buckets[at]
            self._remembered.clear()
            self._adopt(at, prefix, bucket, bucket.parent)

    def _adopt(self, at: int, prefix: str, old: _Bucket[_Item] | None, new: _Bucket[_Item] | None) -> None:
        """Give a new parent to the entries from here on with this prefix and parent."""
        while at < len(self._prefixes) and self._prefixes[at].startswith(prefix):
            if self._buckets[at].parent is old:
                self._buckets[at].parent = new
            at += 1


_Places = tuple[dict[str, _Prefixes[_PatternRule]], dict[str, _Prefixes[_PatternRule]]]
"""By type: the prefixes of texts, and those of reversed texts."""


class _LockedBy(NamedTuple):
    lock: Lock
    pattern: Pattern


class AccessIndex:
    """All rules, memberships, fallbacks and locks; answers who may do what."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._rules: dict[str, Rule] = {}
        self._exact: dict[str, dict[str, Rule | dict[str, Rule]]] = {}
        """By type and name of a resource: its rules by subject; a single one without the dict."""
        self._any: dict[str, dict[str, Rule]] = {}
        """By type of resources: the rules on all of it, by subject."""
        self._pattern_rules: dict[tuple[str, str], _PatternRule] = {}
        """By subject and resource as they are written, names in one spelling."""
        self._by_resource: _Places = ({}, {})
        """By resource type and end; then by subject, or by its type if it is a pattern."""
        self._by_subject: _Places = ({}, {})
        """By principal type and end; then by resource, or by its type if it is a pattern."""
        self._version = 0
        """Grows with each change of the places of patterns."""
        self._key_rules: dict[str, Rule] = {}
        """The rules about keys, by id."""
        self._own: Rule | None = None
        self._fallbacks: dict[str, AccessLevel] = {}
        self._above: dict[str, dict[str, Member]] = {}
        """By member: what it is in."""
        self._members: dict[str, set[str]] = {}
        """By group or role: its members."""
        self._subjects: dict[str | tuple[str, tuple[str, ...]], _Subjects] = {}
        self._rules_of: dict[frozenset[str], list[Rule]] = {}
        """By subjects that were asked for: their rules."""
        self._locks: dict[str, _LockedBy] = {}
        self._locks_by_prefix: _Prefixes[_LockedBy] = _Prefixes()
        self._expiries: list[tuple[int, int, Rule | Member | Lock]] = []
        self._numbers = count()
        self._most_expiries = 64

    # Rules.

    def put_rule(self, rule: Rule) -> None:
        """Add a rule or replace the one with its id, or with its subject and resource."""
        rule = _sharing_texts(rule)
        subject = literal_of(rule.principal_id)
        resource = literal_of(rule.resource_id)
        patterns = None
        if subject is None or resource is None:
            patterns = _PatternRule(
                rule,
                compile_pattern(rule.subject) if subject is None else None,
                compile_pattern(rule.resource) if resource is None else None,
            )
        self.remove_rule(rule.rule_id)  # from here on nothing raises
        if rule.principal_type == WILDCARD and rule.principal_id == OWN_PRINCIPAL:
            if self._own is not None:
                self.remove_rule(self._own.rule_id)
            self._own = rule
        elif rule.resource_id == ANY and subject is not None:
            rules = self._any.setdefault(rule.resource_type, {})
            self._replace(rules, f"{rule.principal_type}:{subject}", rule)
        elif patterns is not None:
            self._put_pattern_rule(patterns)
        else:
            assert resource is not None
            self._put_exact(rule, f"{rule.principal_type}:{subject}", resource)
        self._rules[rule.rule_id] = rule
        self._rules_of.clear()
        if rule.resource_type == _KEY:
            self._key_rules[rule.rule_id] = rule
        self._note_expiry(rule)

    def _replace(self, rules: dict[str, Rule], subject: str, rule: Rule) -> None:
        known = rules.get(subject)
        if known is not None:
            del self._rules[known.rule_id]
            self._key_rules.pop(known.rule_id, None)
        rules[sys.intern(subject)] = rule

    def _put_exact(self, rule: Rule, subject: str, resource: str) -> None:
        by_id = self._exact.setdefault(rule.resource_type, {})
        entry = by_id.get(resource)
        if entry is None:
            by_id[resource] = rule
            return
        if isinstance(entry, Rule):
            entry = by_id[resource] = {sys.intern(_subject_of(entry)): entry}
        self._replace(entry, subject, rule)

    def _put_pattern_rule(self, one: _PatternRule) -> None:
        key = _key_of(one.rule)
        known = self._pattern_rules.get(key)
        if known is not None:
            self.remove_rule(known.rule.rule_id)
        self._pattern_rules[key] = one
        index, prefix, other = self._place(one)
        index.add(prefix, other, one)
        self._version += 1

    def _place(self, one: _PatternRule) -> tuple[_Prefixes[_PatternRule], str, str]:
        """Return where a rule of tier 5 is: at the longest literal end of its patterns."""
        rule, subject, resource = one.rule, one.subject, one.resource
        in_subject = _longest_end(subject, rule.principal_type)
        in_resource = _longest_end(resource, rule.resource_type)
        if in_subject > in_resource:
            _, end, text = in_subject
            places, of_type = self._by_subject[end], rule.principal_type
            key = _resource_of(rule) if resource is None else rule.resource_type
        else:
            _, end, text = in_resource
            places, of_type = self._by_resource[end], rule.resource_type
            key = sys.intern(_subject_of(rule)) if subject is None else rule.principal_type
        return places.setdefault(of_type, _Prefixes()), text, key

    def remove_rule(self, rule_id: str) -> None:
        """Remove a rule, if it is there."""
        rule = self._rules.pop(rule_id, None)
        if rule is None:
            return
        self._rules_of.clear()
        self._key_rules.pop(rule_id, None)
        if rule is self._own:
            self._own = None
            return
        one = self._pattern_rules.pop(_key_of(rule), None)
        if one is not None:
            index, prefix, other = self._place(one)
            index.discard(prefix, other, one)
            self._version += 1
        elif rule.resource_id == ANY:
            rules = self._any[rule.resource_type]
            del rules[_subject_of(rule)]
            if not rules:
                del self._any[rule.resource_type]
        else:
            by_id = self._exact[rule.resource_type]
            resource = literal_of(rule.resource_id)
            assert resource is not None
            entry = by_id[resource]
            if isinstance(entry, dict) and len(entry) > 1:
                del entry[_subject_of(rule)]
                return
            del by_id[resource]
            if not by_id:
                del self._exact[rule.resource_type]

    def rules(self) -> Iterable[Rule]:
        """Return all rules, expired ones too, in the order of their changes."""
        return self._rules.values()

    def rule(self, rule_id: str) -> Rule | None:
        """Return the rule with this id."""
        return self._rules.get(rule_id)

    @property
    def own_rule(self) -> Rule | None:
        """The rule "own"."""
        return self._own

    def same_rule(self, rule: Rule) -> Rule | None:
        """Return the rule with the subject and resource of a normalised rule."""
        known = self._pattern_rules.get(_key_of(rule))
        if known is not None:
            return known.rule
        subject = literal_of(rule.principal_id)
        if subject is None:
            return None
        text = f"{rule.principal_type}:{subject}"
        if rule.resource_id == ANY:
            return self._any.get(rule.resource_type, {}).get(text)
        if rule.principal_type == WILDCARD and rule.principal_id == OWN_PRINCIPAL:
            return self._own
        entry = self._exact.get(rule.resource_type, {}).get(literal_of(rule.resource_id) or "")
        if isinstance(entry, Rule):
            return entry if _subject_of(entry) == text else None
        return None if entry is None else entry.get(text)

    def rules_of(self, subjects: Iterable[str]) -> list[Rule]:
        """Return the rules of these subjects ("type:id"), by names or by patterns.

        Expired ones too. Its cost grows with the number of all rules, half a microsecond for each,
        so the answers are kept until rules change.
        """
        key = frozenset(subjects)
        known = self._rules_of.get(key)
        if known is None:
            if len(self._rules_of) >= MAX_ASKED:
                self._rules_of.clear()
            known = self._rules_of[key] = self._find_rules_of(key)
        return list(known)

    def _find_rules_of(self, subjects: Iterable[str]) -> list[Rule]:
        ids: dict[str, set[str]] = defaultdict(set)
        texts: dict[str, list[str]] = defaultdict(list)
        for text in subjects:
            of_type, _, name = text.partition(":")
            ids[of_type].add(escape(name))
            texts[of_type].append(text)
        nothing: frozenset[str] = frozenset()
        found = [rule for rule in self._rules.values() if rule.principal_id in ids.get(rule.principal_type, nothing)]
        for one in self._pattern_rules.values():
            pattern = one.subject
            if pattern is not None and any(map(pattern.matches, texts.get(one.rule.principal_type, ()))):
                found.append(one.rule)
        return found

    def may_have_key_rules(
        self, principal_type: str, principal_id: str, now_ms: int, groups: tuple[str, ...] = ()
    ) -> bool:
        """Whether a rule about some key may apply to a principal: if not, none does.

        The answer holds until rules or memberships change.
        """
        if len(self._key_rules) > MAX_KEY_RULES:
            return True
        subjects = self._subjects_of(principal_type, principal_id, now_ms, groups)
        for rule in self._key_rules.values():
            if rule.principal_type == WILDCARD:
                if rule.subject == subjects.wildcard:
                    return True
            elif (literal := literal_of(rule.principal_id)) is not None:
                if f"{rule.principal_type}:{literal}" in subjects.reached:
                    return True
            elif rule.principal_type in subjects.types:
                pattern = self._pattern_rules[_key_of(rule)].subject
                if pattern is None or any(pattern.matches(one) for one in subjects.reached):
                    return True
        return False

    # Memberships.

    def put_membership(self, member: Member) -> None:
        """Add a membership or replace the one of the same member."""
        self._above.setdefault(sys.intern(member.member), {})[sys.intern(member.container)] = member
        self._members.setdefault(sys.intern(member.container), set()).add(sys.intern(member.member))
        self.forget_subjects()
        self._note_expiry(member)

    def remove_membership(self, kind: str, name: str, member_type: str, member_id: str) -> None:
        """Remove a membership, if it is there."""
        self._remove_edge(f"{member_type}:{member_id}", f"{kind}:{name}")

    def _remove_edge(self, member: str, container: str) -> None:
        if self._above.get(member, {}).pop(container, None) is None:
            return
        if not self._above[member]:
            del self._above[member]
        self._members[container].discard(member)
        if not self._members[container]:
            del self._members[container]
        self.forget_subjects()

    def drop_group(self, name: str) -> None:
        """Remove a group's rules, its members and its memberships."""
        self._drop(GROUP, name)

    def drop_role(self, name: str) -> None:
        """Remove a role's rules, its members and its memberships."""
        self._drop(ROLE, name)

    def _drop(self, kind: str, name: str) -> None:
        text = f"{kind}:{name}"
        for rule in [one for one in self._rules.values() if one.principal_type == kind]:
            if literal_of(rule.principal_id) == name:
                self.remove_rule(rule.rule_id)
        for member in list(self._members.get(text, ())):
            self._remove_edge(member, text)
        for container in list(self._above.get(text, ())):
            self._remove_edge(text, container)

    def memberships(self) -> Iterator[Member]:
        """Yield all memberships, expired ones too."""
        for members in self._above.values():
            yield from members.values()

    def memberships_of(self, member: str) -> Iterable[Member]:
        """Return what a principal, group or role ("type:id") is directly in, until when."""
        return self._above.get(member, {}).values()

    def membership(self, member: str, container: str) -> Member | None:
        """Return the membership of one in a group or role, both as "type:id"."""
        return self._above.get(member, {}).get(container)

    def subjects(self, principal_type: str, principal_id: str, now_ms: int) -> tuple[str, ...]:
        """Return the principal, and all groups and roles that it is in, as "type:id"."""
        return tuple(self._subjects_of(principal_type, principal_id, now_ms).reached)

    def forget_subjects(self) -> None:
        """Look up the groups of all principals anew."""
        self._subjects.clear()

    def _subjects_of(
        self, principal_type: str, principal_id: str, now_ms: int, groups: tuple[str, ...] = ()
    ) -> _Subjects:
        text = f"{principal_type}:{principal_id}"
        key = (text, groups) if groups else text
        known = self._subjects.get(key)
        if known is not None and known.since_ms <= now_ms < known.until_ms:
            return known
        found = _Subjects(principal_type, text, now_ms)
        for name in groups:
            found.reached[f"{GROUP}:{name}"] = _NEVER
            found.typed.append((GROUP, f"{GROUP}:{name}"))
        if groups or text in self._above:
            self._reach(found, now_ms)
            if len(self._subjects) >= MAX_REMEMBERED:
                self._subjects.clear()
            self._subjects[key] = found
        return found

    def _reach(self, subjects: _Subjects, now_ms: int) -> None:
        """Fill in what the principal is in and until when.

        Of several chains to a group, the one that lasts longest counts.
        """
        reached = subjects.reached
        latest = dict(reached)
        for _ in range(MAX_DEPTH):
            further: dict[str, int] = {}
            for one, mine_ms in latest.items():
                above = self._above.get(one)
                if above is None:
                    continue
                for container, member in above.items():
                    until_ms = mine_ms
                    if member.expires_ms:
                        if member.expires_ms <= now_ms:
                            continue
                        subjects.until_ms = min(subjects.until_ms, member.expires_ms)
                        until_ms = min(mine_ms, member.expires_ms)
                    known_ms = reached.get(container)
                    if known_ms is None:
                        subjects.typed.append((member.kind, container))
                    elif known_ms >= until_ms:
                        continue
                    reached[container] = further[container] = until_ms
            if not further:
                break
            latest = further
        subjects.types = {one for one, _ in subjects.typed}

    # Fallbacks and locks.

    def set_fallback(self, category: str, level: AccessLevel | None) -> None:
        """Set the level of a category, "agent_workspace"; None removes it."""
        if level is None:
            self._fallbacks.pop(category, None)
        else:
            self._fallbacks[category] = level

    def fallbacks(self) -> Mapping[str, AccessLevel]:
        """Return the levels of all categories."""
        return self._fallbacks

    def put_lock(self, lock: Lock) -> None:
        """Add a lock or replace the one with its id."""
        self.remove_lock(lock.lock_id)
        one = self._locks[lock.lock_id] = _LockedBy(lock, compile_pattern(lock.pattern, crosses_slash=True))
        self._locks_by_prefix.add(one.pattern.prefix, "", one)
        self._note_expiry(lock)

    def remove_lock(self, lock_id: str) -> None:
        """Remove a lock, if it is there."""
        one = self._locks.pop(lock_id, None)
        if one is not None:
            self._locks_by_prefix.discard(one.pattern.prefix, "", one)

    @property
    def has_locks(self) -> bool:
        """Whether there is any lock."""
        return bool(self._locks)

    def locks(self) -> Iterator[Lock]:
        """Yield all locks, expired ones too."""
        return (one.lock for one in self._locks.values())

    def locked(self, principal_type: str, principal_id: str, identity_text: str, now_ms: int) -> Lock | None:
        """Return the lock on a principal that lasts longest, or None.

        The lock's pattern matches the identity or "type:id".
        """
        if not self._locks:
            return None
        found: Lock | None = None
        for text in (identity_text, f"{principal_type}:{principal_id}"):
            bucket = self._locks_by_prefix.longest(text)
            while bucket is not None:
                for lock, pattern in bucket.items[""]:
                    if lock.is_live(now_ms) and pattern.matches(text) and (found is None or _lasts_longer(lock, found)):
                        found = lock
                bucket = bucket.parent
        return found

    # Expiry.

    def _note_expiry(self, record: Rule | Member | Lock) -> None:
        if not record.expires_ms:
            return
        if len(self._expiries) >= self._most_expiries:
            self._expiries = [one for one in self._expiries if self._is_current(one[2])]
            heapq.heapify(self._expiries)
            self._most_expiries = 2 * len(self._expiries) + 64
        heapq.heappush(self._expiries, (record.expires_ms, next(self._numbers), record))

    def _is_current(self, record: Rule | Member | Lock) -> bool:
        if isinstance(record, Rule):
            return self._rules.get(record.rule_id) is record
        if isinstance(record, Member):
            return self._above.get(record.member, {}).get(record.container) is record
        known = self._locks.get(record.lock_id)
        return known is not None and known.lock is record

    def next_expiry_ms(self, now_ms: int) -> int:
        """Return the next moment at which a rule, membership or lock ends; 0: none.

        Moments that have passed are forgotten: ask with a clock that goes forward.
        """
        while self._expiries:
            expires_ms, _, record = self._expiries[0]
            if expires_ms > now_ms and self._is_current(record):
                return expires_ms
            heapq.heappop(self._expiries)
        return 0

    # Questions.

    def decide(
        self,
        principal_type: str,
        principal_id: str,
        resource_type: str,
        resource_id: str,
        now_ms: int,
        own_workspace: str = "",
        groups: tuple[str, ...] = (),
    ) -> Verdict:
        """Return the level of a principal on a resource. Never raises, never waits.

        `own_workspace` is the workspace of the participant, for the rule "own"; for `kv_scope`
        only where the question is about that workspace. `groups`: names of groups that it is in,
        beside its memberships.
        """
        subjects = self._subjects_of(principal_type, principal_id, now_ms, groups)
        wildcard = subjects.wildcard
        by_id = self._exact.get(resource_type)
        if by_id is not None:
            entry = by_id.get(resource_id)
            if entry is not None:
                rules = {_subject_of(entry): entry} if isinstance(entry, Rule) else entry
                found = _highest(rules, subjects, now_ms)
                if found is not None:
                    return _verdict(1, found, subjects)
                if wildcard is not None and (rule := _live(rules, wildcard, now_ms)) is not None:
                    return _verdict(2, (rule, wildcard), subjects)
        of_type = self._any.get(resource_type)
        if of_type is not None:
            found = _highest(of_type, subjects, now_ms)
            if found is not None:
                return _verdict(3, found, subjects)
            if wildcard is not None and (rule := _live(of_type, wildcard, now_ms)) is not None:
                return _verdict(4, (rule, wildcard), subjects)
        if self._pattern_rules:
            found = self._highest_pattern(subjects, resource_type, f"{resource_type}:{resource_id}", now_ms)
            if found is not None:
                return _verdict(5, found, subjects)
        return self._fallback(principal_type, resource_type, resource_id, now_ms, own_workspace)

    def _highest_pattern(self, subjects: _Subjects, resource_type: str, resource: str, now_ms: int) -> _Found | None:
        best: Rule | None = None
        best_text = ""
        for one, text in self._candidates(subjects, resource_type, resource):
            rule = one.rule
            if rule.expires_ms and rule.expires_ms <= now_ms:
                continue
            if best is not None and (
                rule.level < best.level
                or (rule.level == best.level and _order(rule, text, subjects) > _order(best, best_text, subjects))
            ):
                continue
            if one.matches(text, resource):
                best, best_text = rule, text
        return None if best is None else (best, best_text)

    def _candidates(self, subjects: _Subjects, resource_type: str, resource: str) -> list[tuple[_PatternRule, str]]:
        """Return the rules of tier 5 that may match, each with the subject in question.

        Names are compared here, and some prefixes; the patterns remain to be matched.
        """
        found: list[tuple[_PatternRule, str]] = []
        reached = subjects.reached
        for end, places in enumerate(self._by_resource):
            prefixes = places.get(resource_type)
            bucket = prefixes.longest(resource[::-1] if end else resource) if prefixes is not None else None
            while bucket is not None:
                items = bucket.items
                for text in reached if len(reached) <= len(items) else [one for one in items if one in reached]:
                    if text in items:
                        found += [(one, text) for one in items[text]]
                for principal_type in subjects.types:
                    if principal_type in items:
                        texts = [text for of_type, text in subjects.typed if of_type == principal_type]
                        found += [(one, text) for one in items[principal_type] for text in texts]
                bucket = bucket.parent
        if subjects.version != self._version:
            self._find_buckets(subjects)
        for place, text in subjects.buckets:
            items = place.items
            if resource in items:
                found += [(one, text) for one in items[resource]]
            if resource_type in items:
                found += [(one, text) for one in items[resource_type]]
        return found

    def _find_buckets(self, subjects: _Subjects) -> None:
        found = subjects.buckets
        found.clear()
        for end, places in enumerate(self._by_subject):
            for principal_type, text in subjects.typed if places else ():
                prefixes = places.get(principal_type)
                bucket = prefixes.longest_again(text[::-1] if end else text) if prefixes is not None else None
                while bucket is not None:
                    found.append((bucket, text))
                    bucket = bucket.parent
        subjects.version = self._version

    def _fallback(
        self, principal_type: str, resource_type: str, resource_id: str, now_ms: int, own_workspace: str
    ) -> Verdict:
        category = f"{principal_type}_{resource_type}"
        level = self._fallbacks.get(category)
        own = self._own
        if (
            own is not None
            and own_workspace
            and own.is_live(now_ms)
            and (level is None or own.level > level)
            and _is_own(resource_type, resource_id, own_workspace)
        ):
            return Verdict(own.level, 6, own.rule_id, "", _REASONS[6][own.level], own.expires_ms)
        if level is None:
            return Verdict(AccessLevel.NONE, 6, "", "", f"No rule or fallback policy for {category}", 0)
        return Verdict(level, 6, "", "", f"Fallback policy for {category}: {level.name}", 0)

    def explain(
        self,
        principal_type: str,
        principal_id: str,
        resource_type: str,
        resource_id: str,
        now_ms: int,
        own_workspace: str = "",
        groups: tuple[str, ...] = (),
    ) -> Explanation:
        """Return the verdict with all rules that match the question, expired ones too."""
        subjects = self._subjects_of(principal_type, principal_id, now_ms, groups)
        found: list[Contribution] = []

        def add(tier: int, subject: str, rule: Rule) -> None:
            found.append(Contribution(subject, rule.rule_id, rule.level, tier, rule.resource, not rule.is_live(now_ms)))

        entry = self._exact.get(resource_type, {}).get(resource_id, {})
        exact = {_subject_of(entry): entry} if isinstance(entry, Rule) else entry
        for tier, rules in ((1, exact), (3, self._any.get(resource_type, {}))):
            for text in subjects.reached:
                if text in rules:
                    add(tier, text, rules[text])
            if subjects.wildcard in rules:
                add(tier + 1, subjects.wildcard, rules[subjects.wildcard])
        resource = f"{resource_type}:{resource_id}"
        for one, text in self._candidates(subjects, resource_type, resource):
            if one.matches(text, resource):
                add(5, text, one.rule)
        if self._own is not None and _is_own(resource_type, resource_id, own_workspace):
            add(6, self._own.subject, self._own)
        category = f"{principal_type}_{resource_type}"
        if category in self._fallbacks:
            found.append(Contribution(f"fallback:{category}", "", self._fallbacks[category], 6, category, False))
        found.sort(key=lambda one: (one.tier, -one.level, one.subject != subjects.text, one.subject, one.rule_id))
        verdict = self.decide(principal_type, principal_id, resource_type, resource_id, now_ms, own_workspace, groups)
        return Explanation(tuple(subjects.reached), tuple(found), verdict)


def _sharing_texts(rule: Rule) -> Rule:
    """Return the rule with the texts that others have too: half of their memory."""
    share = sys.intern
    return Rule(
        rule.rule_id,
        share(rule.principal_type),
        share(rule.principal_id),
        share(rule.resource_type),
        share(rule.resource_id),
        rule.level,
        share(rule.granted_by),
        rule.granted_ms,
        rule.expires_ms,
        rule.reason,
    )


def _subject_of(rule: Rule) -> str:
    """Return the subject of a rule as "type:name"; its id is no pattern."""
    return f"{rule.principal_type}:{literal_of(rule.principal_id)}"


def _resource_of(rule: Rule) -> str:
    return f"{rule.resource_type}:{literal_of(rule.resource_id)}"


def _longest_end(pattern: Pattern | None, of_type: str) -> tuple[int, int, str]:
    """Return the longer literal end: its length, which end it is, and its text.

    0 is the beginning, where the type does not count; 1 the end, whose text is reversed.
    """
    if pattern is None:
        return -1, 0, ""
    size = len(pattern.prefix) - len(of_type) - 1
    if len(pattern.suffix) > size:
        return len(pattern.suffix), 1, pattern.suffix[::-1]
    return size, 0, pattern.prefix


def _key_of(rule: Rule) -> tuple[str, str]:
    return (
        f"{rule.principal_type}:{respelt(rule.principal_id)}",
        f"{rule.resource_type}:{respelt(rule.resource_id)}",
    )


def _lasts_longer(lock: Lock, other: Lock) -> bool:
    return (-(lock.expires_ms or _NEVER), lock.lock_id) < (-(other.expires_ms or _NEVER), other.lock_id)


def _is_own(resource_type: str, resource_id: str, own_workspace: str) -> bool:
    """Whether the rule "own" is about this resource, for one in the workspace."""
    if not own_workspace:
        return False
    if resource_type == "workspace":
        return resource_id == own_workspace
    return (resource_type, resource_id) == _KV_SCOPE_OF_WORKSPACE


def _order(rule: Rule, text: str, subjects: _Subjects) -> tuple[bool, str, str]:
    """The order of rules with one level: the principal's own first; it is named."""
    return text != subjects.text, text, rule.rule_id


def _live(rules: Mapping[str, Rule], text: str, now_ms: int) -> Rule | None:
    rule = rules.get(text)
    return None if rule is None or (rule.expires_ms and rule.expires_ms <= now_ms) else rule


def _highest(rules: Mapping[str, Rule], subjects: _Subjects, now_ms: int) -> _Found | None:
    """Return the live rule with the highest level of these subjects, and its subject."""
    reached = subjects.reached
    best: Rule | None = None
    best_text = ""
    texts: Iterable[str] = reached if len(reached) <= len(rules) else [one for one in rules if one in reached]
    for text in texts:
        rule = rules.get(text)
        if rule is None or (rule.expires_ms and rule.expires_ms <= now_ms):
            continue
        if (
            best is None
            or rule.level > best.level
            or (rule.level == best.level and _order(rule, text, subjects) < _order(best, best_text, subjects))
        ):
            best, best_text = rule, text
    return None if best is None else (best, best_text)


def _verdict(tier: int, found: _Found, subjects: _Subjects) -> Verdict:
    rule, text = found
    level = rule.level
    reason = _REASONS[tier][level]
    until_ms = subjects.reached.get(text, _NEVER)
    if rule.expires_ms and rule.expires_ms < until_ms:
        until_ms = rule.expires_ms
    via = ""
    if text != subjects.text and tier not in {2, 4}:
        via = text
        reason = f"{reason} (via {via})"
    return Verdict(level, tier, rule.rule_id, via, reason, 0 if until_ms == _NEVER else until_ms)
