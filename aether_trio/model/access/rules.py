"""Records of access: rules, memberships and locks; checks of what clients write.

Times are Unix milliseconds; 0 is never. A record counts before the moment of its end, and not at
it. Ids of rules may be patterns (patterns.py): a name with a metacharacter is written escaped. The
`normalised...` functions return what is stored, so that two spellings of one rule are one rule.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import MAX_PATTERN_BYTES, PatternError, compile_pattern, escape
from aether_trio.model.identity import Identity, IdentityError, PrincipalType, parse_principal_type
from aether_trio.model.text import TextError, check_text, shown

GROUP: Final = "group"
ROLE: Final = "role"
WILDCARD: Final = "wildcard"
ANY: Final = "*"
"""As the id of a resource: all resources of the type, names with "/" too."""

MAX_DEPTH: Final = 8  # groups and roles on a chain of memberships
MAX_TYPE_BYTES: Final = 256  # as of a prefix that an agent registers
MAX_NAME_BYTES: Final = 128  # of a group or role
MAX_REASON_BYTES: Final = 1024

RESOURCE_TYPES: Final = (
    "workspace",
    "agent",
    "task",
    "user",
    "session",
    "topic",
    "kv_key",
    "kv_scope",
    "service_impl",
    "admin",
    "capability",
    "permission",  # the legacy form of admin and capability
)
_CUSTOM_TYPE: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)+")
"""A type that an agent has registered a prefix for; it has a "/"."""

WILDCARDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        PrincipalType.AGENT.type_name: "_any_agent",
        PrincipalType.TASK.type_name: "_any_task",
        PrincipalType.USER.type_name: "_any_authenticated_user",
        PrincipalType.SERVICE.type_name: "_any_service",
    }
)
"""By the type of a principal: the id of the wildcard that stands for all of the type."""
OWN_RULE_ID: Final = "own"
OWN_PRINCIPAL: Final = "_own_workspace"
OWN_RESOURCE: Final = "_own"

_PRINCIPAL_TYPES: Final = tuple(kind.type_name for kind in PrincipalType)
MEMBER_TYPES: Final = (*_PRINCIPAL_TYPES, GROUP, ROLE)
RULE_PRINCIPAL_TYPES: Final = (*MEMBER_TYPES, WILDCARD)

_LEGACY: Final = "permission"
_LEGACY_PREFIX: Final = "_perm:"
_CURRENT: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        name: ("capability", f"capability/{name}")
        for name in (
            "create_workspace",
            "exchange_authority_grants",
            "authority_intermediary",
            "metric_credit",
            "resolve_authority",
            "query_connections",
            "mint_user_tokens",
        )
    }
    | {"admin_operations": ("admin", "admin/*")}
    | {f"admin_{name}": ("admin", f"admin/{name}") for name in ("acl", "tokens", "workspaces", "agents")}
)
"""By the name behind `_perm:`: the resource that took its place."""


class RuleError(ValueError):
    """A rule, membership or lock is refused; has the field and names the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class Rule:
    """A level that a principal, group, role or wildcard has on resources."""

    rule_id: str
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    level: AccessLevel
    granted_by: str = ""
    granted_ms: int = 0
    expires_ms: int = 0
    reason: str = ""

    @property
    def subject(self) -> str:
        """The principal as "type:id", as it is written."""
        return f"{self.principal_type}:{self.principal_id}"

    @property
    def resource(self) -> str:
        """The resource as "type:id", as it is written."""
        return f"{self.resource_type}:{self.resource_id}"

    def is_live(self, now_ms: int) -> bool:
        return not self.expires_ms or now_ms < self.expires_ms


@dataclass(frozen=True, slots=True)
class Member:
    """A principal, group or role in a group or role (`kind`); its ids are no patterns."""

    kind: str
    name: str
    member_type: str
    member_id: str
    granted_by: str = ""
    granted_ms: int = 0
    expires_ms: int = 0

    @property
    def container(self) -> str:
        """The group or role as "type:name"."""
        return f"{self.kind}:{self.name}"

    @property
    def member(self) -> str:
        """The member as "type:id"."""
        return f"{self.member_type}:{self.member_id}"

    def is_live(self, now_ms: int) -> bool:
        return not self.expires_ms or now_ms < self.expires_ms


