"""The operations on single keys, each one program: read what is there, decide, write, all in one transaction.

What a space holds is counted where it changes (usage.py), so a space never holds more than its quota.

A program never raises for what a client did wrong; it returns a Refusal before it has written anything, so a refused
operation costs its commit group nothing. "Live" means not expired at `now_ms`: an expired row that the sweep has not
reached is treated as absent everywhere, and overwritten in place.

Counters are decimal text of a signed 64-bit integer, the canonical form only (what the operations themselves write).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.services.kv.usage import UNLIMITED, Quota, change, fits, units_of
from aether_trio.storage.base import Execute, Fetch, Program

MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)
MAX_EXPIRES_MS: Final = 2**62  # a ttl beyond it is no different from none, and must not overflow the column

_SELECT: Final = "SELECT value, members, expires_ms, units FROM kv_entries WHERE space = $1 AND key = $2"
_DELETE: Final = "DELETE FROM kv_entries WHERE space = $1 AND key = $2"
_UPSERT: Final = (
    "INSERT INTO kv_entries (space, key, value, expires_ms, units) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms, units = excluded.units"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an operation works: one key of one space, at one moment."""

    space: bytes
    key: bytes
    now_ms: int
    quota: Quota = UNLIMITED

    def expiry(self, ttl_s: int) -> int | None:
        """When something written now with this ttl ends; None (never) for 0 and less."""
        return min(self.now_ms + ttl_s * 1000, MAX_EXPIRES_MS) if ttl_s > 0 else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the response says. Fields an operation does not use stay empty."""

    value: bytes = b""
    counter: int = 0
    applied: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was done: a sentence for the client. `quota`: because its space is full."""

    reason: str
    quota: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
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


_DONE: Final = Outcome()
_IS_SET: Final = Refusal("this key holds a set")
_IS_NOT_SET: Final = Refusal("this key holds a value, not a set")
_IS_NOT_INTEGER: Final = Refusal("this key does not hold a 64-bit integer")


def get(slot: Slot) -> Program[Outcome | Refusal]:
    """The value; a missing key is an empty value."""
    entry = yield from _live(slot)
    if entry is None:
        return _DONE
    return _IS_SET if entry.value is None else Outcome(value=entry.value)


