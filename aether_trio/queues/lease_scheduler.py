"""Sends the requests of a node's leased work queues to the database.

    queues (leased_queue.py) ── done, wanted, returned ──▶ one statement at a time for many queues
                             ◀── leased, committed ──────

The statement deletes what is done, takes back what is returned and leases what is wanted, under the
lock of each queue's row. While a statement runs, the next one gathers: a busy queue costs one
commit for some dozen messages, and an idle one nothing.

The statement goes through a queue of statements for itself (`Database.separate_queue`): it locks
rows of queues, and a commit of the log locks rows of topics; in one transaction two nodes could
lock them in different orders.

Why the database, and not messages between the nodes: some lock must decide which of two nodes gets
a message, and a lock in the database ends with its holder. Why there is no row for each leased
message: storage/schema/work_queues.py.

Faults

* A node dies: its leased messages count as returned as soon as its node lease has ended. The next
  statement leases them, or a node with idle workers finds them: at once when it is notified of the
  death, or within `POLL_S`. Messages whose end was not reported yet are delivered again.
* This node's lease ends: the fence refuses the statement. Under a new lease the node revokes all
  that it leased under the old one; the sessions of workers that have some of it end.
* The process is stopped, and goes on when other nodes have its messages: it makes sure of its node
  lease before it dispatches. The same when a response was long on its way.
* The response to a statement is lost: the statement is sent again as it was, and changes nothing
  twice. A statement that was given up and runs later shows by the number of leased offsets.
* The node ends: it returns everything, in a statement that is shielded from the cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.concurrency.kicks import Kickable, kick_all
from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.outbox import Outbox
from aether_trio.log import topic_sql_postgres
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.containment import report
from aether_trio.queues.dispatcher import QueueWorker
from aether_trio.queues.lease_exchange import LeaseEpoch, WorkRequest, exchange, peek, responses
from aether_trio.queues.leased_queue import LeasedQueue
from aether_trio.queues.work_queues import CONSUMER, NodeLease, WorkStatistics
from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S, retry_while_unavailable

logger = structlog.get_logger("aether.work")

LATE_S: Final = 0.5  # seconds after which a response is too late to show that the lease holds

LAZY_S: Final = 0.25  # seconds until a done message is reported, as log.offset_flush_s

POLL_S: Final = 5.0  # seconds between two looks for messages that no notification announced

IN_DOUBT_S: Final = 0.1  # seconds until a statement with a lost response runs again

END_S: Final = 3.0  # seconds for returning all leased messages at the end

QUEUES_AT_ONCE: Final = 64
QUEUES_PER_PEEK: Final = 500

NO_LEASE: Final = (-1, -1)


class LeasedQueues:
    """Leases and returns messages of one node's work queues; implements WorkQueues."""

    def __init__(self, log: TopicLog, nursery: trio.Nursery, node_lease: NodeLease) -> None:
        self._log = log
        self._database = log.database.separate_queue()
        self._nursery = nursery
        self._running = False
        self._queues: dict[str, LeasedQueue] = {}
        self._scheduled: dict[LeasedQueue, None] = {}
        self._scheduled_later: dict[LeasedQueue, None] = {}
        self._later_at = math.inf
        self._failing: dict[LeasedQueue, float] = {}  # when each is served again (trio's clock)
        self._wake = RepeatedEvent()
        self._departed = AutoResetEvent()
        self._node_lease = node_lease
        self._lease: LeaseEpoch = NO_LEASE
        self._epoch_alone = 0
        self._requests = 0
        self._failed_before = False
        self._exchanges = self._taken = self._returned = self._failed = 0

    async def find(self, topic: str) -> tuple[CachedTopic, int]:
        ((state, cursor),) = await self._log.load([(topic, CONSUMER)])
        return state, cursor or 0

    def join(self, found: tuple[CachedTopic, int], outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run, name="work-queues")
        state = found[0]
        queue = self._queues.get(state.name)
        if queue is None:
            state.waiting += 1  # until the queue is forgotten
            queue = self._queues[state.name] = LeasedQueue(state, self.schedule, self.schedule_later)
        return queue.join(outbox, on_lost)

    def node_left(self) -> None:
        """Look at once for messages that a dead node had leased. Never blocks."""
        self._departed.set()

    def statistics(self) -> WorkStatistics:
        workers = [len(queue.dispatcher.workers) for queue in self._queues.values()]
        return WorkStatistics(
            len(workers), workers.count(0), sum(workers), self._exchanges, self._taken, self._returned, self._failed
        )

    def schedule(self, queue: LeasedQueue) -> None:
        """Have the next statement ask the database for leases on messages of `queue`."""
        if not self._scheduled:
            self._wake.set()
        self._scheduled[queue] = None

    def schedule_later(self, queue: LeasedQueue) -> None:
        """Send the request of `queue` to the database within LAZY_S."""
        if not self._scheduled_later:
            self._later_at = trio.current_time() + LAZY_S
            self._wake.set()
        self._scheduled_later[queue] = None

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "work-queues-poll", self._poll, name="work-queues-poll")
                while True:
                    await self._wait_for_queues()
                    await self._serve_all(self._next_queues())
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(END_S):
                await self._return_all()

    async def _wait_for_queues(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._scheduled and trio.current_time() < (next_at := self._next_at()):
            with trio.move_on_at(next_at):
                await self._wake.wait()

    def _next_at(self) -> float:
        """Return when a queue is due next that is scheduled for later or has failed."""
        return min(self._later_at, *self._failing.values()) if self._failing else self._later_at

    def _next_queues(self) -> list[LeasedQueue]:
        if trio.current_time() >= self._later_at:
            self._later_at = math.inf
            for queue in self._scheduled_later:
                queue.report_done()
                self._scheduled[queue] = None
            self._scheduled_later.clear()
        self._put_off_failing()
        queues = list(self._scheduled)[:QUEUES_AT_ONCE]
        for queue in queues:
            del self._scheduled[queue]
        return queues

    def _put_off_failing(self) -> None:
        for queue, again_at in list(self._failing.items()):
            if trio.current_time() < again_at:
                self._scheduled.pop(queue, None)
            else:
                del self._failing[queue]
                self._scheduled[queue] = None

    async def _serve_all(self, queues: Sequence[LeasedQueue]) -> None:
        """Serve queues together, or one by one if a defect in one queue fails them all."""
        try:
            await self._serve(queues)
        except Exception as error:
            if len(queues) > 1:
                for queue in queues:
                    await self._serve_all([queue])
                return
            (queue,) = queues
            report(error, f"work of {queue.state.name}")
            self._failed += 1
            self._failing[queue] = trio.current_time() + RETRY_DELAY_S

    async def _serve(self, queues: Sequence[LeasedQueue]) -> None:
        touched: set[Kickable] = set()
        requests: dict[LeasedQueue, WorkRequest] = {}
        try:
            await self._current_lease()
            for queue in queues:
                queue.dispatch_ready(touched)
            await kick_all(touched)
            lease = await self._current_lease()
        except StorageUnavailable as error:
            await self._fail(queues, error)
            return
        for queue in queues:
            request = queue.next_request(self._requests + 1)
            if request is not None:
                self._requests = max(self._requests, request.request)
                requests[queue] = request
                self._scheduled_later.pop(queue, None)
        if requests:
            await self._exchange(lease, requests)
        for queue in queues:
            if queue.forgettable:
                self._forget(queue)

    async def _exchange(self, lease: LeaseEpoch, requests: dict[LeasedQueue, WorkRequest]) -> None:
        now_ms, began_s = self._log.clock.now_ms(), trio.current_time()
        try:
            rows = await self._database.write(exchange(lease, now_ms, list(requests.values())))
            answered_s = trio.current_time()
            late = answered_s - began_s > LATE_S
            current = await self._current_lease(answered_s if late else -math.inf)
        except StorageUnavailable as error:
            await self._fail(list(requests), error)
            return
        self._exchanges += 1
        if current != lease:
            return  # what these responses lease was revoked just now
        found = responses(rows)
        touched: set[Kickable] = set()
        for_others: list[CachedTopic] = []
        for queue, request in requests.items():
            response = found[request.topic_id]
            self._taken += len(response.messages)
            self._returned += len(request.returned) if not request.all_but else 0
            queue.on_response(response)
            queue.dispatch_ready(touched)
            if response.more and (request.returned or request.all_but):
                for_others.append(queue.state)
        if for_others and self._log.relay is not None:
            self._log.relay.committed(for_others)
        await kick_all(touched)

    async def _current_lease(self, since_s: float = -math.inf) -> LeaseEpoch:
        """Return this node's lease; if it is a new one, revoke all leased messages.

        `since_s`: at that moment the node still had it (`NodeLease.wait_sure`).
        There is no checkpoint behind the look at the node lease: messages that are dispatched then
        are this node's, however long the process was stopped before. Raises StorageUnavailable.
        """
        await self._node_lease.wait_sure(since_s)
        node_id, epoch = self._node_lease.node_id, self._node_lease.epoch
        if node_id == 0:
            if not self._epoch_alone:
                # The gateway is alone: earlier processes' leases are free. The numbers only grow.
                statement = topic_sql_postgres.new_writer(self._log.clock.now_ms())
                [[self._epoch_alone]] = await self._database.write(statement)
            epoch = self._epoch_alone
        lease = (node_id, epoch)
        if lease != self._lease:
            if self._lease != NO_LEASE:
                count = len(self._queues)
                logger.warning("the node has a new lease; it revokes messages leased under the old one", queues=count)
                for queue in self._queues.values():
                    queue.revoke()
            self._lease = lease
        return lease

    async def _fail(self, queues: Sequence[LeasedQueue], error: Exception) -> None:
        if not self._failed_before:
            logger.warning("storage is unavailable; messages of work queues wait for it", reason=str(error))
        self._failed_before = True
        self._failed += 1
        await trio.sleep(IN_DOUBT_S if isinstance(error, CommitUnknown) else RETRY_DELAY_S)
        for queue in self._queues.values():
            queue.forget_frames()
        for queue in queues:
            self.schedule(queue)

    def _forget(self, queue: LeasedQueue) -> None:
        if self._queues.get(queue.state.name) is queue:
            del self._queues[queue.state.name]
            self._scheduled.pop(queue, None)
            self._scheduled_later.pop(queue, None)
            self._failing.pop(queue, None)
            queue.state.waiting -= 1

    async def _poll(self) -> None:
        while True:
            with trio.move_on_after(POLL_S) as pause:
                await self._departed.wait()
            # With one node, only a statement that was given up can have leased messages unnoticed.
            if self._node_lease.node_id > 0 or self._failed_before:
                self._failed_before = False
                try:
                    lease = await self._current_lease()
                    await self._peek(lease)
                    # After a departure the last poll may have been just now.
                    if lease[0] > 0 and pause.cancelled_caught:
                        for queue in self._queues.values():
                            queue.return_stuck()
                except StorageUnavailable as error:
                    logger.info("polling the work queues failed; the next poll tries again", reason=str(error))

    async def _peek(self, lease: LeaseEpoch) -> None:
        queues = self._queues.values()
        known = {queue.state.topic_id: queue for queue in queues if queue.state.topic_id is not None}
        topic_ids = list(known)
        for start in range(0, len(topic_ids), QUEUES_PER_PEEK):
            part = topic_ids[start : start + QUEUES_PER_PEEK]
            found = await self._database.read(partial(peek, lease, part))
            if lease != self._lease:
                return
            for topic_id, (waits, held) in found.items():
                queue = known[topic_id]
                if waits and queue.dispatcher.workers:
                    queue.look()
                queue.verify(held)

    async def _return_all(self) -> None:
        lease = self._lease
        requests: dict[int, tuple[WorkRequest, CachedTopic]] = {}
        for queue in self._queues.values():
            self._requests += 1
            request = queue.last_request(self._requests)
            if request is not None:
                requests[request.topic_id] = (request, queue.state)
        pending = list(requests.values())
        for start in range(0, len(pending), QUEUES_AT_ONCE):
            part = pending[start : start + QUEUES_AT_ONCE]
            statement = exchange(lease, self._log.clock.now_ms(), [request for request, _ in part])
            rows = await retry_while_unavailable(
                partial(self._database.write, statement), "returning leased messages", logger, delay_s=IN_DOUBT_S
            )
            if self._log.relay is not None:
                more = {topic_id for topic_id, response in responses(rows).items() if response.more}
                self._log.relay.committed([state for request, state in part if request.topic_id in more])