@dataclass(frozen=True, slots=True)
class Lock:
    """Bars all principals whose identity, or "type:id", the pattern matches.

    Stars of this pattern match "/" too: a lock must not miss a name because of a character in it.
    """

    lock_id: str
    pattern: str
    reason: str = ""
    locked_by: str = ""
    locked_ms: int = 0
    expires_ms: int = 0

    def is_live(self, now_ms: int) -> bool:
        return not self.expires_ms or now_ms < self.expires_ms


def current_resource(resource_type: str, resource_id: str) -> tuple[str, str]:
    """Return the resource that a legacy one (`permission`, `_perm:X`) stands for.

    For checks and rules alike; other resources, and unknown legacy ones, are returned as they are.
    """
    if resource_type == _LEGACY and resource_id.startswith(_LEGACY_PREFIX):
        return _CURRENT.get(resource_id.removeprefix(_LEGACY_PREFIX), (resource_type, resource_id))
    return resource_type, resource_id


def checked_level(level: int) -> AccessLevel:
    """Return the level with this number; RuleError if there is none."""
    try:
        return AccessLevel(level)
    except ValueError:
        known = ", ".join(f"{one.value} ({one.name})" for one in AccessLevel)
        raise RuleError("access_level", f"invalid access level {shown(level)}: expected {known}") from None


def normalised(rule: Rule) -> Rule:
    """Return the rule as it is stored; RuleError names what is wrong with it.

    Legacy resources become current ones, aliases of types their names, a user's window the user,
    and a name is escaped in one way.
    """
    resource_type, resource_id = current_resource(rule.resource_type, rule.resource_id)
    principal_type = _principal_type(rule.principal_type, RULE_PRINCIPAL_TYPES, "principal_type")
    is_own = (principal_type, rule.principal_id) == (WILDCARD, OWN_PRINCIPAL)
    if is_own and (resource_type, resource_id) != ("workspace", OWN_RESOURCE):
        raise RuleError("resource_id", f"{OWN_PRINCIPAL} has a level on workspace:{OWN_RESOURCE} only")
    if principal_type == WILDCARD and not is_own and rule.principal_id not in WILDCARDS.values():
        raise _unknown("principal_id", "wildcard", rule.principal_id, tuple(WILDCARDS.values()))
    if resource_type not in RESOURCE_TYPES and not (
        len(resource_type) <= MAX_TYPE_BYTES and _CUSTOM_TYPE.fullmatch(resource_type)
    ):
        raise _unknown("resource_type", "resource type", resource_type, RESOURCE_TYPES)
    return replace(
        rule,
        principal_type=principal_type,
        principal_id=_normalised_id("principal_id", rule.principal_id, principal_type),
        resource_type=resource_type,
        resource_id=_normalised_id("resource_id", resource_id, resource_type),
        level=checked_level(rule.level),
        expires_ms=_checked_moment(rule.expires_ms),
        reason=_checked_reason(rule.reason),
    )


def normalised_member(member: Member) -> Member:
    """Return the membership as it is stored; RuleError names what is wrong with it."""
    if member.kind not in {GROUP, ROLE}:
        raise _unknown("kind", "kind of membership", member.kind, (GROUP, ROLE))
    member_type = _principal_type(member.member_type, MEMBER_TYPES, "member_type")
    if member_type in {GROUP, ROLE}:
        member_id = _checked("member_id", member.member_id, f"the name of a {member_type}", MAX_NAME_BYTES)
    else:
        member_id = _canonical(
            member_type, _checked("member_id", member.member_id, "the id of a member", MAX_PATTERN_BYTES)
        )
    return replace(
        member,
        name=checked_name(member.kind, member.name),
        member_type=member_type,
        member_id=member_id,
        expires_ms=_checked_moment(member.expires_ms),
    )