def put(slot: Slot, value: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    """Write whatever was there, a set included. A ttl that is not given removes the old one."""
    old = yield from _stored(slot)
    return (yield from _write(slot, old, value, slot.expiry(ttl_s))) or _DONE


def delete(slot: Slot) -> Program[Outcome | Refusal]:
    yield from _delete(slot, (yield from _stored(slot)))
    return _DONE


def set_if_absent(slot: Slot, value: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    old = yield from _stored(slot)
    if old is not None and old.is_live(slot.now_ms):
        return Outcome(applied=False)
    return (yield from _write(slot, old, value, slot.expiry(ttl_s))) or Outcome(applied=True)


def compare_and_set(slot: Slot, expected: bytes, value: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    """Write if the live value is `expected`; else answer with the live value. An absent key equals nothing."""
    entry = yield from _live(slot)
    if entry is None:
        return Outcome(applied=False)
    if entry.value is None:
        return _IS_SET
    if entry.value != expected:
        return Outcome(value=entry.value, applied=False)
    return (yield from _write(slot, entry, value, slot.expiry(ttl_s))) or Outcome(applied=True)


def compare_and_delete(slot: Slot, expected: bytes) -> Program[Outcome | Refusal]:
    entry = yield from _live(slot)
    if entry is None:
        return Outcome(applied=False)
    if entry.value is None:
        return _IS_SET
    if entry.value != expected:
        return Outcome(value=entry.value, applied=False)
    yield from _delete(slot, entry)
    return Outcome(applied=True)


def add(slot: Slot, delta: int, ttl_s: int) -> Program[Outcome | Refusal]:
    """INCREMENT and DECREMENT. The ttl counts only when an increment yields 1: that is a counter's first hit."""
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    current = _integer(entry)
    if isinstance(current, Refusal):
        return current
    result = current + delta
    if not MIN_INT64 <= result <= MAX_INT64:
        return Refusal(f"the counter is at {current} and cannot leave the range of 64-bit integers")
    expires_ms = entry.expires_ms if entry is not None else None
    if delta > 0 and result == 1 and ttl_s > 0:
        expires_ms = slot.expiry(ttl_s)
    full = yield from _write(slot, old, b"%d" % result, expires_ms)
    return full or Outcome(counter=result, applied=True)


def add_within(slot: Slot, delta: int, guard: int, ttl_s: int) -> Program[Outcome | Refusal]:
    """INCREMENT_IF (result at most `guard`) and DECREMENT_IF (at least). The ttl counts when the key was absent.

    A guard is itself a 64-bit integer, so a result that passes it cannot overflow.
    """
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    current = _integer(entry)
    if isinstance(current, Refusal):
        return current
    result = current + delta
    if result > guard if delta > 0 else result < guard:
        return Outcome(counter=current, applied=False)
    expires_ms = slot.expiry(ttl_s) if entry is None else entry.expires_ms
    full = yield from _write(slot, old, b"%d" % result, expires_ms)
    return full or Outcome(counter=result, applied=True)


def set_add(slot: Slot, member: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    """Add a member; the counter is the set's size. The ttl is renewed only by a member that is new."""
    old = yield from _stored(slot)
    entry = old if old is not None and old.is_live(slot.now_ms) else None
    if entry is not None and not entry.is_set:
        return _IS_NOT_SET
    units = units_of(slot.key, member)
    items, more = (1, units) if old is None or entry is not None else (1 - old.items, units - old.units)
    # A member that is there already adds nothing: it is looked for only if there were no room for it.
    if not (yield from fits(slot.space, items, more, slot.quota)):
        found = entry is not None and (
            yield Fetch(
                "SELECT 1 FROM kv_members WHERE space = $1 AND key = $2 AND member = $3",
                (slot.space, slot.key, member),
            )
        )
        return Outcome(counter=entry.items, applied=False) if entry is not None and found else _full(slot)
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
        return Outcome(counter=size, applied=False)
    yield Execute(
        "UPDATE kv_entries SET members = $3, units = units + $5, expires_ms = coalesce($4, expires_ms) "
        "WHERE space = $1 AND key = $2",
        (slot.space, slot.key, size + 1, slot.expiry(ttl_s), units),
    )
    yield from change(slot.space, 1, units, UNLIMITED)
    return Outcome(counter=size + 1, applied=True)


def set_size(slot: Slot) -> Program[Outcome | Refusal]:
    entry = yield from _live(slot)
    if entry is None:
        return _DONE
    return _IS_NOT_SET if entry.members is None else Outcome(counter=entry.members)


def _stored(slot: Slot) -> Program[_Entry | None]:
    """What is there, expired or not."""
    rows = yield Fetch(_SELECT, (slot.space, slot.key))
    return _Entry(*rows[0]) if rows else None


def _live(slot: Slot) -> Program[_Entry | None]:
    entry = yield from _stored(slot)
    return entry if entry is not None and entry.is_live(slot.now_ms) else None


def _write(slot: Slot, old: _Entry | None, value: bytes, expires_ms: int | None) -> Program[Refusal | None]:
    """Replace the entry, if there is room. A set in its place goes first, so that its members go with it."""
    units = units_of(slot.key, value)
    items, more = (1, units) if old is None else (1 - old.items, units - old.units)
    if not (yield from change(slot.space, items, more, slot.quota)):
        return _full(slot)
    if old is not None and old.is_set:
        yield Execute(_DELETE, (slot.space, slot.key))
    yield Execute(_UPSERT, (slot.space, slot.key, value, expires_ms, units))
    return None


def _delete(slot: Slot, old: _Entry | None) -> Program[None]:
    if old is not None:
        yield Execute(_DELETE, (slot.space, slot.key))
        yield from change(slot.space, -old.items, -old.units, UNLIMITED)


def _full(slot: Slot) -> Refusal:
    return Refusal(f"this scope holds all that it may: {slot.quota}; delete keys first", quota=True)


def _integer(entry: _Entry | None) -> int | Refusal:
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
