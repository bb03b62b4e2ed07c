"""The rows of API tokens: database programs that read and write `api_tokens`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.access.patterns import PatternError
from aether_trio.model.api_tokens import ApiToken, TokenScopeError
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

_COLUMNS: Final = (
    "token_id, token_hash, key_id, name, principal_type, principal_id, workspace_patterns, scopes, maker, created_ms, "
    "expires_ms, seal, updated_ms, last_used_ms, revoked_ms"
)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it is stored: its record, hash, seal, and the id of their key."""

    token: ApiToken
    token_hash: bytes
    key_id: str
    seal: bytes


def _read(row: Row) -> TokenRow | None:
    """Return a row's token; None for a row that this gateway did not write."""
    token_id, token_hash, key_id, name, kind, principal, patterns, scopes, maker, created, expires, seal, *rest = row
    updated, last_used, revoked = rest
    try:
        token = ApiToken(
            token_id,
            name,
            kind,
            principal,
            tuple(map(str, json.loads(patterns))),
            tuple(map(str, json.loads(scopes))),
            maker,
            created,
            expires,
            updated,
            last_used,
            revoked,
            key_id,
        )
    except (ValueError, TypeError, PatternError, TokenScopeError):
        return None
    return TokenRow(token, token_hash, key_id, seal)


def insert(row: TokenRow) -> Program[None]:
    """Write a new token."""
    token = row.token
    yield Execute(
        f"INSERT INTO api_tokens ({_COLUMNS}) VALUES ({placeholders(15)})",  # noqa: S608  # fixed columns
        (
            token.token_id,
            row.token_hash,
            row.key_id,
            token.name,
            token.principal_type,
            token.principal_id,
            json.dumps(token.workspace_patterns),
            json.dumps(token.scopes),
            token.maker,
            token.created_ms,
            token.expires_ms,
            row.seal,
            token.updated_ms,
            token.last_used_ms,
            token.revoked_ms,
        ),
    )


def by_hash(hashes: Collection[bytes]) -> Program[TokenRow | None]:
    """Find the token with one of these hashes."""
    found = yield Fetch(
        f"SELECT {_COLUMNS} FROM api_tokens WHERE token_hash IN ({placeholders(len(hashes))})",  # noqa: S608
        tuple(hashes),
    )
    return _read(found[0]) if found else None


def by_id(token_id: str) -> Program[TokenRow | None]:
    """Find a token by its id."""
    found = yield Fetch(f"SELECT {_COLUMNS} FROM api_tokens WHERE token_id = $1", (token_id,))  # noqa: S608
    return _read(found[0]) if found else None


def page(*, revoked: bool, limit: int, offset: int) -> Program[tuple[list[ApiToken], int]]:
    """Read (a page of tokens, newest first; how many there are)."""
    which = "" if revoked else "WHERE revoked_ms = 0"
    count = yield Fetch(f"SELECT COUNT(*) FROM api_tokens {which}")  # noqa: S608
    found = yield Fetch(
        f"SELECT {_COLUMNS} FROM api_tokens {which} "  # noqa: S608
        "ORDER BY created_ms DESC, token_id DESC LIMIT $1 OFFSET $2",
        (limit, offset),
    )
    return [row.token for one in found if (row := _read(one)) is not None], count[0][0]


def live() -> Program[list[tuple[str, object]]]:
    """Read the ids of all tokens that are not revoked, as items of a change."""
    found = yield Fetch("SELECT token_id FROM api_tokens WHERE revoked_ms = 0")
    return [(token_id, {}) for (token_id,) in found]


def revoke(token_id: str, now_ms: int) -> Program[bool]:
    """Revoke a token; return whether it was there and not revoked."""
    count = yield Execute(
        "UPDATE api_tokens SET revoked_ms = $2, updated_ms = $3 WHERE token_id = $1 AND revoked_ms = 0",
        (token_id, now_ms, now_ms),
    )
    return bool(count)


def delete(token_id: str) -> Program[bool]:
    """Delete a token; return whether it was there."""
    count = yield Execute("DELETE FROM api_tokens WHERE token_id = $1", (token_id,))
    return bool(count)


def used(times: Sequence[tuple[str, int]]) -> Program[None]:
    """Write when tokens were last used; the order of the ids is that of all writers."""
    for token_id, at_ms in sorted(times):
        yield Execute(
            "UPDATE api_tokens SET last_used_ms = $2 WHERE token_id = $1 AND last_used_ms < $3",
            (token_id, at_ms, at_ms),
        )
