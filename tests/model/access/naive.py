"""The tier table and path.Match, written straight from their descriptions.

No index, no order of evaluation but the table's: what the tests compare the real ones with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import MAX_DEPTH, WILDCARDS, Lock, Member, Rule


def matches(pattern: str, text: str) -> bool:
    """Go's documentation, word by word: tries every text for every star."""
    if not pattern:
        return not text
    one, rest = pattern[0], pattern[1:]
    if one == "*":
        return matches(rest, text) or (text[:1] not in {"", "/"} and matches(pattern, text[1:]))
    if not text:
        return False
    if one == "?":
        return text[0] != "/" and matches(rest, text[1:])
    if one == "\\":
        return text[0] == rest[0] and matches(rest[1:], text[1:])
    if one == "[":
        has, rest = character_class(rest)
        return has(text[0]) and matches(rest, text[1:])
    return text[0] == one and matches(rest, text[1:])


def character_class(rest: str) -> tuple[Callable[[str], bool], str]:
    """Return whether a class has a character, and the pattern behind the class."""
    body = re.match(r"(\^?)((?:(?:\\.|[^\\\-\]])(?:-(?:\\.|[^\\\-\]]))?)+)\]", rest, re.DOTALL)
    assert body is not None, rest
    ranges = [
        (low[-1], (high or low)[-1])
        for low, high in re.findall(r"(\\.|[^\\\-\]])(?:-(\\.|[^\\\-\]]))?", body[2], re.DOTALL)
    ]
    negated = bool(body[1])
    return (lambda one: any(low <= one <= high for low, high in ranges) is not negated), rest[body.end() :]


def is_pattern(text: str) -> bool:
    return re.search(r"[*?\[]", re.sub(r"\\.", "", text)) is not None


def name(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def key(rule: Rule) -> tuple[str, bool, str, bool]:
    """What two rules have in common that are one: spellings of one name do not differ."""
    subject, resource = is_pattern(rule.principal_id), is_pattern(rule.resource_id)
    return (
        rule.subject if subject else name(rule.subject),
        subject,
        rule.resource if resource else name(rule.resource),
        resource,
    )


@dataclass(frozen=True)
class Question:
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    own_workspace: str = ""
    groups: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, str, str, str]:
        return self.principal_type, self.principal_id, self.resource_type, self.resource_id


@dataclass(frozen=True)
class Answer:
    level: AccessLevel
    tier: int
    rule_id: str
    via: str


@dataclass
class NaiveAccess:
    """What was put, in plain lists; every question looks at all of it."""

    rules: list[Rule] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    fallbacks: dict[str, AccessLevel] = field(default_factory=dict)
    locks: list[Lock] = field(default_factory=list)

    def put_rule(self, new: Rule) -> None:
        self.rules = [one for one in self.rules if one.rule_id != new.rule_id and key(one) != key(new)] + [new]

    def remove_rule(self, rule_id: str) -> None:
        self.rules = [one for one in self.rules if one.rule_id != rule_id]

    def put_membership(self, new: Member) -> None:
        self.remove_membership(new.kind, new.name, new.member_type, new.member_id)
        self.members.append(new)

    def remove_membership(self, *wanted: str) -> None:
        self.members = [one for one in self.members if (one.kind, one.name, one.member_type, one.member_id) != wanted]

    def drop(self, kind: str, dropped: str) -> None:
        self.rules = [
            one
            for one in self.rules
            if one.principal_type != kind or is_pattern(one.principal_id) or name(one.principal_id) != dropped
        ]
        self.members = [
            one
            for one in self.members
            if (kind, dropped) not in {(one.kind, one.name), (one.member_type, one.member_id)}
        ]

    def put_lock(self, new: Lock) -> None:
        self.remove_lock(new.lock_id)
        self.locks.append(new)

    def remove_lock(self, lock_id: str) -> None:
        self.locks = [one for one in self.locks if one.lock_id != lock_id]

    def subjects(self, text: str, now_ms: int, groups: tuple[str, ...] = ()) -> set[str]:
        found = {text} | {f"group:{one}" for one in groups}
        latest = set(found)
        for _ in range(MAX_DEPTH):
            latest = {one.container for one in self.members if one.member in latest and live(one, now_ms)}
            found |= latest
        return found

    def matching(self, question: Question, now_ms: int) -> list[tuple[int, str, Rule]]:
        """Return tier, subject and rule of all that match, expired rules too."""
        found: list[tuple[int, str, Rule]] = []
        resource = f"{question.resource_type}:{question.resource_id}"
        subjects = self.subjects(f"{question.principal_type}:{question.principal_id}", now_ms, question.groups)
        wildcard = f"wildcard:{WILDCARDS.get(question.principal_type)}"
        for rule in self.rules:
            subject_is_pattern, resource_is_pattern = is_pattern(rule.principal_id), is_pattern(rule.resource_id)
            subject = f"{rule.principal_type}:{name(rule.principal_id)}"
            is_exact = not resource_is_pattern and name(rule.resource) == resource
            is_any = rule.resource_id == "*" and rule.resource_type == question.resource_type
            if not subject_is_pattern and (is_exact or is_any):
                if subject in subjects:
                    found.append((1 if is_exact else 3, subject, rule))
                elif subject == wildcard:
                    found.append((2 if is_exact else 4, subject, rule))
            elif (subject_is_pattern or resource_is_pattern) and rule.principal_type != "wildcard":
                if matches(rule.resource, resource):
                    found += [(5, one, rule) for one in subjects if matches(rule.subject, one)]
            elif (
                subject == "wildcard:_own_workspace"
                and question.own_workspace
                and resource in {f"workspace:{question.own_workspace}", "kv_scope:workspace"}
            ):
                found.append((6, subject, rule))
        return found

    def answer(self, question: Question, now_ms: int) -> Answer:
        asked = f"{question.principal_type}:{question.principal_id}"
        found = [one for one in self.matching(question, now_ms) if live(one[2], now_ms)]
        for tier in range(1, 6):
            here = [(rule, subject) for at, subject, rule in found if at == tier]
            if here:
                rule, subject = min(here, key=lambda one: (-one[0].level, one[1] != asked, one[1], one[0].rule_id))
                return Answer(rule.level, tier, rule.rule_id, subject if tier in {1, 3, 5} and subject != asked else "")
        fallback = self.fallbacks.get(f"{question.principal_type}_{question.resource_type}")
        own = [rule for tier, _, rule in found if tier == 6 and (fallback is None or rule.level > fallback)]
        if own:
            return Answer(own[0].level, 6, own[0].rule_id, "")
        return Answer(fallback or AccessLevel.NONE, 6, "", "")

    def lock_ids(self, principal: str, identity_text: str, now_ms: int) -> set[str]:
        def bars(lock: Lock, text: str) -> bool:
            return matches(lock.pattern.replace("/", "s"), text.replace("/", "s"))

        return {
            one.lock_id
            for one in self.locks
            if live(one, now_ms) and (bars(one, principal) or bars(one, identity_text))
        }

    def next_expiry_ms(self, now_ms: int) -> int:
        every: Iterable[Rule | Member | Lock] = [*self.rules, *self.members, *self.locks]
        return min((one.expires_ms for one in every if one.expires_ms > now_ms), default=0)


def live(record: Rule | Member | Lock, now_ms: int) -> bool:
    return record.expires_ms == 0 or record.expires_ms > now_ms
