"""Nodes in this process that lease work from one database.

Each has an engine, a log, work queues and a node lease.

The cluster around them is what a test says: a lease is a row of `nodes` that it ends or renews, and
a wake goes from log to log in a call, or gets lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import LogLimits, TopicLog, open_log
from aether_trio.model.clock import SystemClock
from aether_trio.queues import open_work_queues
from aether_trio.queues.dispatcher import QueueWorker
from aether_trio.queues.lease_scheduler import LeasedQueues
from aether_trio.queues.leased_queue import WINDOW
from aether_trio.storage.base import CommitUnknown, Fetch
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresServer, open_postgres
from tests.helpers.engines import PostgresEngine
from tests.helpers.log_bench import Collector, Reader

LONG_S = 300.0  # a safety net against a hang, never a measurement
FEW = PostgresLimits(writers=1, readers=1, patience_s=LONG_S)
TOPIC = "tb::w::resize"
_REGISTER = "INSERT INTO nodes (token, name, address, version, started_ms) VALUES ('', '', '', '', 0) RETURNING node_id"


class ScriptedWorker(Reader):
    """A worker that is done with what it has read, or acknowledges on a call.

    `acknowledges`: it acknowledges, as on the framed transport.

    `history` is the list of (frame, worker) that all workers of a test share.
    """

    def __init__(
        self,
        node: WorkNode,
        history: list[tuple[bytes, ScriptedWorker]],
        *,
        paused: bool = False,
        acknowledges: bool = False,
        limits: OutboxLimits | None = None,
    ) -> None:
        super().__init__(limits or OutboxLimits(), paused=paused)
        self.node = node
        self.lease = node.lease
        self.unacknowledged: list[tuple[Any, int]] = []
        self.lost = 0
        """How often `on_lost` was called."""
        self._history = history
        self._acknowledges = acknowledges
        self._worker: QueueWorker | None = None
        self._state: CachedTopic | None = None

    def kick(self) -> None:
        if self._paused:
            return
        while found := self.outbox.pull_deliveries(64 * 1024, flush_is_done=not self._acknowledges):
            for frame, origin, offset in found:
                self.frames.append(frame)
                self._history.append((frame, self))
                if self._acknowledges:
                    self.unacknowledged.append((origin, offset))
        self.outbox.flushed()

    def acknowledge(self, count: int = 1) -> None:
        for origin, offset in self.unacknowledged[:count]:
            self.outbox.acknowledged(origin, offset)
        del self.unacknowledged[:count]

    async def join(self, topic: str = TOPIC) -> None:
        self.lease = self.node.lease
        found = await self.node.queues.find(topic)
        self._state = found[0]
        self._worker = self.node.queues.join(found, self.outbox, self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def leave(self) -> None:
        assert self._worker is not None
        assert self._state is not None
        self._worker.leave()
        TopicLog.unpin([self._state])
        self.outbox.detach()


class Wakes:
    """A LogRelay: nodes that listen look at once, unless `lose_wake` loses it."""

    def __init__(self, node: WorkNode, nodes: WorkNodes) -> None:
        self._node = node
        self._nodes = nodes
        self.push_from = 0

    async def expect(self, topics: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()

    def committed(self, states: Iterable[CachedTopic]) -> None:
        names = [state.name for state in states]
        for node in self._nodes.all:
            if node is not self._node and not self._nodes.lose_wake():
                node.log.on_remote_commits(names)


class ScriptedLease:
    """A NodeLease that is sure at once, unless a test gives another `wait`."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.epoch = 1
        self.wait: Callable[[], Awaitable[object]] | None = None
        self.asked_s: list[float] = []
        """The moments for which the node wanted to be sure; those of any are left out."""

    async def wait_sure(self, since_s: float = -math.inf) -> None:
        if since_s > -math.inf:
            self.asked_s.append(since_s)
        if self.wait is not None:
            await self.wait()


class WorkNode:
    """One node. Writes are fenced by its lease, as a cluster does it."""

    def __init__(self, server: PostgresServer, log: TopicLog, queues: LeasedQueues, lease: ScriptedLease) -> None:
        self.server = server
        self.log = log
        self.queues = queues
        self.node_lease = lease
        self.author = Collector()
        server.fence_writes(lambda: "SELECT aether_fence({}, {})".format(*self.lease))

    @property
    def lease(self) -> tuple[int, int]:
        """The number and the epoch under which the node leases messages now."""
        return self.node_lease.node_id, self.node_lease.epoch

    def append(self, *frames: bytes, topic: str = TOPIC) -> int:
        number = 0
        for frame in frames:
            number = self.log.append_nowait(self.log.topics.ensure(topic), frame, self.author)
        return number

    async def publish(self, *frames: bytes, topic: str = TOPIC) -> None:
        await self.log.wait_settled(self.append(*frames, topic=topic))
        assert self.author.reasons == []

    @property
    def topic_id(self) -> int:
        found = self.log.topics.ensure(TOPIC).topic_id
        assert found is not None
        return found

    def delay_answers(self, hold: Callable[[], Awaitable[object]]) -> Callable[[], None]:
        """Call `hold` between a statement and its response; return how to end that."""
        database = self.queues._database
        write = database.write

        async def delayed(statement: Any) -> Any:
            answer = await write(statement)
            await hold()
            return answer

        database.write = delayed  # type: ignore[method-assign]
        return lambda: setattr(database, "write", write)

    def lose_answers(self, when: Callable[[], bool]) -> None:
        """Run statements of the work queues, and sometimes lose the response."""

        async def lose() -> None:
            if when():
                raise CommitUnknown("the connection was lost")

        self.delay_answers(lose)


