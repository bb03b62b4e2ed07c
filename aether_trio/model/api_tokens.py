"""API tokens: their text, their scopes, and which identities they let in.

A token's text is "aek_" and the base64url of 32 random bytes and a checksum of four, so that a
mistyped or invented one is refused without a look into the database.

Scopes narrow what a session of the token may do, whatever its principal may:

    connect           connect at all; "*" says the same
    level:READ        no access beyond this level (READ, READWRITE, MANAGE, ADMIN, SUPERADMIN)
    identity:PATTERN  identities that match, such as identity:ag::prod::echo::*; several: any of
                      them

Patterns are those of access rules (model/access/patterns.py); a lone "*" is every workspace, also
one whose name has a slash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import (
    MAX_COMPARED,
    Pattern,
    PatternError,
    Steps,
    compile_pattern,
    contains,
    escape,
)
from aether_trio.model.identity import SEPARATOR, Identity, Kind
from aether_trio.model.text import shown

PREFIX: Final = "aek_"
EVERY: Final = "*"
CONNECT: Final = "connect"
OPERATOR: Final = "operator"
"""The type of a token's maker who made it on the gateway's machine: no rules bound the maker."""
RESERVED: Final = "_"
"""Names that begin so are the gateway's."""
WORKERS: Final = frozenset({"agent", "task"})
_SECRET_BYTES: Final = 32
_CHECK_BYTES: Final = 4
_ENCODED: Final = 48
_LEVEL: Final = "level:"
_IDENTITY: Final = "identity:"


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Pattern:
    return compile_pattern(text)


class TokenScopeError(ValueError):
    """A scope is unknown or malformed; the message says what is expected."""


def new_token_text(random_bytes: Callable[[int], bytes]) -> str:
    """Make the text of a new API token, to be shown once."""
    secret = random_bytes(_SECRET_BYTES)
    return PREFIX + base64.urlsafe_b64encode(secret + _checksum(secret)).decode()


def is_token_text(text: str) -> bool:
    """Return whether a text is an API token's, by its form and checksum."""
    if len(text) != len(PREFIX) + _ENCODED or not text.startswith(PREFIX) or not text.isascii():
        return False
    try:
        whole = base64.b64decode(text[len(PREFIX) :], altchars=b"-_", validate=True)
    except binascii.Error:
        return False
    return _checksum(whole[:_SECRET_BYTES]) == whole[_SECRET_BYTES:]


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(b"aether API token\0" + secret).digest()[:_CHECK_BYTES]


@dataclass(frozen=True, slots=True)
class Scopes:
    """What the scopes of an API token say."""

    connect: bool
    cap: AccessLevel
    identities: tuple[Pattern, ...]
    """Empty: all."""


def parse_scopes(texts: Iterable[str]) -> Scopes:
    """Read the scopes of a token. Raises TokenScopeError."""
    connect, levels, identities = False, [], []
    for text in texts:
        if text in {CONNECT, EVERY}:
            connect = True
        elif text.lower().startswith(_LEVEL):
            name = text[len(_LEVEL) :].upper()
            if name not in AccessLevel.__members__ or name == AccessLevel.NONE.name:
                known = ", ".join(level.name for level in AccessLevel if level)
                raise TokenScopeError(f"the scope {shown(text)} names no level: expected level: and one of {known}")
            levels.append(AccessLevel[name])
        elif text.startswith(_IDENTITY):
            try:
                identities.append(_compiled(text[len(_IDENTITY) :]))
            except PatternError as error:
                raise TokenScopeError(f"the scope {shown(text)} is wrong: {error}") from None
        else:
            raise TokenScopeError(
                f"unknown scope {shown(text)}: expected connect, level:LEVEL or identity:PATTERN, such as level:READ"
            )
    return Scopes(connect, min(levels, default=AccessLevel.SUPERADMIN), tuple(identities))


