"""Writes audit events: those of changes in their transaction, others in batches.

    put(event) ──▶ queue ──▶ batch of 100 rows, or what came within a second ──▶ a transaction

Invariants: `put` never waits. An event is in the database, or counted: what does not fit into the
queue, because the database does not take what is in it, is counted and becomes one row
`audit_gap` with the count, which is a leaf of the tree like every row. A batch is written once,
also when the database did not say whether it was. Rows of one process are in the order of `put`.

What was put within the last second before a crash is lost; `audit_started` without an
`audit_stopped` before it says that there was one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.model.audit import AuditEvent, AuditRecord, EventType, record_of
from aether_trio.model.clock import Clock
from aether_trio.services.audit.trees import AUDIT_LOG, AuditTree, append, append_records
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.partitions import UNLIMITED_S, PartitionKeeper
from aether_trio.storage.retry import RETRY_DELAY_S

__all__ = ["AuditPolicy", "AuditStatistics", "AuditWriter", "append"]

logger = structlog.get_logger("aether.audit")

BATCH_ROWS: Final = 100
MAX_BATCH_ROWS: Final = 1000
"""A batch behind an outage is larger."""
BATCH_S: Final = 1.0
WRITABLE_S: Final = 1.5
"""How long a login waits for an audit log that could not be written a moment ago."""
QUEUE_BYTES: Final = 64 * 1024 * 1024
UNLIMITED_MS: Final = int(UNLIMITED_S * 1000)


@dataclass(frozen=True, slots=True)
class AuditPolicy:
    """Which events are written, and how much of them.

    `sizes` and `content`: with sizes of values and messages, with the begin of payloads.
    """

    event_types: frozenset[EventType] = frozenset(EventType)
    sizes: bool = False
    content: bool = False


@dataclass(frozen=True, slots=True)
class _Gap:
    """Events that are not in the log, and when the first and last of them happened."""

    count: int
    first_ms: int
    last_ms: int

    def __add__(self, other: _Gap | None) -> _Gap:
        if other is None:
            return self
        first_ms, last_ms = min(self.first_ms, other.first_ms), max(self.last_ms, other.last_ms)
        return _Gap(self.count + other.count, first_ms, last_ms)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """What one transaction writes: queued records, and a row for the gap before them."""

    number: int
    records: Sequence[AuditRecord]
    gap: _Gap | None


@dataclass(frozen=True, slots=True)
class AuditStatistics:
    """The counters of an audit writer since the start; `failing` as its attribute."""

    written: int
    lost: int
    waiting: int
    queue_bytes: int
    """About the memory of the events that wait."""
    gaps: int
    """Rows `audit_gap`, each of which stands for lost events."""
    failing: bool


class AuditWriter:
    """Queues the audit events of one node and appends them to its tree.

    `first_batch` is a number that no earlier process used, such as the time. On PostgreSQL the
    writer makes the partitions of `partition_ms` that rows need, before they need them.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tree: AuditTree,
        policy: AuditPolicy,
        *,
        first_batch: int,
        partition_ms: int = UNLIMITED_MS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        # Its transactions wait for those of changes, and do not fail them.
        self._database = database.separate_queue(locking=True)
        self._clock = clock
        self._partition_ms = partition_ms
        self._partitions = (
            [PartitionKeeper(self._database, AUDIT_LOG, partition_ms) for _ in range(2)] if database.shared else []
        )
        self.tree = tree
        self.policy = policy
        self._queue_bytes = queue_bytes
        self._queue: deque[AuditRecord] = deque()
        self._batch: RowBatch | None = None
        self._bytes = 0
        self._gap: _Gap | None = None
        self._gaps = 0
        self._number = first_batch
        self._added = AutoResetEvent()
        self._hurry = AutoResetEvent()
        self._progress = RepeatedEvent()
        self._put = self._done = 0
        self.written = 0
        """Rows of batches that are in the database."""
        self.lost = 0
        """Events that became part of a gap since the start."""
        self.failing = False
        """Whether rows cannot be written now: logins and changes are to be refused."""

    def writes(self, event_type: EventType) -> bool:
        """Whether events of this type are written at all."""
        return event_type in self.policy.event_types

    def put(self, event: AuditEvent) -> None:
        """Queue an event to be written soon, if its type is enabled. Never waits."""
        self.offer(event)

    def offer(self, event: AuditEvent) -> bool:
        """Do as `put` does; return False if the event is counted as lost instead."""
        if not self.writes(event.event_type):
            return True
        record = record_of(event)
        if self._bytes + record.size > self._queue_bytes:
            self._lose(_Gap(1, record.at_ms, record.at_ms))
            return False
        self._bytes += record.size
        self._queue.append(record)
        self._put += 1
        self._added.set()
        if len(self._queue) >= BATCH_ROWS:
            self._hurry.set()
        return True

    def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[list[int]]:
        """Write the events of a change in its transaction, whatever types are enabled."""
        return append(self.tree.origin, events, now_ms)

    def _lose(self, gap: _Gap) -> None:
        if self._gap is None:
            logger.error("audit events are lost, and will be one row with their count")
        self._gap = gap + self._gap
        self.lost += gap.count
        self._added.set()

    @property
    def waiting(self) -> int:
        """The number of events that are not in the database yet."""
        return len(self._queue) + (len(self._batch.records) if self._batch is not None else 0)

    def statistics(self) -> AuditStatistics:
        """Return the counters, for metrics."""
        return AuditStatistics(self.written, self.lost, self.waiting, self._bytes, self._gaps, self.failing)

    async def flush(self) -> None:
        """Wait until all events that are queued now are written, or counted as lost."""
        wanted = self._put
        while self._done < wanted:
            self._hurry.set()
            await self._progress.wait()

    async def wait_writable(self, timeout_s: float = WRITABLE_S) -> bool:
        """Whether rows can be written, now or within a short time."""
        if self.failing:
            with trio.move_on_after(timeout_s):
                while self.failing:
                    await self._progress.wait()
        return not self.failing

    async def flush_within(self, timeout_s: float) -> bool:
        """Wait for `flush` at most so long; return whether all is written."""
        with trio.move_on_after(timeout_s) as limit:
            await self.flush()
        return not limit.cancelled_caught

    async def run(self) -> None:
        """Write queued events until cancelled."""
        while True:
            if not self._queue and self._batch is None and self._gap is None:
                await self._added.wait()
                continue
            if not self.failing and len(self._queue) < BATCH_ROWS:
                with trio.move_on_after(BATCH_S):
                    await self._hurry.wait()
            try:
                await self.write_batch()
            except StorageUnavailable as error:
                if not self.failing:
                    logger.error("the audit log cannot be written", reason=str(error))
                self.failing = True
                await trio.sleep(RETRY_DELAY_S)

    async def prepare(self) -> None:
        """Make the partitions for now and the time after it. Raises StorageUnavailable."""
        now_ms = self._clock.now_ms()
        for ahead, keeper in enumerate(self._partitions):
            await keeper.ensure(now_ms + ahead * self._partition_ms)

    async def write_batch(self) -> None:
        """Write one batch. Raises StorageUnavailable; the next call writes it then."""
        batch = self._batch
        if batch is None:
            self._number += 1
            count = min(len(self._queue), MAX_BATCH_ROWS)
            batch = self._batch = RowBatch(self._number, [self._queue.popleft() for _ in range(count)], self._gap)
            self._gap = None
        records = batch.records if batch.gap is None else [*batch.records, self._gap_record(batch.gap)]
        await self.prepare()
        now_ms = self._clock.now_ms()
        try:
            await self._database.run(lambda: _write_once(self.tree.origin, records, batch.number, now_ms))
        except StorageUnavailable:
            for keeper in self._partitions:
                keeper.doubt()
            raise
        except Exception:
            # A defect of these rows, or of the tree: what is behind them must not wait for ever.
            logger.exception("audit rows were refused and are lost", rows=len(records), tree=self.tree.origin)
            self._finish(batch)
            if batch.gap is not None:
                self._gap = batch.gap + self._gap
            if batch.records:
                times = [record.at_ms for record in batch.records]
                self._lose(_Gap(len(times), min(times), max(times)))
            self.failing = True
            await trio.sleep(RETRY_DELAY_S)
            return
        self.written += len(records)
        self._gaps += batch.gap is not None
        if self.failing:
            logger.info("the audit log is written again")
        self.failing = False
        self._finish(batch)

    def _finish(self, batch: RowBatch) -> None:
        self._bytes -= sum(record.size for record in batch.records)
        self._batch = None
        self._done += len(batch.records)
        self._progress.set()

    def _gap_record(self, gap: _Gap) -> AuditRecord:
        return record_of(
            AuditEvent(
                at_ms=gap.last_ms,
                event_type=EventType.ADMIN,
                operation="audit_gap",
                resource_type="audit_tree",
                resource_id=self.tree.origin,
                success=False,
                error_message=f"{gap.count} events are not in the log",
                metadata={"count": gap.count, "from_ms": gap.first_ms, "to_ms": gap.last_ms},
            )
        )


def _write_once(origin: str, records: Sequence[AuditRecord], batch: int, now_ms: int) -> Program[None]:
    """Append a batch, unless it is the one that was written last."""
    rows: list[Row] = yield Fetch("SELECT batch FROM audit_trees WHERE origin = $1", (origin,))
    if rows and rows[0][0] == batch:
        return
    yield from append_records(origin, records, now_ms)
    yield Execute("UPDATE audit_trees SET batch = $2 WHERE origin = $1", (origin, batch))
