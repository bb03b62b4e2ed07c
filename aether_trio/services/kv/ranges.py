"""Lists and deletes ranges of keys in the key-value store, a page at a time.

Pages are keyset pages: a cursor names the last key of a page, and the next page begins after it in
key order. So a key that exists all the time is returned exactly once, though other keys are written
and deleted between pages. Each page is bounded by count and by bytes, since a client cannot receive
a message over 4 MiB; sizes are read before values are, so what does not fit is never loaded.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from aether_trio.services.kv import usage
from aether_trio.services.kv.spaces import OWN, after
from aether_trio.storage.base import Fetch, Program, Row, Value

# Tags and lengths of one key in `keys` and one entry in `kv_map`, rounded up.
ENTRY_OVERHEAD_BYTES: Final = 32
_CURSOR_VERSION: Final = b"1"
_END: Final = after(OWN)
"""Behind all exclusive spaces."""


class CursorError(ValueError):
    """A LIST of keys has a cursor that no LIST has returned."""


@dataclass(frozen=True, slots=True)
class KvPage:
    """A page of keys in order, with values (empty for a set); the last has no cursor."""

    entries: list[tuple[bytes, bytes]]
    cursor: str = ""


def encode_cursor(key: bytes) -> str:
    return base64.urlsafe_b64encode(_CURSOR_VERSION + key).decode("ascii")


def decode_cursor(cursor: str) -> bytes:
    """Return the last key of the page before a cursor. Raises CursorError."""
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    if raw[:1] != _CURSOR_VERSION:
        raise CursorError("the cursor is not one that a LIST has returned")
    return raw[1:]


def list_page(
    space: bytes, prefix: bytes, last_key: bytes | None, limit: int, max_bytes: int, now_ms: int
) -> Program[KvPage]:
    """Return live keys of a prefix after `last_key`; the first may exceed `max_bytes`."""
    # A cursor from another prefix cannot leave this one: the range below is bounded by both.
    floor, operator = (prefix, ">=") if last_key is None or last_key < prefix else (last_key, ">")
    where = f"space = $1 AND key {operator} $2 AND (expires_ms IS NULL OR expires_ms > $3)"
    args: list[Value] = [space, floor, now_ms]
    if prefix:
        where += " AND key < $4"
        args.append(after(prefix))
    sizes = yield Fetch(
        f"SELECT key, coalesce(length(value), 0) FROM kv_entries WHERE {where} ORDER BY key LIMIT {limit + 1:d}",  # noqa: S608
        args,
    )
    count, total = 0, 0
    for key, size in sizes[:limit]:
        total += 2 * len(key) + size + ENTRY_OVERHEAD_BYTES
        if total > max_bytes and count:
            break
        count += 1
    if not count:
        return KvPage([])
    last = sizes[count - 1][0]
    rows = yield Fetch(
        f"SELECT key, value FROM kv_entries WHERE {where} AND key <= ${len(args) + 1} ORDER BY key",  # noqa: S608
        [*args, last],
    )
    return KvPage([(key, value or b"") for key, value in rows], encode_cursor(last) if count < len(sizes) else "")


def own_spaces(last: bytes, count: int) -> Program[list[bytes]]:
    """Read a page of the exclusive spaces that have keys, in their order."""
    wanted = "SELECT space FROM kv_spaces WHERE space > $1 AND space < $2 ORDER BY space LIMIT $3"
    rows: list[Row] = yield Fetch(wanted, (last, _END, count))
    return [space for (space,) in rows]


@dataclass(frozen=True, slots=True)
class Deleted:
    """A page of deleted keys, and how many of them were live."""

    names: list[tuple[bytes, bytes]]
    live: int


def purge_page(floor: bytes, end: bytes, prefix: bytes, page: int, now_ms: int) -> Program[Deleted]:
    """Delete a page of a prefix's keys."""
    rows = yield Fetch(
        "DELETE FROM kv_entries WHERE (space, key) IN ("
        "SELECT space, key FROM kv_entries WHERE space >= $1 AND space < $2 AND substr(key, 1, $3) = $4 LIMIT $5"
        ") RETURNING space, members, units, expires_ms, key",
        (floor, end, len(prefix), prefix, page),
    )
    yield from usage.deleted([row[:3] for row in rows])
    return Deleted([(row[0], row[4]) for row in rows], sum(row[3] is None or row[3] > now_ms for row in rows))


def sweep_page(now_ms: int, page: int) -> Program[Deleted]:
    """Delete up to `page` expired key-value entries, oldest first."""
    rows: list[Row] = yield Fetch(
        "DELETE FROM kv_entries WHERE (space, key) IN ("
        "SELECT space, key FROM kv_entries WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2) "
        "RETURNING space, members, units, key",
        (now_ms, page),
    )
    yield from usage.deleted([row[:3] for row in rows])
    return Deleted([(row[0], row[3]) for row in rows], 0)