def normalised_lock(lock: Lock) -> Lock:
    """Return the lock as it is stored; RuleError names what is wrong with it."""
    return replace(
        lock,
        pattern=_normalised_id("pattern", lock.pattern),
        expires_ms=_checked_moment(lock.expires_ms),
        reason=_checked_reason(lock.reason),
    )


def checked_name(kind: str, name: str) -> str:
    """Return the name of a group or role; RuleError if it cannot be one."""
    return _checked("name", name, f"the name of a {kind}", MAX_NAME_BYTES)


def membership_problem(members: Iterable[Member], new: Member) -> str | None:
    """Return why a membership may not be added to these, or None.

    Groups and roles form no circle, and no chain has more than MAX_DEPTH of them. Expired members
    count like others: leave them out where they should not.
    """
    up: dict[str, set[str]] = defaultdict(set)
    down: dict[str, set[str]] = defaultdict(set)
    for one in members:
        if one.member_type in {GROUP, ROLE}:
            up[one.member].add(one.container)
            down[one.container].add(one.member)
    if new.member == new.container:
        return f"membership would create a cycle: {shown(new.container)} cannot be in itself"
    above = _generations(new.container, up)
    if any(new.member in one for one in above):
        return (
            f"membership would create a cycle: {shown(new.container)} is in {shown(new.member)} already, "
            "directly or by others"
        )
    below = _generations(new.member, down) if new.member_type in {GROUP, ROLE} else []
    if len(above) + len(below) > MAX_DEPTH:
        return f"groups and roles would nest {len(above) + len(below)} deep; at most {MAX_DEPTH} are allowed"
    return None


def _generations(start: str, edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Return what is reached by 0, 1, 2 ... steps, up to one step too many."""
    generations = [{start}]
    while len(generations) <= MAX_DEPTH:
        further = {text for one in generations[-1] for text in edges.get(one, ())}
        if not further:
            break
        generations.append(further)
    return generations


def _unknown(field: str, what: str, name: str, known: tuple[str, ...]) -> RuleError:
    nearest = difflib.get_close_matches(name[:MAX_NAME_BYTES].lower(), known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
    return RuleError(field, f"unknown {what} {shown(name)}; {hint}")


def _principal_type(name: str, known: tuple[str, ...], field: str) -> str:
    if name.lower() in known:
        return name.lower()
    try:
        return parse_principal_type(name).type_name
    except IdentityError:
        raise _unknown(field, "principal type", name, known) from None


def _normalised_id(field: str, text: str, of_type: str = "") -> str:
    """Return the id as it is stored.

    With its type it is a pattern, and no longer than one.
    """
    if not text:
        raise RuleError(field, f"{field} is empty")
    try:
        literal = compile_pattern(text).literal
    except PatternError as error:
        raise RuleError(field, f"{field}: {error}") from None
    written = text if literal is None else escape(_canonical(of_type, literal))
    size = len(f"{of_type}:{written}".encode())
    if size > MAX_PATTERN_BYTES:
        raise RuleError(field, f"{field} with its type has {size} bytes; at most {MAX_PATTERN_BYTES} are allowed")
    return written


def _canonical(of_type: str, name: str) -> str:
    """Return the id by which decisions ask for this identity, if the name is one."""
    if of_type not in _PRINCIPAL_TYPES:
        return name
    try:
        identity = Identity.parse(name)
    except IdentityError:
        return name
    return identity.canonical_id if identity.type_name == of_type else name


def _checked(field: str, text: str, what: str, most_bytes: int) -> str:
    if not text:
        raise RuleError(field, f"{what} is empty")
    try:
        return check_text(text, what, most_bytes)
    except TextError as error:
        raise RuleError(field, str(error)) from None


def _checked_reason(text: str) -> str:
    try:
        return check_text(text, "the reason", MAX_REASON_BYTES, lines=True)
    except TextError as error:
        raise RuleError("reason", str(error)) from None


def _checked_moment(expires_ms: int) -> int:
    if expires_ms < 0:
        raise RuleError("expires_at", "the moment of expiry is before 1970")
    return expires_ms
