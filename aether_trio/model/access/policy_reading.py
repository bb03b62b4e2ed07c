"""Reads a policy from a document with line numbers, and names all its mistakes.

    version: 1                  # of this form
    base: closed                # what a new gateway has: closed (default), open or none
    names:                      # short names for principals, for this file
      ann: ag::red::ann::1
    roles:                      # and groups: alike
      deployers:
        description: may deploy
        members: [user:eve, group:leads, {member: ann, expires: 2027-01-31}]
    rules:                      # PRINCIPAL LEVEL RESOURCE
      - group:readers read workspace:blue
      - {principal: ann, level: readwrite, resource: workspace:blue, expires: 2027-01-31, reason: x}
    fallbacks:
      agent_workspace: read
    locks:
      - ag::prod::*
      - {pattern: user:mallory, reason: left, expires: 2027-01-31}
    tests:                      # PRINCIPAL may [not] LEVEL RESOURCE
      - ann may readwrite workspace:blue
      - {test: bob may not read workspace:red, at: 2027-02-01}

A document is PolicyNodes, as a reader of YAML makes them. Times are absolute, so the file means the
same whenever it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias, TypeVar

from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import PatternError, escape, literal_of
from aether_trio.model.access.policy import (
    BASES,
    SECTIONS,
    VERSION,
    Policy,
    PolicyGroup,
    PolicyLock,
    PolicyMember,
    PolicyRule,
    PolicyTest,
    rule_key,
)
from aether_trio.model.access.rules import (
    GROUP,
    MAX_NAME_BYTES,
    MEMBER_TYPES,
    RESOURCE_TYPES,
    ROLE,
    WILDCARD,
    Lock,
    Member,
    Rule,
    RuleError,
    checked_name,
    normalised,
    normalised_lock,
    normalised_member,
)
from aether_trio.model.access.spellings import (
    SpellingError,
    nearest_hint,
    parse_level,
    parse_moment,
    parse_principal,
    parse_resource,
)
from aether_trio.model.text import TextError, check_text, shown

T = TypeVar("T")

MAX_DESCRIPTION_BYTES: Final = 1024
MAX_TESTS: Final = 10_000
_TOP: Final = ("version", "base", "names", *SECTIONS)
_TEST_FORM: Final = "a test is PRINCIPAL may [not] LEVEL RESOURCE, such as: ann may readwrite workspace:blue"
_RULE_FORM: Final = "a rule is PRINCIPAL LEVEL RESOURCE, such as: group:readers read workspace:blue"


@dataclass(frozen=True, slots=True)
class PolicyNode:
    """A part of a document: a scalar, a list of items or a mapping, and its line."""

    line: int
    scalar: str | int | float | bool | None = None
    items: tuple[PolicyNode, ...] | None = None
    pairs: tuple[tuple[PolicyNode, PolicyNode], ...] | None = None

    @property
    def what(self) -> str:
        """What kind of node it is, for errors."""
        if self.items is not None:
            return "a list"
        if self.pairs is not None:
            return "a mapping"
        return "nothing" if self.scalar is None else shown(self.scalar)


class PolicyProblem(NamedTuple):
    """Something that is wrong with a policy, and the line; 0: the whole."""

    line: int
    text: str


class PolicyError(ValueError):
    """A document is no policy; `problems` are all that were found, by line."""

    def __init__(self, problems: list[PolicyProblem]) -> None:
        self.problems = sorted(problems)
        super().__init__("; ".join(f"line {one.line}: {one.text}" for one in self.problems))


_Fields: TypeAlias = Mapping[str, PolicyNode]


def read_policy(root: PolicyNode) -> Policy:
    """Return the policy of a document. Raises PolicyError with every problem."""
    reader = _Reader()
    policy = reader.policy(root)
    if reader.problems:
        raise PolicyError(reader.problems)
    return policy


class _Reader:
    """Reads one document; collects its problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[PolicyProblem] = []
        self._names: dict[str, tuple[str, str]] = {}

    def policy(self, root: PolicyNode) -> Policy:
        fields = self._fields(root, _TOP, "the policy")
        self._version(root, fields.get("version"))
        base = self._base(fields.get("base"))
        self._read_names(fields.get("names"))
        groups: list[PolicyGroup] = []
        members: dict[tuple[str, str, str, str], PolicyMember] = {}
        for section, kind in (("roles", ROLE), ("groups", GROUP)):
            for name, node in self._entries(fields.get(section), section):
                self._group(kind, name, node, groups, members)
        rules: dict[tuple[str, str, str, str], PolicyRule] = {}
        for node in self._items(fields.get("rules"), "rules"):
            rule = self._try(node, self._rule)
            if rule is None:
                continue
            if rule.key in rules:
                self._problem(node, f"this rule is given in line {rules[rule.key].line} already, for the same resource")
            rules[rule.key] = rule
        fallbacks = [self._fallback(name, node) for name, node in self._entries(fields.get("fallbacks"), "fallbacks")]
        locks: dict[str, PolicyLock] = {}
        for node in self._items(fields.get("locks"), "locks"):
            lock = self._try(node, self._lock)
            if lock is not None and locks.setdefault(lock.pattern, lock) is not lock:
                self._problem(node, f"the lock on {lock.pattern} is given twice")
        tests = [self._try(node, self._test) for node in self._items(fields.get("tests"), "tests")]
        if len(tests) > MAX_TESTS:
            self._problem(root, f"there are {len(tests)} tests; at most {MAX_TESTS} are allowed")
        return Policy(
            base,
            tuple(one for one in SECTIONS if one in fields),
            tuple(groups),
            tuple(members.values()),
            tuple(rules.values()),
            tuple(one for one in fallbacks if one is not None),
            tuple(locks.values()),
            tuple(one for one in tests if one is not None),
        )

    # -- parts -------------------------------------------------------------------------------------

    def _version(self, root: PolicyNode, node: PolicyNode | None) -> None:
        if node is None and (root.items is not None or root.scalar is not None):
            return  # no mapping at all
        if node is None:
            self._problem(root, f"the policy has no version; write `version: {VERSION}`")
        elif node.scalar != VERSION or node.scalar is True:
            self._problem(node, f"unknown version {node.what}; this gateway reads version {VERSION}")

    def _base(self, node: PolicyNode | None) -> str:
        if node is None:
            return BASES[0]
        text = str(node.scalar)
        if text not in BASES:
            self._problem(node, f"unknown base {node.what}{nearest_hint(text, BASES)}; it is one of {', '.join(BASES)}")
            return BASES[0]
        return text

    def _read_names(self, node: PolicyNode | None) -> None:
        for name, value in self._entries(node, "names"):
            found = self._try(value, lambda one: parse_principal(self._text(one, "a principal")))
            if ":" in name.text or name.text.startswith("_"):
                self._problem(name.node, f"a short name has no ':' and does not begin with '_': {shown(name.text)}")
            elif found is not None:
                self._names[name.text] = found

    def _group(
        self,
        kind: str,
        name: PolicyKey,
        node: PolicyNode,
        groups: list[PolicyGroup],
        members: dict[tuple[str, str, str, str], PolicyMember],
    ) -> None:
        if node.items is not None:  # short for `members` alone
            fields: _Fields = {"members": node}
        elif node.scalar is None and node.pairs is None:
            fields = {}
        else:
            fields = self._fields(node, ("description", "members"), f"a {kind}")
        checked = self._try(name.node, lambda _: checked_name(kind, name.text))
        if checked is None:
            return
        description = ""
        if (given := fields.get("description")) is not None and given.scalar != "":
            description = self._try(given, self._description) or ""
        groups.append(PolicyGroup(kind, checked, description))
        for one in self._items(fields.get("members"), "members"):
            member = self._try(one, lambda item: self._member(kind, checked, item))
            if member is not None and members.setdefault(member[:4], member) is not member:
                self._problem(one, f"this member is in {kind} {checked} twice")

    def _description(self, node: PolicyNode) -> str:
        return check_text(self._text(node, "a description"), "the description", MAX_DESCRIPTION_BYTES, lines=True)

    def _member(self, kind: str, name: str, node: PolicyNode) -> PolicyMember:
        expires_ms = 0
        text = node
        if node.pairs is not None:
            fields = self._fields(node, ("member", "expires"), "a member")
            text = self._needed(node, fields, "member", "a member")
            expires_ms = self._moment(fields.get("expires"))
        member_type, member_id = self._principal(text)
        if member_type == WILDCARD:
            raise SpellingError(f"{member_id} cannot be a member; members are {', '.join(MEMBER_TYPES)}")
        member = normalised_member(Member(kind, name, member_type, member_id, expires_ms=expires_ms))
        return PolicyMember(kind, name, member.member_type, member.member_id, member.expires_ms)

    def _rule(self, node: PolicyNode) -> PolicyRule:
        expires_ms, reason = 0, ""
        if node.pairs is not None:
            fields = self._fields(node, ("principal", "level", "resource", "reason", "expires"), "a rule")
            principal = self._principal(self._needed(node, fields, "principal", "a rule"))
            level = self._level(self._needed(node, fields, "level", "a rule"))
            resource = parse_resource(self._text(self._needed(node, fields, "resource", "a rule"), "a resource"))
            expires_ms = self._moment(fields.get("expires"))
            if (given := fields.get("reason")) is not None and given.scalar != "":
                reason = self._text(given, "a reason")
        else:
            words = self._text(node, "a rule").split()
            if len(words) != 3:
                raise SpellingError(f"{shown(' '.join(words))}: {_RULE_FORM}")
            principal, level, resource = self._principal_of(words[0]), parse_level(words[1]), parse_resource(words[2])
        return _checked_rule(PolicyRule(*principal, *resource, level, expires_ms, reason, node.line))

    def _fallback(self, name: PolicyKey, node: PolicyNode) -> tuple[str, AccessLevel] | None:
        if not is_category(name.text):
            nearest = nearest_hint(name.text, CATEGORIES)
            self._problem(
                name.node,
                f"{shown(name.text)} is no category{nearest}: it is the type of a principal and of a resource",
            )
        level = self._try(node, self._level)
        return None if level is None else (name.text, level)

    def _lock(self, node: PolicyNode) -> PolicyLock:
        reason, expires_ms = "", 0
        text = node
        if node.pairs is not None:
            fields = self._fields(node, ("pattern", "reason", "expires"), "a lock")
            text = self._needed(node, fields, "pattern", "a lock")
            expires_ms = self._moment(fields.get("expires"))
            if (given := fields.get("reason")) is not None:
                reason = self._text(given, "a reason")
        pattern = self._text(text, "a pattern")
        if pattern in self._names:
            pattern = lock_pattern(*self._names[pattern])
        lock = normalised_lock(Lock("", pattern, reason, expires_ms=expires_ms))
        return PolicyLock(lock.pattern, lock.reason, lock.expires_ms)

    def _test(self, node: PolicyNode) -> PolicyTest:
        at_ms = 0
        text = node
        if node.pairs is not None:
            fields = self._fields(node, ("test", "at"), "a test")
            text = self._needed(node, fields, "test", "a test")
            at_ms = self._moment(fields.get("at"))
        words = self._text(text, "a test").split()
        allowed = "not" not in words[2:3]
        rest = words[2:] if allowed else words[3:]
        if words[1:2] != ["may"] or len(rest) != 2:
            raise SpellingError(f"{shown(' '.join(words))}: {_TEST_FORM}")
        level = parse_level(rest[0])
        if level is AccessLevel.NONE:
            raise SpellingError("a test asks for a level above none")
        principal_type, principal_id = named_principal(*_one(words[0], self._principal_of(words[0])))
        resource_type, resource_id = named_resource(*_one(rest[1], parse_resource(rest[1])))
        return PolicyTest(
            " ".join(words),
            principal_type,
            principal_id,
            resource_type,
            resource_id,
            level,
            allowed,
            at_ms,
            text.line,
        )

    # -- scalars -----------------------------------------------------------------------------------

    def _principal(self, node: PolicyNode) -> tuple[str, str]:
        return self._principal_of(self._text(node, "a principal"))

    def _principal_of(self, text: str) -> tuple[str, str]:
        if text in self._names:
            return self._names[text]
        try:
            return parse_principal(text)
        except SpellingError as error:
            if ":" in text or text.startswith("_"):
                raise
            hint = nearest_hint(text, tuple(self._names))
            if hint:
                raise SpellingError(f"{shown(text)} is not in `names`{hint}") from None
            raise SpellingError(f"{error}, or a short name that `names` has") from None

    def _level(self, node: PolicyNode) -> AccessLevel:
        if not isinstance(node.scalar, str | int) or isinstance(node.scalar, bool):
            raise SpellingError(f"a level is a name or number, not {node.what}")
        return parse_level(node.scalar)

    def _moment(self, node: PolicyNode | None) -> int:
        return 0 if node is None else parse_moment(self._text(node, "a time"))

    def _text(self, node: PolicyNode, what: str) -> str:
        if not isinstance(node.scalar, str) or not node.scalar:
            raise SpellingError(f"{what} is a text, not {node.what}")
        return node.scalar

    # -- lists and mappings ------------------------------------------------------------------------

    def _problem(self, node: PolicyNode, text: str) -> None:
        self.problems.append(PolicyProblem(node.line, text))

    def _try(self, node: PolicyNode, read: Callable[[PolicyNode], T]) -> T | None:
        try:
            return read(node)
        except (SpellingError, RuleError, TextError) as error:
            self._problem(node, str(error))
            return None

    def _needed(self, node: PolicyNode, fields: _Fields, name: str, what: str) -> PolicyNode:
        if name not in fields:
            raise SpellingError(f"{what} needs `{name}`")
        return fields[name]

    def _fields(self, node: PolicyNode, known: tuple[str, ...], what: str) -> _Fields:
        """Return the fields of a mapping; unknown and repeated ones are problems."""
        fields: dict[str, PolicyNode] = {}
        for name, value in self._entries(node, what):
            if name.text in known:
                fields[name.text] = value
            else:
                hint = nearest_hint(name.text, known) or f"; known are {', '.join(known)}"
                self._problem(name.node, f"unknown key {shown(name.text)} of {what}{hint}")
        return fields

    def _entries(self, node: PolicyNode | None, what: str) -> Iterator[tuple[PolicyKey, PolicyNode]]:
        """Yield the entries of a mapping; nothing for one that is absent or empty."""
        if node is None or (node.scalar is None and node.items is None and node.pairs is None):
            return
        if node.pairs is None:
            self._problem(node, f"{what} is a mapping, not {node.what}")
            return
        seen: set[str] = set()
        for key, value in node.pairs:
            if not isinstance(key.scalar, str):
                self._problem(key, f"a key of {what} is a text, not {key.what}")
            elif key.scalar in seen:
                self._problem(key, f"the key {shown(key.scalar)} is given twice; remove one")
            else:
                seen.add(key.scalar)
                yield PolicyKey(key.scalar, key), value

    def _items(self, node: PolicyNode | None, what: str) -> tuple[PolicyNode, ...]:
        if node is None or (node.scalar is None and node.items is None and node.pairs is None):
            return ()
        if node.items is None:
            self._problem(node, f"{what} is a list, not {node.what}")
            return ()
        return node.items


