"""One node's share of a work queue whose messages several nodes dispatch.

    database ──▶ ready ──▶ in flight to a worker ──▶ done     ──▶ database
                   │                 │
                   └─────────────────┴─ worker gone ─▶ returned ─▶ database

The node leases a few messages for each worker that has little to do, and no more before some of
them are done: other nodes can lease the rest. A message that is too large for the room in every
outbox stays in `ready` until a worker has room.

One statement returns what a worker left undone and leases the next messages, returned ones first:
so other workers of this node get them if they have room, and those of any other node if not. Frames
that this node committed are kept for a moment, so leasing them moves no bytes.

Invariants: an offset that this node has leased is in exactly one of `ready`, a worker's
`in_flight`, `done`, `returned`, or the request that was not answered (`_unanswered`). Nothing is
dispatched before its lease is committed. When the node's lease changes, the queue forgets all of it
(`revoke`), as other nodes may have leased it; later acknowledgements of it change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.queues.dispatcher import QueueDispatcher, QueueWorker
from aether_trio.queues.lease_exchange import WorkRequest, WorkResponse

WINDOW: Final = 16  # messages in flight to one worker; other nodes' idle workers cannot get them

LOW: Final = WINDOW // 2  # messages in flight to a worker up to which more are leased

LEASE_MESSAGES: Final = 256  # messages of a queue in one statement at most

LEASE_BYTES: Final = 256 * 1024
"""Bytes of messages in one statement; a larger message comes alone."""

KNOWN_BYTES: Final = 64 * 1024  # bytes of committed frames in memory, until they are leased


class LeasedQueue:
    """One node's share of a work queue: its leased messages. No method blocks.

    `schedule` sends the queue's request to the database soon: the queue has messages to return, to
    lease or to dispatch. `schedule_later` sends it in a moment: it has finished messages to report.
    """

    reads = False

    def __init__(
        self, state: CachedTopic, schedule: Callable[[LeasedQueue], None], schedule_later: Callable[[LeasedQueue], None]
    ) -> None:
        self.state = state
        self.dispatcher = QueueDispatcher(state, self, WINDOW)
        self._schedule = partial(schedule, self)
        self._schedule_later = partial(schedule_later, self)
        self._position = 0  # the largest offset that any node has leased, as far as this node knows
        self._behind = False  # whether there may be messages to lease
        self._ready: deque[tuple[int, bytes]] = deque()
        self._passed_over = 0
        self._blocked = False
        self._done: dict[int, QueueWorker] = {}
        self._reported: dict[int, QueueWorker] = {}  # done by the unanswered request
        self._returned: list[int] = []
        self._known: dict[int, bytes] = {}
        self._known_bytes = 0
        self._unanswered: WorkRequest | None = None
        self._held = 0  # how many offsets this node has leased, by all responses so far
        self._report_now = False
        """Whether the next request reports what is done even if it has no other reason."""
        self._verify = self._resync = False

    @property
    def forgettable(self) -> bool:
        """Whether the database has all that this queue object knows."""
        return not (
            self.dispatcher.workers
            or self._ready
            or self._done
            or self._returned
            or self._unanswered
            or self._verify
            or self._resync
        )

    def join(self, outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        """Add a worker; waiting messages are leased and dispatched to it soon."""
        self._behind = True
        return self.dispatcher.join(outbox, on_lost)

    def on_room(self) -> None:
        """Lease or dispatch more messages, as a worker may have room again."""
        self._blocked = False
        if self._behind or self._ready:
            self._schedule()

    def on_done(self, worker: QueueWorker, offsets: Sequence[int]) -> None:
        """Report finished messages to the database in a moment."""
        self._done.update(dict.fromkeys(offsets, worker))
        self._schedule_later()
        self.on_room()

    def on_left(self, offsets: Sequence[int]) -> None:
        """Return a worker's messages to the database; after the last, also ready ones."""
        self._returned += offsets
        if self.dispatcher.workers:
            self._behind = True
        else:
            self._return_ready()
            self.forget_frames()
        self._schedule()

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None:
        """Keep the frame of a message that this node committed, and lease soon."""
        if offset <= self._position:
            return
        known = self._known
        follows = not known or offset == next(reversed(known)) + 1
        if follows and (not known or self._known_bytes + len(frame) <= KNOWN_BYTES):
            known[offset] = frame
            self._known_bytes += len(frame)
        self.look()

    def look(self) -> None:
        """Lease messages soon, as there may be new ones in the topic."""
        self._behind = True
        self._schedule()

    def renew(self) -> None:
        """Do nothing: a queue without a cursor starts at the topic's oldest message."""

    def dispatch_ready(self, touched: set[Kickable]) -> None:
        """Dispatch leased messages while workers have room; add outboxes to `touched`."""
        while self._ready:
            offset, frame = self._ready.popleft()
            outbox = self.dispatcher.dispatch(offset, frame)
            if outbox is None:
                self._ready.appendleft((offset, frame))
                return
            self._passed_over = 0
            touched.add(outbox)

    def return_stuck(self) -> None:
        """Return messages that no worker had room for since the last call."""
        if not self._ready:
            self._passed_over = 0
        elif self._passed_over == self._ready[0][0]:
            self._return_ready()
            self._blocked = True  # not to lease it again before there is more room
            self._schedule()
        else:
            self._passed_over = self._ready[0][0]

    def _return_ready(self) -> None:
        self._returned += [offset for offset, _ in self._ready]
        self._ready.clear()

    def report_done(self) -> None:
        """Report finished messages in the next request, even if they alone cause it."""
        self._report_now = True

    def next_request(self, number: int) -> WorkRequest | None:
        """Return the unanswered request again, or a new one with `number`, or None."""
        if self._unanswered is not None:
            return self._unanswered
        topic_id = self.state.topic_id
        if topic_id is None:
            return None
        want, max_bytes = self._wanted()
        report, self._report_now = self._report_now or not self.dispatcher.workers, False
        if not (want or (report and self._done) or self._returned or self._verify or self._resync):
            return None
        done = sorted(self._done)
        self._reported, self._done = self._done, {}
        if self._resync:
            request = WorkRequest(topic_id, number, done=done, returned=self._leased(), all_but=True)
        else:
            returned, self._returned = self._returned, []
            first, last = self._known_range(max_bytes)
            request = WorkRequest(topic_id, number, want, max_bytes, done, returned, known_from=first, known_upto=last)
            if want:
                self._behind = False
        self._unanswered = request
        return request

    def last_request(self, number: int) -> WorkRequest | None:
        """Return the request that gives back all leased messages, as the node ends."""
        if self.state.topic_id is None:
            return None
        done = [*self._done, *(self._unanswered.done if self._unanswered is not None else ())]
        if not done and not self._held and self._unanswered is None:
            return None
        return WorkRequest(self.state.topic_id, number, done=sorted(done), all_but=True)

    def on_response(self, response: WorkResponse) -> None:
        """Take in the messages that the last request has leased."""
        request, self._unanswered = self._unanswered, None
        assert request is not None
        self._verify = False
        self._reported = {}
        self._position = response.position
        if not self.state.is_read:
            self.state.tail = max(self.state.tail, response.position)  # all of it is committed
        self._behind = self._behind or response.more
        if request.all_but:
            self._resync = False
            self._held = response.held
        else:
            self._held += len(response.messages) - len(request.done) - len(request.returned)
            # If the database counts more, a statement that was given up has run later.
            self._resync = self._held != response.held
        for offset, frame in response.messages:
            known = self._known.get(offset) if frame is None else frame
            if known is None:
                self._returned.append(offset)
            else:
                self._ready.append((offset, known))
        self._forget_leased_frames()
        if self._done:
            self._schedule_later()
        if not self.dispatcher.workers:
            self._return_ready()
        if self._behind or self._returned or self._resync or not self.dispatcher.workers:
            self._schedule()

    def revoke(self) -> None:
        """Forget all leased messages: the node's lease has ended, others may have them.

        Calls `on_lost` of each worker that has some of them, or whose last acknowledgements were
        not written; the worker may leave then.
        """
        unwritten = {*self._done.values(), *self._reported.values()}
        losers = [worker for worker in self.dispatcher.workers if worker in unwritten or worker.in_flight.offsets]
        self._unanswered = None
        self._held = self._position = 0
        self.forget_frames()
        self._verify = self._resync = self._blocked = False
        self._ready.clear()
        self._done, self._reported, self._returned = {}, {}, []
        for worker in self.dispatcher.workers:
            worker.revoke()
        self.look()
        for worker in losers:
            worker.report_loss()

    def verify(self, held: int) -> None:
        """Ask again if `held`, the database's count of leased offsets, differs from ours.

        `held` may be newer than what this node knows, so a difference is only a reason to ask.
        """
        if held != self._held and self._unanswered is None:
            self._verify = True
            self._schedule()

    def _leased(self) -> list[int]:
        return [offset for offset, _ in self._ready] + self._returned + self.dispatcher.in_flight

    def _wanted(self) -> tuple[int, int]:
        """Return for how many messages and bytes the workers of this node have room."""
        if not self._behind or self._ready or self._blocked:
            return 0, 0
        want = room = 0
        for worker in self.dispatcher.workers:
            in_flight = len(worker.in_flight.offsets)
            outbox = worker.outbox
            if in_flight <= LOW and outbox.wants_deliveries:
                want += WINDOW - in_flight
                room += outbox.limits.delivery_bytes - outbox.delivery_bytes
        return min(want, LEASE_MESSAGES), min(room, LEASE_BYTES)

    def _known_range(self, max_bytes: int) -> tuple[int, int]:
        """Return the range of offsets with frames in memory that fit `max_bytes`."""
        if not self._known:
            return 1, 0
        first = last = next(iter(self._known))
        size = 0
        for offset, frame in self._known.items():
            size += len(frame)
            if size > max_bytes and offset != first:
                break
            last = offset
        return first, last

    def forget_frames(self) -> None:
        """Forget the frames in memory: after a failover an offset may be another message."""
        self._known.clear()
        self._known_bytes = 0

    def _forget_leased_frames(self) -> None:
        known = self._known
        while known and (first := next(iter(known))) <= self._position:
            self._known_bytes -= len(known.pop(first))
