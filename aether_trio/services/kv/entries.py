"""Decides what a key-value operation does with the entry of its key.

A decision is (outcome, entry that the key then has). An entry that is the old one itself, by
identity, means that nothing is written. "Live" means not expired at `now_ms`: an expired entry that
the sweep has not reached is absent everywhere, and overwritten in place. Counters are the canonical
decimal text of a signed 64-bit integer.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from aether_trio.services.kv.usage import Quota, units_of

MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)
MAX_EXPIRES_MS: Final = 2**62  # a later end would overflow the column; it is as good as none


class Slot:
    """One key of one space of the key-value store, at one moment."""

    __slots__ = ("key", "now_ms", "quota", "space")

    def __init__(self, space: bytes, key: bytes, now_ms: int, quota: Quota) -> None:
        self.space = space
        self.key = key
        self.now_ms = now_ms
        self.quota = quota

    def expiry(self, ttl_s: int) -> int | None:
        """Return when a key written now with this ttl expires; None for 0 and less."""
        return min(self.now_ms + ttl_s * 1000, MAX_EXPIRES_MS) if ttl_s > 0 else None


class KvOutcome(NamedTuple):
    """The result of a key-value operation; fields that it does not use stay empty."""

    value: bytes = b""
    counter: int = 0
    applied: bool = False


class KvRefusal(NamedTuple):
    """Why a key-value operation did nothing; `quota`: because the space is full."""

    reason: str
    quota: bool = False


class Entry(NamedTuple):
    """What is stored for a key: a value, or a set with this number of members."""

    value: bytes | None
    members: int | None
    expires_ms: int | None
    units: int

    @property
    def is_set(self) -> bool:
        return self.members is not None

    @property
    def items(self) -> int:
        """How many items of the space's quota it takes."""
        return 1 if self.members is None else self.members


class AddMember(NamedTuple):
    """A decision that only the database can complete: a member that a set may have."""

    member: bytes
    expires_ms: int | None
    """The new end of the set's life if the member is new; None leaves it."""


class Unknown:
    """Stands for the entry of a key that is not known without the database."""


UNKNOWN: Final = Unknown()


Result: TypeAlias = KvOutcome | KvRefusal
Decision: TypeAlias = tuple[Result, Entry | AddMember | None]

DONE: Final = KvOutcome()
_APPLIED: Final = KvOutcome(applied=True)
_IS_SET: Final = KvRefusal("this key has a set as its value, not bytes")
_IS_NOT_SET: Final = KvRefusal("this key has bytes as its value, not a set")
_IS_NOT_INTEGER: Final = KvRefusal("the value of this key is not a 64-bit integer")


def live(slot: Slot, entry: Entry | None) -> Entry | None:
    """Return the entry, or None if it has expired."""
    if entry is None or entry.expires_ms is None or entry.expires_ms > slot.now_ms:
        return entry
    return None


def get(slot: Slot, old: Entry | None) -> Decision:
    """Return the value of a key; an absent key has an empty value."""
    entry = live(slot, old)
    if entry is None:
        return DONE, old
    return (_IS_SET if entry.value is None else KvOutcome(entry.value)), old


def set_size(slot: Slot, old: Entry | None) -> Decision:
    """Return how many members a key's set has; an absent key has none."""
    entry = live(slot, old)
    if entry is None:
        return DONE, old
    return (_IS_NOT_SET if entry.members is None else KvOutcome(counter=entry.members)), old


def put(slot: Slot, value: bytes, ttl_s: int) -> Decision:
    """Write a key over its value or set. Without a ttl the key does not expire."""
    return DONE, _entry(slot, value, slot.expiry(ttl_s))


def delete() -> Decision:
    """Delete a key, with its value or set."""
    return DONE, None


def set_if_absent(slot: Slot, old: Entry | None, value: bytes, ttl_s: int) -> Decision:
    """Write a key that is absent."""
    if live(slot, old) is not None:
        return DONE, old
    return _APPLIED, _entry(slot, value, slot.expiry(ttl_s))


def compare_and_set(slot: Slot, old: Entry | None, expected: bytes, value: bytes, ttl_s: int) -> Decision:
    """Write a key if its live value is `expected`, else return the live value."""
    why_not = _unexpected(slot, old, expected)
    return (_APPLIED, _entry(slot, value, slot.expiry(ttl_s))) if why_not is None else (why_not, old)


def compare_and_delete(slot: Slot, old: Entry | None, expected: bytes) -> Decision:
    """Delete a key if its live value is `expected`, else return the live value."""
    why_not = _unexpected(slot, old, expected)
    return (_APPLIED, None) if why_not is None else (why_not, old)


def add(slot: Slot, old: Entry | None, delta: int, ttl_s: int) -> Decision:
    """Add to a counter: INCREMENT and DECREMENT of the key-value store."""
    entry = live(slot, old)
    current = _integer(entry)
    if isinstance(current, KvRefusal):
        return current, old
    result = current + delta
    if not MIN_INT64 <= result <= MAX_INT64:
        return KvRefusal(f"the counter is at {current} and cannot leave the range of 64-bit integers"), old
    expires_ms = entry.expires_ms if entry is not None else None
    if delta > 0 and result == 1 and ttl_s > 0:  # a counter's first hit
        expires_ms = slot.expiry(ttl_s)
    return KvOutcome(counter=result, applied=True), _entry(slot, b"%d" % result, expires_ms)


def add_within(slot: Slot, old: Entry | None, delta: int, guard: int, ttl_s: int) -> Decision:
    """Add to a counter up to `guard` (INCREMENT_IF) or down to it (DECREMENT_IF)."""
    entry = live(slot, old)
    current = _integer(entry)
    if isinstance(current, KvRefusal):
        return current, old
    result = current + delta
    if result > guard if delta > 0 else result < guard:  # so the result has 64 bits
        return KvOutcome(counter=current, applied=False), old
    expires_ms = slot.expiry(ttl_s) if entry is None else entry.expires_ms
    return KvOutcome(counter=result, applied=True), _entry(slot, b"%d" % result, expires_ms)


def set_add(slot: Slot, old: Entry | None, member: bytes, ttl_s: int) -> Decision:
    """Add a member to a key's set; return the set's size. A new member renews the ttl."""
    entry = live(slot, old)
    if entry is not None and not entry.is_set:
        return _IS_NOT_SET, old
    return DONE, AddMember(member, slot.expiry(ttl_s))


def full(slot: Slot) -> KvRefusal:
    """Make the refusal of a write for which the space has no room."""
    return KvRefusal(f"this scope is full: its quota is {slot.quota}; delete keys first", quota=True)


def _entry(slot: Slot, value: bytes, expires_ms: int | None) -> Entry:
    return Entry(value, None, expires_ms, units_of(slot.key, value))


def _unexpected(slot: Slot, old: Entry | None, expected: bytes) -> Result | None:
    """Return None if the live value is `expected`, else the comparison's outcome."""
    entry = live(slot, old)
    if entry is None:
        return DONE
    if entry.value is None:
        return _IS_SET
    return None if entry.value == expected else KvOutcome(entry.value)


def _integer(entry: Entry | None) -> int | KvRefusal:
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
