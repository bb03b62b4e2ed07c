"""Reads and writes single keys of the key-value store, each in one transaction.

Each change of a space is counted (usage.py), so a space never has more than its quota. A program
returns a KvRefusal for a client's mistake, before it has written anything. "Live" means not expired
at `now_ms`: an expired row that the sweep has not reached is absent everywhere, and overwritten in
place. Counters are the canonical decimal text of a signed 64-bit integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.services.kv.usage import UNLIMITED, Quota, change, fits, units_of
from aether_trio.storage.base import Execute, Fetch, Program

MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)
MAX_EXPIRES_MS: Final = 2**62  # a later end would overflow the column; it is as good as none

_SELECT: Final = "SELECT value, members, expires_ms, units FROM kv_entries WHERE space = $1 AND key = $2"
_DELETE: Final = "DELETE FROM kv_entries WHERE space = $1 AND key = $2"
_UPSERT: Final = (
    "INSERT INTO kv_entries (space, key, value, expires_ms, units) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms, units = excluded.units"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """One key of one space of the key-value store, at one moment."""

    space: bytes
    key: bytes
    now_ms: int
    quota: Quota = UNLIMITED

    def expiry(self, ttl_s: int) -> int | None:
        """Return when a key written now with this ttl expires; None for 0 and less."""
        return min(self.now_ms + ttl_s * 1000, MAX_EXPIRES_MS) if ttl_s > 0 else None


@dataclass(frozen=True, slots=True)
class KvOutcome:
    """The result of a key-value operation; fields that it does not use stay empty."""

    value: bytes = b""
    counter: int = 0
    applied: bool = False


@dataclass(frozen=True, slots=True)
class KvRefusal:
    """Why a key-value operation did nothing; `quota`: because the space is full."""

    reason: str
    quota: bool = False


@dataclass(frozen=True, slots=True)
class _StoredEntry:
    value: bytes | None
    members: int | None
    expires_ms: int | None
    units: int

    @property
    def is_set(self) -> bool:
        return self.members is not None

    @property
    def items(self) -> int:
        return 1 if self.members is None else self.members

    def is_live(self, now_ms: int) -> bool:
        return self.expires_ms is None or self.expires_ms > now_ms


_DONE: Final = KvOutcome()
_IS_SET: Final = KvRefusal("this key has a set as its value, not bytes")
_IS_NOT_SET: Final = KvRefusal("this key has bytes as its value, not a set")
_IS_NOT_INTEGER: Final = KvRefusal("the value of this key is not a 64-bit integer")


def get(slot: Slot) -> Program[KvOutcome | KvRefusal]:
    """Return the value of a key; an absent key has an empty value."""
    entry = yield from _live(slot)
    if entry is None:
        return _DONE
    return _IS_SET if entry.value is None else KvOutcome(value=entry.value)


def put(slot: Slot, value: bytes, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    """Write a key over its value or set. Without a ttl the key does not expire."""
    old = yield from _stored(slot)
    return (yield from _write(slot, old, value, slot.expiry(ttl_s))) or _DONE


def delete(slot: Slot) -> Program[KvOutcome | KvRefusal]:
    yield from _delete(slot, (yield from _stored(slot)))
    return _DONE


def set_if_absent(slot: Slot, value: bytes, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    old = yield from _stored(slot)
    if old is not None and old.is_live(slot.now_ms):
        return KvOutcome(applied=False)
    return (yield from _write(slot, old, value, slot.expiry(ttl_s))) or KvOutcome(applied=True)


def compare_and_set(slot: Slot, expected: bytes, value: bytes, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    """Write a key if its live value is `expected`, else return the live value."""
    entry = yield from _expected(slot, expected)
    if not isinstance(entry, _StoredEntry):
        return entry
    return (yield from _write(slot, entry, value, slot.expiry(ttl_s))) or KvOutcome(applied=True)


def compare_and_delete(slot: Slot, expected: bytes) -> Program[KvOutcome | KvRefusal]:
    entry = yield from _expected(slot, expected)
    if not isinstance(entry, _StoredEntry):
        return entry
    yield from _delete(slot, entry)
    return KvOutcome(applied=True)


def add(slot: Slot, delta: int, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    """Add to a counter: INCREMENT and DECREMENT of the key-value store."""
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    current = _integer(entry)
    if isinstance(current, KvRefusal):
        return current
    result = current + delta
    if not MIN_INT64 <= result <= MAX_INT64:
        return KvRefusal(f"the counter is at {current} and cannot leave the range of 64-bit integers")
    expires_ms = entry.expires_ms if entry is not None else None
    if delta > 0 and result == 1 and ttl_s > 0:  # a counter's first hit
        expires_ms = slot.expiry(ttl_s)
    full = yield from _write(slot, old, b"%d" % result, expires_ms)
    return full or KvOutcome(counter=result, applied=True)


def add_within(slot: Slot, delta: int, guard: int, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    """Add to a counter up to `guard` (INCREMENT_IF) or down to it (DECREMENT_IF)."""
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    current = _integer(entry)
    if isinstance(current, KvRefusal):
        return current
    result = current + delta
    if result > guard if delta > 0 else result < guard:  # so the result has 64 bits
        return KvOutcome(counter=current, applied=False)
    expires_ms = slot.expiry(ttl_s) if entry is None else entry.expires_ms
    full = yield from _write(slot, old, b"%d" % result, expires_ms)
    return full or KvOutcome(counter=result, applied=True)


def set_add(slot: Slot, member: bytes, ttl_s: int) -> Program[KvOutcome | KvRefusal]:
    """Add a member to a key's set; return the set's size. A new member renews the ttl."""
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    if entry is not None and not entry.is_set:
        return _IS_NOT_SET
    units = units_of(slot.key, member)
    items, more = (1, units) if old is None or entry is not None else (1 - old.items, units - old.units)
    # A member that is there already needs no room: it is read only if there is no room.
    if not (yield from fits(slot.space, items, more, slot.quota)):
        found = entry is not None and (
            yield Fetch(
                "SELECT 1 FROM kv_members WHERE space = $1 AND key = $2 AND member = $3", (slot.space, slot.key, member)
            )
        )
        return KvOutcome(counter=entry.items, applied=False) if entry is not None and found else _full(slot)
    if entry is None:
        yield from _delete(slot, old)  # an expired one, with its members
        yield Execute(
            "INSERT INTO kv_entries (space, key, members, expires_ms, units) VALUES ($1, $2, 0, NULL, 0)",
            (slot.space, slot.key),
        )
    added = yield Execute(
        "INSERT INTO kv_members (space, key, member) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        (slot.space, slot.key, member),
    )
    size = entry.members or 0 if entry is not None else 0
    if not added:
        return KvOutcome(counter=size, applied=False)
    yield Execute(
        "UPDATE kv_entries SET members = $3, units = units + $5, expires_ms = coalesce($4, expires_ms) "
        "WHERE space = $1 AND key = $2",
        (slot.space, slot.key, size + 1, slot.expiry(ttl_s), units),
    )
    yield from change(slot.space, 1, units, UNLIMITED)
    return KvOutcome(counter=size + 1, applied=True)


def set_size(slot: Slot) -> Program[KvOutcome | KvRefusal]:
    entry = yield from _live(slot)
    if entry is None:
        return _DONE
    return _IS_NOT_SET if entry.members is None else KvOutcome(counter=entry.members)


def _stored(slot: Slot) -> Program[_StoredEntry | None]:
    rows = yield Fetch(_SELECT, (slot.space, slot.key))
    return _StoredEntry(*rows[0]) if rows else None


def _live(slot: Slot) -> Program[_StoredEntry | None]:
    entry = yield from _stored(slot)
    return entry if entry is not None and entry.is_live(slot.now_ms) else None


def _expected(slot: Slot, expected: bytes) -> Program[_StoredEntry | KvOutcome | KvRefusal]:
    """Return the live entry if its value is `expected`, else the comparison's outcome."""
    entry = yield from _live(slot)
    if entry is None:
        return KvOutcome(applied=False)
    if entry.value is None:
        return _IS_SET
    return entry if entry.value == expected else KvOutcome(value=entry.value, applied=False)