class WorkNodes:
    """Starts and ends nodes, each in a separate task: an engine's loop is a task's."""

    def __init__(self, nursery: trio.Nursery, engine: PostgresEngine) -> None:
        self._nursery = nursery
        self.engine = engine
        self.all: list[WorkNode] = []
        self.history: list[tuple[bytes, ScriptedWorker]] = []
        self.lose_wake: Callable[[], bool] = lambda: False
        self._ends: dict[WorkNode, tuple[trio.Event, trio.Event]] = {}

    async def start(self) -> WorkNode:
        node: WorkNode = await self._nursery.start(self._run)
        return node

    async def stop(self, node: WorkNode) -> None:
        self.all.remove(node)
        stop, stopped = self._ends.pop(node)
        stop.set()
        await stopped.wait()

    async def kill(self, node: WorkNode) -> None:
        """What it has not written is lost; its lease ends."""
        self.end_lease(node)
        node.queues._queues.clear()
        await self.stop(node)

    def end_lease(self, node: WorkNode) -> None:
        """End its lease, as a node does that finds it dead. The node does not notice."""
        self.engine.outside("UPDATE nodes SET alive = false WHERE node_id = {} AND epoch = {}".format(*node.lease))

    def renew_lease(self, node: WorkNode) -> None:
        """The node comes back with the next epoch."""
        node_id, epoch = node.lease
        self.engine.outside(f"UPDATE nodes SET alive = true, epoch = {epoch + 1} WHERE node_id = {node_id}")
        node.node_lease.epoch = epoch + 1

    def worker(self, node: WorkNode, **options: Any) -> ScriptedWorker:
        return ScriptedWorker(node, self.history, **options)

    async def join(self, node: WorkNode, **options: Any) -> ScriptedWorker:
        worker = self.worker(node, **options)
        await worker.join()
        return worker

    async def at_work(self, node: WorkNode, count: int) -> ScriptedWorker:
        """A worker that has so many messages and has not acknowledged any."""
        worker = await self.join(node, acknowledges=True)
        await node.publish(*numbers(0, count))
        await self.wait_for(count)
        return worker

    async def stuck(self, node: WorkNode, count: int) -> ScriptedWorker:
        """A worker that reads nothing, and has its window of so many messages."""
        worker = await self.join(node, paused=True)
        await node.publish(*numbers(0, count))
        await until(lambda: len(self.leased()) == min(count, WINDOW))
        return worker

    async def wait_for(self, count: int) -> None:
        """Until so many messages have come to workers."""
        await until(lambda: len(self.history) >= count)

    async def each_once(self, count: int, *, done: bool = False) -> None:
        """Wait for `count` messages, and until all are done; check that each came once."""
        await self.wait_for(count)
        if done:
            await until(lambda: self.leased() == [])
        assert Counter(frame for frame, _ in self.history) == Counter(numbers(0, count))

    def rows(self, columns: str, table: str) -> list[tuple[Any, ...]]:
        return self.engine.rows(f"SELECT {columns} FROM {self.engine.schema}.{table}")

    def leased(self) -> list[int]:
        """The offsets that some node has, or that were given back."""
        return sorted(offset for (offsets,) in self.rows("offsets", "work_leases") for offset in offsets)

    async def _run(self, task_status: trio.TaskStatus[WorkNode]) -> None:
        stop, stopped = trio.Event(), trio.Event()
        try:
            async with open_postgres(self.engine.server.dsn(), schema=self.engine.schema, limits=FEW) as server:
                await server.database("cluster")
                database = await server.database("log")
                [(node_id,)] = await database.write(Fetch(_REGISTER))
                clock, limits = SystemClock(trio.current_time), LogLimits(cursor_flush_s=0.05)
                async with open_log(database, clock, limits) as log, trio.open_nursery() as nursery:
                    lease = ScriptedLease(node_id)
                    queues = open_work_queues(log, nursery, lease)
                    assert isinstance(queues, LeasedQueues)
                    node = WorkNode(server, log, queues, lease)
                    with log.relayed_by(Wakes(node, self)):
                        self.all.append(node)
                        self._ends[node] = (stop, stopped)
                        task_status.started(node)
                        await stop.wait()
                    nursery.cancel_scope.cancel()
        finally:
            stopped.set()

    async def close(self) -> None:
        for node in list(self.all):
            await self.stop(node)


@asynccontextmanager
async def open_work_nodes(engine: PostgresEngine) -> AsyncIterator[WorkNodes]:
    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            nodes = WorkNodes(nursery, engine)
            try:
                yield nodes
            finally:
                with trio.CancelScope(shield=True):
                    await nodes.close()


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await trio.sleep(0.005)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]
