"""Knows in memory which names have no row, so that no read has to find nothing.

A client that connects asks for rows that mostly do not exist: exclusive keys, a start of its
agent, its topic. Where this process alone writes, it knows most of the names without a row:

    load: all names of the table ──▶ bits ◀── add: before a name's first row is written

Invariant: a name with a row, or whose row may be committed, is never called absent. Before all
names are loaded, and for ever where other processes write, every name may exist. A name stays after
its row is deleted, and two names may share their bits: both cost a read that finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from aether_trio.storage.base import Database, Program
from aether_trio.storage.retry import retry_while_unavailable

BITS: Final = 1 << 23
"""A MiB, of which the kernel gives what is used. Of a million names 1 absent one in 20 is read."""
PAGE: Final = 1000
"""Names that are read at once: the event loop waits a millisecond for them."""

Name = TypeVar("Name", str, bytes)


class ExistingNames(Generic[Name]):
    """The names that may have rows; bounded in memory, however many there are."""

    __slots__ = ("_bits", "_complete", "_lock")

    def __init__(self) -> None:
        self._bits = bytearray(BITS // 8)
        self._complete = False
        self._lock = Lock()

    def may_exist(self, name: Name) -> bool:
        """Return whether a name may have a row; False is certain. Any thread."""
        if not self._complete:
            return True
        bits, hashed = self._bits, hash(name)
        first, second = hashed % BITS, hashed // BITS % BITS
        return bool(bits[first >> 3] >> (first & 7) & 1 and bits[second >> 3] >> (second & 7) & 1)

    def add(self, name: Name) -> None:
        """Note that a row of this name is about to be written. Any thread. Idempotent."""
        bits, hashed = self._bits, hash(name)
        first, second = hashed % BITS, hashed // BITS % BITS
        with self._lock:  # programs of a database run in its thread, and two may share a byte
            bits[first >> 3] |= 1 << (first & 7)
            bits[second >> 3] |= 1 << (second & 7)

    async def load(
        self, database: Database, page: Callable[[Name, int], Program[list[Name]]], start: Name, what: str, logger: Any
    ) -> None:
        """Read all names behind `start`; return at once where other processes write too.

        `page(after, count)` reads the next names in their order. While storage is unavailable it
        tries again, and logs `what` it cannot read.
        """
        if database.shared:
            return
        after: Name | None = start
        while after is not None:
            read = partial(page, after, PAGE)
            names = await retry_while_unavailable(partial(database.read, read), what, logger)
            for name in names:
                self.add(name)
            after = names[-1] if names else None
        self._complete = True