def _write(slot: Slot, old: _StoredEntry | None, value: bytes, expires_ms: int | None) -> Program[KvRefusal | None]:
    """Replace a key's value or set, if the quota allows it; return why not."""
    units = units_of(slot.key, value)
    items, more = (1, units) if old is None else (1 - old.items, units - old.units)
    if not (yield from change(slot.space, items, more, slot.quota)):
        return _full(slot)
    if old is not None and old.is_set:
        yield Execute(_DELETE, (slot.space, slot.key))
    yield Execute(_UPSERT, (slot.space, slot.key, value, expires_ms, units))
    return None


def _delete(slot: Slot, old: _StoredEntry | None) -> Program[None]:
    if old is not None:
        yield Execute(_DELETE, (slot.space, slot.key))
        yield from change(slot.space, -old.items, -old.units, UNLIMITED)


def _full(slot: Slot) -> KvRefusal:
    return KvRefusal(f"this scope is full: its quota is {slot.quota}; delete keys first", quota=True)


def _integer(entry: _StoredEntry | None) -> int | KvRefusal:
    if entry is None:
        return 0
    if entry.value is None:
        return _IS_SET
    text = entry.value
    try:
        number = int(text) if len(text) <= 20 else MAX_INT64 + 1
    except ValueError:
        return _IS_NOT_INTEGER
    return number if b"%d" % number == text and MIN_INT64 <= number <= MAX_INT64 else _IS_NOT_INTEGER
