"""Collect many small writes into few transactions.

    put(item) ──▶ queue ──▶ group of at most `max_group` ──▶ write(group) ──▶ on_written(item)

While one group is being written, the next one gathers.

Invariants: items are written in the order of `put`; no item is lost while storage is unavailable,
as its group is written again; an item that storage refuses costs no other item of its group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.batcher")

T = TypeVar("T")

MAX_GROUP: Final = 64


class Batcher(Generic[T]):
    """Writes items in groups, in the order in which they were put.

    `await write(group)` writes all of a group or nothing. When it raises StorageUnavailable, the
    group is written again after RETRY_DELAY_S. When it raises any other exception, the items of the
    group are written one by one, and an item that fails alone is logged and given up.
    `on_written(item)` is called for each item that is written or given up; it may not raise. `what`
    names the items in the log.
    """

    def __init__(
        self,
        what: str,
        write: Callable[[Sequence[T]], Awaitable[object]],
        on_written: Callable[[T], object] = lambda item: None,
        *,
        max_group: int = MAX_GROUP,
    ) -> None:
        self._what = what
        self._write = write
        self._on_written = on_written
        self._max_group = max_group
        self._queue: deque[T] = deque()
        self._group: Sequence[T] = ()
        self._put = self._written = 0
        self.failures = 0
        """How many writes have failed because storage was unavailable."""
        self.unavailable = False
        """Whether storage was unavailable at the latest write."""
        self._late = False
        """Whether a `flush_within` ran out of time, and the queue has not been empty since."""
        self._added = AutoResetEvent()
        self._progress = RepeatedEvent()

    def __len__(self) -> int:
        """Return the number of queued items, without the group being written."""
        return len(self._queue)

    @property
    def unwritten(self) -> Iterator[T]:
        """Iterate over the items that are not written: the current group, then the queue."""
        yield from self._group
        yield from self._queue

    def put(self, item: T) -> int:
        """Queue an item; return its number, for `wait_written`. Never blocks."""
        self._queue.append(item)
        self._put += 1
        self._added.set()
        return self._put

    def is_written(self, number: int) -> bool:
        """Return whether the item with this number is written or given up."""
        return number <= self._written

    async def wait_written(self, number: int) -> None:
        """Wait until the item with this number is written or given up."""
        while number > self._written:
            await self._progress.wait()

    async def flush(self) -> None:
        """Wait until all items that are queued now are written or given up."""
        await self.wait_written(self._put)

    async def flush_within(self, timeout_s: float) -> bool:
        """Wait for `flush` at most `timeout_s`; return whether all items are written.

        After a call that ran out of time, later calls return False at once until the queue has been
        empty: a write may stall for minutes, and each caller would wait the full time.
        """
        if not self._late:
            with trio.move_on_after(timeout_s) as limit:
                await self.flush()
            self._late = limit.cancelled_caught
        return not self._late

    async def run(self) -> None:
        """Write groups of queued items until cancelled."""
        while True:
            if not self._queue:
                self._late = False
                await self._added.wait()
                continue
            count = min(self._max_group, len(self._queue))
            group = self._group = [self._queue.popleft() for _ in range(count)]
            await self._write_group(group)
            for item in group:
                self._on_written(item)
            self._group = ()
            self._written += count
            self._progress.set()

    async def _write_group(self, group: Sequence[T]) -> None:
        try:
            await retry_while_unavailable(lambda: self._write(group), self._what, logger, on_failure=self._failed)
        except Exception:
            self.unavailable = False
            if len(group) == 1:
                logger.exception("the write named in `what` failed and is given up", what=self._what)
            else:
                logger.exception(
                    "the writes named in `what` failed; they are written one by one", what=self._what, items=len(group)
                )
                for item in group:
                    await self._write_group([item])
        self.unavailable = False

    def _failed(self) -> None:
        self.failures += 1
        self.unavailable = True
