"""Remembers the entries of recently used keys, where no other process writes.

Only committed entries are remembered. An entry is known from a read, or from a write that was
committed. It is unknown again after a write whose outcome is not known here.

Invariants, for a database that runs programs in the order in which they were given to it:

* `EntryCache.entry` is what a read that begins now would find, or UNKNOWN;
* `Change.known` is what its program finds, or UNKNOWN. Another write of the key that begins before
  this one runs makes it UNKNOWN, because the two may reach the database in either order;
* of several writes of one key the last one to run counts, in whatever order their callers hear of
  them: a program takes a stamp when it runs (`stamp`), and a later one when it runs again;
* what is remembered stays within `max_bytes`, not counting keys that are being written.

Programs may run in another thread. They call only `stamp` and `Change.known`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Final, NamedTuple, TypeAlias

from aether_trio.services.kv.entries import UNKNOWN, Entry, Unknown

Name: TypeAlias = tuple[bytes, bytes]
"""The name of a key in the database: (space, key)."""

CACHE_BYTES: Final = 16 * 1024 * 1024
CACHED_VALUE_BYTES: Final = 16 * 1024
"""The longest value that is remembered: a longer one costs more to send than to read."""
RECORD_BYTES: Final = 512
"""What a remembered key takes without its key and value, rounded up."""


class Remembered:
    """What is known of one key."""

    __slots__ = ("begun", "entry", "settled", "size", "writes")

    def __init__(self, size: int) -> None:
        self.entry: Entry | Unknown | None = UNKNOWN
        self.size = size
        self.writes = 0
        """Writes that have begun and not ended."""
        self.begun = 0
        """The number of the last write that has begun."""
        self.settled = 0
        """The stamp of the last write to run of those that are committed."""


class Change:
    """One write of a key, from before the database gets its program to its end."""

    __slots__ = ("_before", "_cache", "name", "number", "record")

    def __init__(self, cache: EntryCache, name: Name, record: Remembered, number: int) -> None:
        self._cache = cache
        self._before = UNKNOWN if record.writes > 1 or cache.deletions else record.entry
        self.name = name
        self.record = record
        self.number = number

    def known(self) -> Entry | Unknown | None:
        """Return what the key has when the write's program begins, if that is known."""
        if self.record.begun == self.number and self._cache.last_deletion < self.number:
            return self._before
        return UNKNOWN


class Reading(NamedTuple):
    """One read of a key from the database, and what was going on when it began."""

    name: Name
    record: Remembered | None
    """None: what is read is not to be remembered."""
    begun: int
    last_deletion: int
    last_lost: int