def _one(text: str, named: tuple[str, str]) -> tuple[str, str]:
    """Return what a test names, unless it may be several. Raises SpellingError."""
    try:
        several = named[0] == WILDCARD or literal_of(named[1]) is None
    except PatternError as error:
        raise SpellingError(str(error)) from None
    if several:
        raise SpellingError(f"a test is about one principal and one resource, and {shown(text)} may be several")
    return named[0], literal_of(named[1]) or ""


def checked_policy(policy: Policy) -> Policy:
    """Return a policy of another program as it is stored.

    Raises RuleError, TextError.
    """
    unknown = set(policy.sections) - set(SECTIONS)
    if policy.base not in BASES or unknown:
        raise RuleError("policy", f"unknown base {shown(policy.base)} or sections {sorted(map(shown, unknown))}")
    groups = []
    for kind, name, description in policy.groups:
        if kind not in {GROUP, ROLE}:
            raise RuleError("kind", f"unknown kind {shown(kind)} of a group")
        text = check_text(description, "the description", MAX_DESCRIPTION_BYTES, lines=True)
        groups.append(PolicyGroup(kind, checked_name(kind, name), text))
    members = []
    for one in policy.members:
        member = normalised_member(Member(*one[:4], expires_ms=one.expires_ms))
        members.append(PolicyMember(*one[:2], member.member_type, member.member_id, one.expires_ms))
    for category, _ in policy.fallbacks:
        if not is_category(category) or len(category) > MAX_NAME_BYTES:
            raise RuleError("fallbacks", f"{shown(category)} is no category{nearest_hint(category, CATEGORIES)}")
    locks = [
        normalised_lock(Lock("", pattern, reason, expires_ms=expires_ms))
        for pattern, reason, expires_ms in policy.locks
    ]
    if len(policy.tests) > MAX_TESTS:
        raise RuleError("tests", f"there are {len(policy.tests)} tests; at most {MAX_TESTS} are allowed")
    return replace(
        policy,
        groups=tuple(groups),
        members=tuple(members),
        rules=tuple(map(_checked_rule, policy.rules)),
        locks=tuple(PolicyLock(one.pattern, one.reason, one.expires_ms) for one in locks),
    )