@dataclass(frozen=True, slots=True)
class ApiToken:
    """An API token without its secret; times are Unix ms, 0 for never.

    `principal_id` is a user's id, or the whole identity of another principal; a text without "::"
    binds no other principal than a user. `maker` is the principal that has made the token.
    """

    token_id: str
    name: str
    principal_type: str
    principal_id: str
    workspace_patterns: tuple[str, ...]
    scopes: tuple[str, ...]
    maker: str
    created_ms: int
    expires_ms: int = 0
    updated_ms: int = 0
    last_used_ms: int = 0
    revoked_ms: int = 0
    key_id: str = ""
    """The secret key under which it is stored."""
    limits: Scopes = field(init=False, compare=False, repr=False)
    _workspaces: tuple[Pattern, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", parse_scopes(self.scopes))
        object.__setattr__(self, "_workspaces", tuple(map(_compiled, self.workspace_patterns)))

    @property
    def everywhere(self) -> bool:
        """Whether the token reaches all workspaces, and what is in none."""
        return EVERY in self.workspace_patterns

    def allows_workspace(self, workspace: str) -> bool:
        """Whether the token reaches a workspace."""
        for one in self._workspaces:  # any() takes twice as long, for each client
            if one.matches(workspace):
                return True
        return self.everywhere

    @property
    def identity_patterns(self) -> tuple[str, ...]:
        """Patterns of the identities that the token lets in; () for all of its type."""
        if SEPARATOR in self.principal_id:
            return (escape(self.principal_id),)
        return tuple(one.text for one in self.limits.identities)

    def problem(self, identity: Identity) -> str | None:
        """Return why the token does not let in an identity (a sentence's end), or None."""
        if identity.type_name != self.principal_type:
            return f"is for principals of type {self.principal_type}, not {identity.type_name}"
        if not self._names(identity):
            return f"is for {shown(self.principal_id)}, not for {identity.text}"
        if not self._fits_scopes(identity):
            return f"is limited by its scopes to other identities than {identity.text}"
        if identity.workspace:
            if not self.allows_workspace(identity.workspace):
                reach = ", ".join(self.workspace_patterns)
                return f"does not reach workspace {identity.workspace!r} (it reaches {reach})"
        elif identity.kind is not Kind.USER and not self.everywhere:
            reach = ", ".join(self.workspace_patterns)
            return f"is limited to workspaces {reach}, but {identity.kind.with_article} works in all of them"
        return None

    def _names(self, identity: Identity) -> bool:
        if identity.kind is Kind.USER or SEPARATOR in self.principal_id:
            return self.principal_id == identity.canonical_id
        return True

    def _fits_scopes(self, identity: Identity) -> bool:
        wanted = self.limits.identities
        return not wanted or any(one.matches(identity.text) or one.matches(identity.canonical_id) for one in wanted)

    def covers(self, identity: Identity) -> bool:
        """Whether a task token for a participant would reach no more than this token."""
        kinds = {self.principal_type, identity.type_name}
        if len(kinds) > 1 and not kinds <= WORKERS:
            return False
        if not (self._names(identity) and self._fits_scopes(identity)):
            return False
        return self.allows_workspace(identity.workspace) if identity.workspace else self.everywhere

    def ended(self, now_ms: int) -> str | None:
        """Return why the token is not valid any more (a sentence's end), or None."""
        if self.revoked_ms:
            return "was revoked"
        return "has expired" if 0 < self.expires_ms <= now_ms else None


def contained(inner: Sequence[str], outer: Sequence[str]) -> str | None:
    """Return a pattern of `inner` that no pattern of `outer` contains; None for none.

    What takes more than MAX_COMPARED steps together is not contained. Raises PatternError.
    """
    if EVERY in outer:
        return None
    return _first_beyond(tuple(inner), tuple(outer))


@lru_cache(maxsize=256)
def _first_beyond(inner: tuple[str, ...], outer: tuple[str, ...]) -> str | None:
    wide = [_compiled(one) for one in outer]
    steps = Steps(MAX_COMPARED)
    for text in inner:
        if text == EVERY or not any(contains(one, _compiled(text), steps) for one in wide):
            return text
    return None


def reserved_part(identity: Identity) -> str | None:
    """Return a part of an identity that begins with "_", which is the gateway's."""
    parts = (identity.workspace, identity.implementation, identity.specifier)
    return next((one for one in parts if one.startswith(RESERVED)), None)
