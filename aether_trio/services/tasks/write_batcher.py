"""Writes task changes for which no client waits: joins, leaves, progress reports.

They are written in order, many to a transaction (concurrency/batcher.py). Invariants: no mutation
is lost while storage is unavailable; MAX_WAITING and MAX_BYTES bound the memory, beyond which
progress is dropped, but never the begin or end of a session. No session has more than its SHARE of
these limits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from aether_trio.concurrency.batcher import MAX_GROUP, Batcher
from aether_trio.model.containment import report
from aether_trio.model.limits import MIB
from aether_trio.services.tasks.transaction.due import Heartbeat
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.storage.base import Program
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES, SessionWrites

MAX_WAITING: Final = 10_000
MAX_BYTES: Final = 32 * MIB
SHARE: Final = 10
"""One session may have a tenth of either limit."""
_NOTHING: Final = lambda: None  # noqa: E731


class _Queued(NamedTuple):
    """A queued change of tasks; it counts to the queue limit of `session_id`, if any."""

    mutation: Mutation
    on_written: Callable[[], object]
    pending: SessionWrites | None
    heartbeat: Heartbeat | None = None
    session_id: str = ""
    size: int = 0


class Backlog(NamedTuple):
    """The unwritten changes of tasks; `failed`: storage was unavailable meanwhile."""

    failed: bool
    size: int = 0
    heartbeats: frozenset[Heartbeat] = frozenset()


NO_BACKLOG: Final = Backlog(failed=False)


class WriteBatcher:
    """Writes queued changes of tasks, many to a transaction; drops excess progress.

    `perform(mutation)` runs one mutation in a transaction and raises StorageUnavailable.
    `merge(group)` may return fewer mutations that do the same.
    """

    def __init__(
        self,
        perform: Callable[[Mutation], Awaitable[object]],
        merge: Callable[[Sequence[Mutation]], Sequence[Mutation]] = lambda group: group,
        *,
        max_group: int = MAX_GROUP,
    ) -> None:
        self._perform = perform
        self._merge = merge
        self._batcher = Batcher("sessions and progress of tasks", self._write, self._written, max_group=max_group)
        self._shares: dict[str, tuple[int, int]] = {}
        self._bytes = 0
        self.dropped = 0
        """How many progress reports of tasks were dropped since the gateway's start."""

    def put(
        self, mutation: Mutation, on_written: Callable[[], object] = _NOTHING, *, heartbeat: Heartbeat | None = None
    ) -> int:
        """Queue a change of tasks; call `on_written` after its commit; return its number."""
        return self._queue(_Queued(mutation, on_written, CURRENT_SESSION_WRITES.get(), heartbeat))

    def offer(
        self,
        mutation: Mutation,
        on_written: Callable[[], object] = _NOTHING,
        *,
        heartbeat: Heartbeat,
        session_id: str,
        size: int,
    ) -> int:
        """Queue a change, or return 0 if the queue, or the session's share of it, is full."""
        count, session_bytes = self._shares.get(session_id, (0, 0))
        full = len(self._batcher) >= MAX_WAITING or self._bytes + size > MAX_BYTES
        if full or count >= MAX_WAITING // SHARE or session_bytes + size > MAX_BYTES // SHARE:
            self.dropped += 1
            return 0
        self._shares[session_id] = count + 1, session_bytes + size
        self._bytes += size
        return self._queue(_Queued(mutation, on_written, CURRENT_SESSION_WRITES.get(), heartbeat, session_id, size))

    def _queue(self, queued: _Queued) -> int:
        if queued.pending is not None:
            queued.pending.began()
        return self._batcher.put(queued)

    def is_written(self, number: int) -> bool:
        """Return whether the queued change with this number is committed."""
        return self._batcher.is_written(number)

    async def wait_written(self, number: int) -> None:
        """Wait until the queued change with this number is committed."""
        await self._batcher.wait_written(number)

    async def flush(self) -> None:
        """Wait until all changes of tasks that are queued now are committed."""
        await self._batcher.flush()

    async def flush_within(self, timeout_s: float) -> Backlog:
        """Wait for `flush` at most this long; return what is left unwritten."""
        batcher = self._batcher
        was_unavailable, failures = batcher.unavailable, batcher.failures
        all_written = await batcher.flush_within(timeout_s)
        failed = was_unavailable or batcher.failures > failures
        if all_written:
            return Backlog(failed)
        left = list(batcher.unwritten)
        return Backlog(failed, len(left), frozenset(one.heartbeat for one in left if one.heartbeat))

    async def run(self) -> None:
        """Write queued changes of tasks to the database until cancelled."""
        await self._batcher.run()

    async def _write(self, group: Sequence[_Queued]) -> None:
        mutations = self._merge([queued.mutation for queued in group])
        if not mutations:
            return

        def in_one_transaction(tx: TaskTransaction) -> Program[None]:
            for mutation in mutations:
                yield from mutation(tx)

        await self._perform(in_one_transaction)

    def _written(self, queued: _Queued) -> None:
        if queued.session_id:
            count, session_bytes = self._shares.pop(queued.session_id)
            if count > 1:
                self._shares[queued.session_id] = count - 1, session_bytes - queued.size
            self._bytes -= queued.size
        try:
            queued.on_written()
        except Exception as error:
            report(error, "the session that reported progress of a task")
        if queued.pending is not None:
            queued.pending.over()
