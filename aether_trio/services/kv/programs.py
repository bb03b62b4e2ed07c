"""The operations on single keys, each one program: read what is there, decide, write, all in one transaction.

A program never raises for what a client did wrong; it returns a Refusal before it has written anything, so a refused
operation costs its commit group nothing. "Live" means not expired at `now_ms`: an expired row that the sweep has not
reached is treated as absent everywhere, and overwritten in place.

Counters are decimal text of a signed 64-bit integer, the canonical form only (what the operations themselves write).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.storage.base import Execute, Fetch, Program

MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)
MAX_EXPIRES_MS: Final = 2**62  # a ttl beyond it is no different from none, and must not overflow the column

_SELECT: Final = "SELECT value, members, expires_ms FROM kv_entries WHERE space = $1 AND key = $2"
_DELETE: Final = "DELETE FROM kv_entries WHERE space = $1 AND key = $2"
_DELETE_SET: Final = "DELETE FROM kv_entries WHERE space = $1 AND key = $2 AND members IS NOT NULL"
_UPSERT: Final = (
    "INSERT INTO kv_entries (space, key, value, expires_ms) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms"
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an operation works: one key of one space, at one moment."""

    space: bytes
    key: bytes
    now_ms: int

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
    """Why nothing was done: a sentence for the client."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes | None
    members: int | None
    expires_ms: int | None

    @property
    def is_set(self) -> bool:
        return self.members is not None


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
    yield from _write(slot, value, slot.expiry(ttl_s))
    return _DONE


def delete(slot: Slot) -> Program[Outcome | Refusal]:
    yield Execute(_DELETE, (slot.space, slot.key))
    return _DONE


def set_if_absent(slot: Slot, value: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    if (yield from _live(slot)) is not None:
        return Outcome(applied=False)
    yield from _write(slot, value, slot.expiry(ttl_s))
    return Outcome(applied=True)


def compare_and_set(slot: Slot, expected: bytes, value: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    """Write if the live value is `expected`; else answer with the live value. An absent key equals nothing."""
    entry = yield from _live(slot)
    if entry is None:
        return Outcome(applied=False)
    if entry.value is None:
        return _IS_SET
    if entry.value != expected:
        return Outcome(value=entry.value, applied=False)
    yield from _write(slot, value, slot.expiry(ttl_s))
    return Outcome(applied=True)


def compare_and_delete(slot: Slot, expected: bytes) -> Program[Outcome | Refusal]:
    entry = yield from _live(slot)
    if entry is None:
        return Outcome(applied=False)
    if entry.value is None:
        return _IS_SET
    if entry.value != expected:
        return Outcome(value=entry.value, applied=False)
    yield Execute(_DELETE, (slot.space, slot.key))
    return Outcome(applied=True)


def add(slot: Slot, delta: int, ttl_s: int) -> Program[Outcome | Refusal]:
    """INCREMENT and DECREMENT. The ttl counts only when an increment yields 1: that is a counter's first hit."""
    entry = yield from _live(slot)
    current = _integer(entry)
    if isinstance(current, Refusal):
        return current
    result = current + delta
    if not MIN_INT64 <= result <= MAX_INT64:
        return Refusal(f"the counter is at {current} and cannot leave the range of 64-bit integers")
    expires_ms = entry.expires_ms if entry is not None else None
    if delta > 0 and result == 1 and ttl_s > 0:
        expires_ms = slot.expiry(ttl_s)
    yield from _write(slot, b"%d" % result, expires_ms)
    return Outcome(counter=result, applied=True)


def add_within(slot: Slot, delta: int, guard: int, ttl_s: int) -> Program[Outcome | Refusal]:
    """INCREMENT_IF (result at most `guard`) and DECREMENT_IF (at least). The ttl counts when the key was absent.

    A guard is itself a 64-bit integer, so a result that passes it cannot overflow.
    """
    entry = yield from _live(slot)
    current = _integer(entry)
    if isinstance(current, Refusal):
        return current
    result = current + delta
    if result > guard if delta > 0 else result < guard:
        return Outcome(counter=current, applied=False)
    expires_ms = slot.expiry(ttl_s) if entry is None else entry.expires_ms
    yield from _write(slot, b"%d" % result, expires_ms)
    return Outcome(counter=result, applied=True)


def set_add(slot: Slot, member: bytes, ttl_s: int) -> Program[Outcome | Refusal]:
    """Add a member; the counter is the set's size. The ttl is renewed only by a member that is new."""
    entry = yield from _live(slot)
    if entry is not None and not entry.is_set:
        return _IS_NOT_SET
    if entry is None:
        yield Execute(_DELETE, (slot.space, slot.key))  # an expired one, with its members
        yield Execute(
            "INSERT INTO kv_entries (space, key, members, expires_ms) VALUES ($1, $2, 0, NULL)", (slot.space, slot.key)
        )
    added = yield Execute(
        "INSERT INTO kv_members (space, key, member) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        (slot.space, slot.key, member),
    )
    size = entry.members or 0 if entry is not None else 0
    if not added:
        return Outcome(counter=size, applied=False)
    yield Execute(
        "UPDATE kv_entries SET members = $3, expires_ms = coalesce($4, expires_ms) WHERE space = $1 AND key = $2",
        (slot.space, slot.key, size + 1, slot.expiry(ttl_s)),
    )
    return Outcome(counter=size + 1, applied=True)


def set_size(slot: Slot) -> Program[Outcome | Refusal]:
    entry = yield from _live(slot)
    if entry is None:
        return _DONE
    return _IS_NOT_SET if entry.members is None else Outcome(counter=entry.members)


def _live(slot: Slot) -> Program[_Entry | None]:
    rows = yield Fetch(_SELECT, (slot.space, slot.key))
    if not rows:
        return None
    entry = _Entry(*rows[0])
    return None if entry.expires_ms is not None and entry.expires_ms <= slot.now_ms else entry


def _write(slot: Slot, value: bytes, expires_ms: int | None) -> Program[None]:
    """Replace the entry. A set in its place goes first, so that its members go with it."""
    yield Execute(_DELETE_SET, (slot.space, slot.key))
    yield Execute(_UPSERT, (slot.space, slot.key, value, expires_ms))


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
