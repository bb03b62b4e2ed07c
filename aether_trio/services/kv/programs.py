"""Performs operations on single keys in one transaction.

A program reads the entry, decides (entries.py), and writes. Each change of a space is counted
(usage.py), so a space never has more than its quota. A refused operation has written nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from aether_trio.services.kv.cache import Change, Name
from aether_trio.services.kv.changes import KeyWatch
from aether_trio.services.kv.entries import (
    UNKNOWN,
    AddMember,
    Decision,
    Entry,
    KvOutcome,
    Result,
    Slot,
    Unknown,
    full,
    live,
)
from aether_trio.services.kv.usage import UNLIMITED, Quota, change, fits, units_of
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row, Statement

_SELECT: Final = "SELECT value, members, expires_ms, units FROM kv_entries WHERE space = $1 AND key = $2"
_DELETE: Final = "DELETE FROM kv_entries WHERE space = $1 AND key = $2"
_UPSERT: Final = (
    "INSERT INTO kv_entries (space, key, value, expires_ms, units) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms, units = excluded.units"
)

Operation: TypeAlias = Callable[[Slot, Entry | None, Any], Decision]
"""What an operation decides about a key's entry, with the parameters of a request."""

Performed: TypeAlias = tuple[Result, Entry | None]
"""What an operation returns, and the entry that its key then has."""


class KeyRequest(Slot):
    """One operation on one key."""

    __slots__ = ("_operation", "_parameters", "change", "name", "watch", "writes")

    def __init__(
        self,
        space: bytes,
        key: bytes,
        now_ms: int,
        quota: Quota,
        operation: Operation,
        parameters: Any,
        *,
        writes: bool,
        watch: KeyWatch | None = None,
    ) -> None:
        self.watch = watch
        """The events that are wanted of its key, if any."""
        self.space = space
        self.key = key
        self.now_ms = now_ms
        self.quota = quota
        self._operation = operation
        self._parameters = parameters
        self.name: Name = (space, key)
        self.writes = writes
        """Whether it may write."""
        self.change: Change | None = None

    def decide(self, old: Entry | None) -> Decision:
        """Decide what the key's entry becomes."""
        return self._operation(self, old, self._parameters)

    def known(self) -> Entry | Unknown | None:
        """Return what the key has now that its program runs, if that is known."""
        return UNKNOWN if self.change is None else self.change.known()


def stored(slot: Slot) -> Program[Entry | None]:
    """Return the entry of a key, which may have expired."""
    rows = yield Fetch(_SELECT, (slot.space, slot.key))
    return Entry(*rows[0]) if rows else None


def read(request: KeyRequest) -> Program[Performed]:
    """Perform an operation that writes nothing."""
    old = yield from stored(request)
    return request.decide(old)[0], old


def perform(requests: Sequence[KeyRequest]) -> Program[list[Performed]]:
    """Perform operations one after another, all in one transaction."""
    results: list[Performed] = []
    left: dict[Name, Entry | None] = {}
    rows: list[Row] = []  # entries to be written, all at once
    for request in requests:
        name = request.name
        old = left[name] if name in left else request.known()
        if isinstance(old, Unknown):
            old = yield from stored(request)
        outcome, new = request.decide(old)
        if new is not old:
            if isinstance(new, Entry) and old is not None and old.value is not None and new.units == old.units:
                rows.append((*name, new.value, new.expires_ms, new.units))
            else:
                if rows:
                    yield _upsert(rows)
                    rows = []
                if isinstance(new, AddMember):
                    outcome, new = yield from _add_member(request, old, new)
                elif not (yield from _replace(request, old, new)):
                    outcome, new = full(request), old
            if request.watch is not None and new is not old and not isinstance(new, AddMember):
                yield from request.watch.changed(new)
        left[name] = new
        results.append((outcome, new))
    if rows:
        yield _upsert(rows)
    return results


def _upsert(rows: list[Row]) -> Statement:
    return Execute(_UPSERT, rows[0]) if len(rows) == 1 else ExecuteMany(_UPSERT, rows)


def _replace(slot: Slot, old: Entry | None, new: Entry | None) -> Program[bool]:
    """Write an entry over another one, if the quota allows it, or delete it."""
    items, units = (0, 0) if new is None else (new.items, new.units)
    if old is not None:
        items, units = items - old.items, units - old.units
    if not (yield from change(slot.space, items, units, slot.quota)):
        return False
    if new is None or (old is not None and old.is_set):
        yield Execute(_DELETE, (slot.space, slot.key))
    if new is not None:
        yield Execute(_UPSERT, (slot.space, slot.key, new.value, new.expires_ms, new.units))
    return True


def _add_member(slot: Slot, old: Entry | None, new: AddMember) -> Program[Performed]:
    entry = live(slot, old)
    units = units_of(slot.key, new.member)
    items, more = (1, units) if old is None or entry is not None else (1 - old.items, units - old.units)
    # A member that is there already needs no room: it is read only if there is no room.
    if not (yield from fits(slot.space, items, more, slot.quota)):
        found = entry is not None and (
            yield Fetch(
                "SELECT 1 FROM kv_members WHERE space = $1 AND key = $2 AND member = $3",
                (slot.space, slot.key, new.member),
            )
        )
        if entry is None or not found:
            return full(slot), old
        return KvOutcome(counter=entry.items, applied=False), old
    if entry is None:
        if old is not None:  # an expired one, with its members
            yield from _replace(slot, old, None)
        yield Execute(
            "INSERT INTO kv_entries (space, key, members, expires_ms, units) VALUES ($1, $2, 0, NULL, 0)",
            (slot.space, slot.key),
        )
        entry = Entry(None, 0, None, 0)
    added = yield Execute(
        "INSERT INTO kv_members (space, key, member) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        (slot.space, slot.key, new.member),
    )
    if not added:
        return KvOutcome(counter=entry.items, applied=False), entry
    expires_ms = entry.expires_ms if new.expires_ms is None else new.expires_ms
    entry = Entry(None, entry.items + 1, expires_ms, entry.units + units)
    yield Execute(
        "UPDATE kv_entries SET members = $3, units = $5, expires_ms = $4 WHERE space = $1 AND key = $2",
        (slot.space, slot.key, entry.members, entry.expires_ms, entry.units),
    )
    yield from change(slot.space, 1, units, UNLIMITED)
    return KvOutcome(counter=entry.items, applied=True), entry
