"""Maps a key-value scope and a client to a space: the namespace of its keys.

Each part of a space's name is escaped and "/" joins them, so different parts never give the same
space; in the reference an agent "a:b" and an agent "a_b" read each other's exclusive keys.

Exclusive spaces begin with `own/` and their owner's whole identity, so they are one range of the
table. In the reference they belong to implementation and specifier alone, so an agent of one
workspace reads what its namesake in another one keeps.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from aether_trio.model.identity import SEPARATOR, Identity, Kind
from aether_trio.wire.pb import aether_pb2 as pb

REMEMBERED_PLACES: Final = 4096  # of some 0.5 KiB each
OWN: Final = b"own/"
"""Exclusive spaces begin with it, and no others."""
MAX_PART_BYTES: Final = 256  # of a user id or a workspace: twice as long as in an identity


class ScopeError(ValueError):
    """A key-value operation lacks parts of its scope, or the client has no such scope."""


class KvScope(enum.IntEnum):
    """Key-value scopes by wire number; `label` names one in access rules and the SDK."""

    GLOBAL = pb.KVOperation.GLOBAL
    WORKSPACE = pb.KVOperation.WORKSPACE
    USER = pb.KVOperation.USER
    USER_WORKSPACE = pb.KVOperation.USER_WORKSPACE
    GLOBAL_EXCLUSIVE = pb.KVOperation.GLOBAL_EXCLUSIVE
    WORKSPACE_EXCLUSIVE = pb.KVOperation.WORKSPACE_EXCLUSIVE
    USER_SHARED = pb.KVOperation.USER_SHARED
    USER_WORKSPACE_SHARED = pb.KVOperation.USER_WORKSPACE_SHARED

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")

    @property
    def is_exclusive(self) -> bool:
        return _RULES[self].exclusive


class Place(NamedTuple):
    """The space of a key-value operation, and the scope that it is in."""

    space: bytes
    label: str
    """The name of the scope in access rules."""
    exclusive: bool
    """Whether the keys belong to one identity."""
    workspace: str
    """The workspace that the space belongs to, "" for none."""


@dataclass(frozen=True, slots=True)
class _Rule:
    exclusive: bool
    user: bool
    workspace: bool


_RULES: Final = {
    KvScope.GLOBAL: _Rule(exclusive=False, user=False, workspace=False),
    KvScope.WORKSPACE: _Rule(exclusive=False, user=False, workspace=True),
    KvScope.USER: _Rule(exclusive=True, user=True, workspace=False),
    KvScope.USER_WORKSPACE: _Rule(exclusive=True, user=True, workspace=True),
    KvScope.GLOBAL_EXCLUSIVE: _Rule(exclusive=True, user=False, workspace=False),
    KvScope.WORKSPACE_EXCLUSIVE: _Rule(exclusive=True, user=False, workspace=True),
    KvScope.USER_SHARED: _Rule(exclusive=False, user=True, workspace=False),
    KvScope.USER_WORKSPACE_SHARED: _Rule(exclusive=False, user=True, workspace=True),
}

_SHARED: Final = frozenset(int(scope) for scope, rule in _RULES.items() if not rule.exclusive)
_SHARED_ROOT: Final = b"shared/"

# Kinds with an implementation and a specifier that the participant chooses and keeps.
_HAVE_EXCLUSIVE: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK, Kind.SERVICE})


def parse_scope(number: int) -> KvScope:
    """Return the key-value scope of a wire number; 0 is WORKSPACE. Raises ScopeError."""
    try:
        return KvScope(number or KvScope.WORKSPACE)
    except ValueError:
        raise ScopeError(f"unknown key-value scope {number}") from None


def space_of(scope: KvScope, identity: Identity, user_id: str, workspace: str) -> bytes:
    """Return the space of a key-value scope and a client. Raises ScopeError."""
    root = exclusive_root(identity, scope.label) if scope.is_exclusive else _SHARED_ROOT
    return root + _rest_of_space(scope, user_id, workspace or identity.workspace)


def _rest_of_space(scope: KvScope, user_id: str, workspace: str) -> bytes:
    rule = _RULES[scope]
    parts: list[bytes] = []
    if rule.user:
        parts += [b"user", _part(user_id, "user_id", scope)]
    if rule.workspace:
        parts += [b"ws", _part(workspace, "workspace", scope)]
    return b"/".join(parts or [b"global"])


def place_of(number: int, identity: Identity, user_id: str, workspace: str) -> Place:
    """Return where an operation with this scope's number is. Raises ScopeError."""
    if number in _SHARED:  # for all identities, which take longer to look up
        return _shared_place(number, user_id, workspace or identity.workspace)
    return _identity_place(number, identity, user_id, workspace)


@lru_cache(maxsize=REMEMBERED_PLACES)
def _shared_place(number: int, user_id: str, workspace: str) -> Place:
    scope = KvScope(number)
    space = _SHARED_ROOT + _rest_of_space(scope, user_id, workspace)
    return Place(space, scope.label, exclusive=False, workspace=workspace if _RULES[scope].workspace else "")


@lru_cache(maxsize=REMEMBERED_PLACES)
def _identity_place(number: int, identity: Identity, user_id: str, workspace: str) -> Place:
    scope = parse_scope(number)
    space = space_of(scope, identity, user_id, workspace)
    inside = (workspace or identity.workspace) if _RULES[scope].workspace else ""
    return Place(space, scope.label, scope.is_exclusive, inside)


def own_spaces(identity: Identity) -> tuple[bytes | None, bytes | None]:
    """Return a participant's (workspace-exclusive, global-exclusive) spaces."""
    if identity.kind not in _HAVE_EXCLUSIVE:
        return None, None
    root = exclusive_root(identity, "")
    in_workspace = root + b"ws/" + _escape(identity.workspace) if identity.workspace else None
    return in_workspace, root + b"global"


def exclusive_root(identity: Identity, what: str) -> bytes:
    """Return the prefix ("…/") of an identity's exclusive spaces. Raises ScopeError."""
    if identity.kind not in _HAVE_EXCLUSIVE:
        kind = identity.kind.with_article
        raise ScopeError(f"{what} needs an identity with an implementation and a specifier; {kind} has none")
    text = identity.text
    if "/" in text or "%" in text:
        return b"%b%b/" % (OWN, b"/".join(map(_escape, text.split(SEPARATOR))))
    return b"%b%b/" % (OWN, text.replace(SEPARATOR, "/").encode())


def after(prefix: bytes) -> bytes:
    """Return the smallest byte string above all that begin with `prefix` (not empty)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])  # UTF-8 has no byte 0xff


def _part(text: str, what: str, scope: KvScope) -> bytes:
    if not text:
        raise ScopeError(f"scope {scope.label} needs a {what}")
    if (size := len(text.encode())) > MAX_PART_BYTES:
        raise ScopeError(f"{what} has {size} bytes; at most {MAX_PART_BYTES} are allowed")
    return _escape(text)


def _escape(text: str) -> bytes:
    return text.encode().replace(b"%", b"%25").replace(b"/", b"%2F")