def _checked_rule(rule: PolicyRule) -> PolicyRule:
    checked = normalised(Rule("", *rule.key, rule.level, expires_ms=rule.expires_ms, reason=rule.reason))
    return PolicyRule(*rule_key(checked), checked.level, checked.expires_ms, checked.reason, rule.line)


class PolicyKey(NamedTuple):
    """The key of an entry, and where it is."""

    text: str
    node: PolicyNode


CATEGORIES: Final = tuple(
    f"{kind}_{resource}" for kind in MEMBER_TYPES if kind not in {GROUP, ROLE} for resource in RESOURCE_TYPES
)


def is_category(text: str) -> bool:
    """Whether a text can be the category of a fallback: the types of both sides."""
    kind = next((one for one in MEMBER_TYPES if text.startswith(f"{one}_")), "")
    return text in {*CATEGORIES, "global_read", "orchestrator_system"} or (kind != "" and "/" in text)


def lock_pattern(principal_type: str, principal_id: str) -> str:
    """Return the pattern of a lock of this principal: its identity, or "user:ID"."""
    return f"user:{principal_id}" if principal_type == "user" else principal_id


def named_principal(principal_type: str, principal_id: str) -> tuple[str, str]:
    """Return a principal by which decisions ask; the id is a name. Raises RuleError."""
    rule = normalised(Rule("", principal_type, escape(principal_id), "workspace", "any", AccessLevel.NONE))
    return rule.principal_type, literal_of(rule.principal_id) or ""


def named_resource(resource_type: str, resource_id: str) -> tuple[str, str]:
    """Return a resource by which decisions ask; the id is a name. Raises RuleError."""
    rule = normalised(Rule("", GROUP, "any", resource_type, escape(resource_id), AccessLevel.NONE))
    return rule.resource_type, literal_of(rule.resource_id) or ""
