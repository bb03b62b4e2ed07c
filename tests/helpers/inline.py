"""A Database that works in the test's own thread, on either engine.

It can be held or made to fail. The real programs run on a real connection (direct.py), so nothing
happens behind the scheduler's back: a commit can be held at a gate, and the same data can be opened
by one core after another, as a restart does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import outcome
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import (
    Abandoned,
    CommitUnknown,
    Database,
    Fetch,
    ProgramFactory,
    Row,
    StorageUnavailable,
    Value,
    single,
)
from tests.helpers.direct import Direct, Store

T = TypeVar("T")


class Gate:
    """A place where callers can be made to wait."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self._arrived = trio.Event()
        self.waiting = 0

    def close(self) -> None:
        """Stop all callers from now on."""
        self._open = trio.Event()
        self._arrived = trio.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.waiting += 1
        self._arrived.set()
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1

    async def arrival(self) -> None:
        """Wait until a caller stands at the gate, since it was closed."""
        await self._arrived.wait()


@dataclass(frozen=True, slots=True)
class InlineStatistics:
    """The figures of an InlineDatabase: if it fails, and how many programs it ran."""

    failing: bool
    reads: int
    writes: int


class InlineDatabase(Database):
    """A Database that is driven in the caller's task. See the module docstring.

    `before_write` holds programs before they take effect, `after_write` between their commit and
    the answer, `after_read` between a read's snapshot and its answer. `failing` makes every program
    fail, `fail_writes` the next n writes. `denied_writes` of the next ones take effect and are
    reported as failed all the same, as when a disk reports an error for a commit that it has
    written; `unanswered_writes` of them are reported as CommitUnknown. `side` is what
    `separate_queue` returns: it has separate gates and failures, but `failing` counts for both.
    """

    def __init__(self, direct: Direct, main: InlineDatabase | None = None) -> None:
        self._direct = direct
        self._main = main or self
        self._side: InlineDatabase | None = None
        self.shared = direct.shared
        self.before_write = Gate()
        self.after_write = Gate()
        self.after_read = Gate()
        self._is_failing = False
        self._failed = AutoResetEvent()
        self.fail_writes = 0
        self.denied_writes = 0
        self.unanswered_writes = 0
        self.reads = 0
        self.writes = 0

    def renew(self) -> None:
        """Open all gates, for another trio run or another owner."""
        self.before_write, self.after_write, self.after_read = Gate(), Gate(), Gate()
        self._is_failing, self._failed = False, AutoResetEvent()
        self.fail_writes, self.denied_writes, self.unanswered_writes = 0, 0, 0
        self._side = None

    @property
    def side(self) -> InlineDatabase:
        if self._side is None:
            self._side = InlineDatabase(self._direct, self)
        return self._side

    def separate_queue(self, *, locking: bool = False) -> InlineDatabase:
        return self.side if self.shared else self

    async def run(self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None) -> T:
        await self.before_write.passed()
        self.writes += 1
        if self.failing or self._main.failing or self.fail_writes > 0:
            self.fail_writes -= 1
            raise StorageUnavailable("no room on this disk")
        result = self._direct.drive(program)
        if self.unanswered_writes > 0:
            self.unanswered_writes -= 1
            raise CommitUnknown("the connection was lost")
        if self.denied_writes > 0:
            self.denied_writes -= 1
            raise StorageUnavailable("disk I/O error")
        try:
            await self.after_write.passed()
        except trio.Cancelled:
            if abandoned is not None:
                abandoned(outcome.Value(result))
            raise
        return result

    async def read(self, program: ProgramFactory[T]) -> T:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if self.failing or self._main.failing:
            raise StorageUnavailable("this disk does not answer")
        result = self._direct.read(program)
        await self.after_read.passed()
        return result

    def query(self, sql: str, *args: Value) -> list[Row]:
        """Look into the database now, for assertions."""
        return self._direct.drive(lambda: single(Fetch(sql, args)))

    @property
    def failing(self) -> bool:
        return self._is_failing

    @failing.setter
    def failing(self, is_failing: bool) -> None:
        self._is_failing = is_failing
        if is_failing:
            self._failed.set()

    async def wait_failed(self) -> None:
        """Wait until a test has set `failing`."""
        await self._failed.wait()

    def statistics(self) -> InlineStatistics:
        """What metrics ask for."""
        return InlineStatistics(self.failing, self.reads, self.writes)


@contextmanager
def open_inline(store: Store, name: str) -> Iterator[InlineDatabase]:
    """Open one logical database in a separate place."""
    place = store.place()
    try:
        yield InlineDatabase(place.direct(name))
    finally:
        place.close()