class EntryCache:
    """Remembers the entries of keys. For one thread, but for what programs call."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._records: OrderedDict[Name, Remembered] = OrderedDict()
        self._max_bytes = max_bytes
        self._numbers = 0
        self._stamps = count(1)
        self._last_ended = 0
        """The highest number of a write that was committed."""
        self._last_lost = -1
        """Writes up to this number may take effect without a caller that hears of it."""
        self._deletion_stamp = 0
        """The stamp of the last deletion of many keys that is committed."""
        self.size = 0
        """How many bytes the remembered keys take, by estimate."""
        self.deletions = 0
        """Deletions of many keys that have begun and not ended."""
        self.last_deletion = 0
        """The number of the last deletion of many keys that has begun."""

    def stamp(self) -> int:
        """Return a number above all before it, for a program that runs now."""
        return next(self._stamps)

    # -- reads -------------------------------------------------------------------------------------

    def entry(self, name: Name) -> Entry | Unknown | None:
        """Return the committed entry of a key, if it is known and not being written.

        During a write the database has to be asked: a read from it, of another key or a LIST, may
        have found the write already, and a later GET must not answer with the older entry.
        """
        record = self._records.get(name)
        if record is None:
            return UNKNOWN
        self._records.move_to_end(name)
        if record.writes or self.deletions:
            return UNKNOWN
        return record.entry

    def begin_read(self, name: Name) -> Reading:
        """Note that a key whose entry is unknown is about to be read from the database."""
        record: Remembered | None
        record = self._record(name)
        if record.writes or self.deletions or self._last_ended <= self._last_lost:
            # The read may find what is committed and not durable, and may never be.
            record = None
        return Reading(name, record, 0 if record is None else record.begun, self.last_deletion, self._last_lost)

    def end_read(self, reading: Reading, entry: Entry | None) -> None:
        """Remember what was read, unless a write may have overtaken the read."""
        record = reading.record
        if (
            record is not None
            and self._records.get(reading.name) is record
            and isinstance(record.entry, Unknown)
            and record.begun == reading.begun
            and self.last_deletion == reading.last_deletion
            and self._last_lost == reading.last_lost
        ):
            self._remember(reading.name, record, entry)

    # -- writes ------------------------------------------------------------------------------------

    def begin_write(self, name: Name) -> Change:
        """Note that a program which may write a key is about to be given to the database."""
        record = self._record(name)
        self._numbers = number = self._numbers + 1
        record.writes += 1
        change = Change(self, name, record, number)
        record.begun = number
        return change

    def committed(self, change: Change, stamp: int, entry: Entry | None) -> None:
        """Note that a write is committed, and what its program left for the key."""
        record = change.record
        record.writes -= 1
        number = change.number
        self._last_ended = max(self._last_ended, number)
        if stamp > record.settled:
            record.settled = stamp
            certain = number > self._last_lost and stamp > self._deletion_stamp
            self._remember(change.name, record, entry if certain else UNKNOWN)

    def abandoned(self, change: Change) -> None:
        """Note that a write left no trace in the database."""
        change.record.writes -= 1

    def lost(self, change: Change) -> None:
        """Note that a write may have taken effect, or may do so later."""
        change.record.writes -= 1
        change.record.entry = UNKNOWN
        self._last_lost = self._numbers

    # -- deletions of many keys --------------------------------------------------------------------

    def begin_deletion(self) -> None:
        """Note that a program that deletes many keys is about to be given to the database."""
        self._numbers += 1
        self.last_deletion = self._numbers
        self.deletions += 1

    def deleted(self, stamp: int, names: Iterable[Name]) -> None:
        """Note that a deletion is committed, and what it deleted."""
        self.deletions -= 1
        self._deletion_stamp = max(self._deletion_stamp, stamp)
        for name in names:
            record = self._records.get(name)
            if record is not None:
                record.entry = UNKNOWN

    def deletion_lost(self) -> None:
        """Note that a deletion has failed, or may have taken effect, or may do so later."""
        self.deletions -= 1
        self._last_lost = self._numbers
        for record in self._records.values():
            record.entry = UNKNOWN

    # -- room --------------------------------------------------------------------------------------

    def _record(self, name: Name) -> Remembered:
        record = self._records.get(name)
        if record is None:
            size = RECORD_BYTES + len(name[0]) + len(name[1])
            self._records[name] = record = Remembered(size)
            self.size += size
            if self.size > self._max_bytes:
                self._make_room(record)
        return record

    def _remember(self, name: Name, record: Remembered, entry: Entry | Unknown | None) -> None:
        size = RECORD_BYTES + len(name[0]) + len(name[1])
        if isinstance(entry, Entry) and entry.value is not None:
            if len(entry.value) <= CACHED_VALUE_BYTES:
                size += len(entry.value)
            else:
                entry = UNKNOWN
        record.entry = entry
        if size != record.size:
            self.size += size - record.size
            record.size = size
            if self.size > self._max_bytes:
                self._make_room(record)

    def _make_room(self, kept: Remembered) -> None:
        """Forget the keys that were not used for the longest time."""
        records = self._records
        for _ in range(len(records)):
            if self.size <= self._max_bytes:
                return
            name, record = records.popitem(last=False)
            if record.writes or record is kept:
                records[name] = record
            else:
                self.size -= record.size
