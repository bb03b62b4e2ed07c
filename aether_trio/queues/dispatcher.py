"""Chooses the worker of this node that gets the next message of a work queue.

A backend has the messages: `LocalQueue` reads them from the log, `LeasedQueue` leases them in
PostgreSQL. The dispatcher has the queue's workers on this node, and the messages that are on their
way to each of them.

    backend ── dispatch(offset, frame) ──▶ the next worker in turn that has credit ──▶ its outbox
            ◀── on_room() ──────────────── a worker may have credit again
            ◀── on_done(worker, offsets) ─ a worker is done with messages
            ◀── on_left(offsets) ───────── a worker has left, and was not done with these

* Credit: a worker has at most `window` messages in flight, and gets none while its outbox is more
  than half full.
* Fairness: the workers take turns. A worker without room is passed over and keeps no other waiting.
* Redelivery: what a worker leaves undone goes to the backend, which dispatches it before newer
  messages.
* Order: a worker gets its messages in the order in which the backend dispatches them.

Invariants: an offset is in flight to at most one worker. An acknowledgement counts only for the
`InFlight` under which its message was dispatched, so after `revoke` it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_cache import CachedTopic, Subscriber

__all__ = ["InFlight", "QueueBackend", "QueueDispatcher", "QueueWorker", "ignore_loss"]


def ignore_loss() -> None:
    """Do nothing about revoked messages: the `on_lost` of a worker without a session."""


class QueueBackend(Subscriber, Protocol):
    """Provides the messages of one work queue. No method blocks or raises."""

    def on_room(self) -> None:
        """Dispatch more messages of the queue: one of its workers may have room."""

    def on_done(self, worker: QueueWorker, offsets: Sequence[int]) -> None:
        """Record that `worker` is done with the queue's messages at `offsets`."""

    def on_left(self, offsets: Sequence[int]) -> None:
        """Take back the unacknowledged messages of a worker, perhaps the last, that left."""


class InFlight:
    """Tracks the unacknowledged messages that one worker of a queue was given."""

    __slots__ = ("_dispatcher", "_worker", "offsets")

    shared = True
    position_done = 0

    def __init__(self, dispatcher: QueueDispatcher, worker: QueueWorker) -> None:
        self._dispatcher = dispatcher
        self._worker = worker
        self.offsets: list[int] = []  # in the order of dispatch

    @property
    def topic(self) -> str:
        """The name of the queue's topic."""
        return self._dispatcher.state.name

    @property
    def is_open(self) -> bool:
        """Whether the unacknowledged messages still belong to their worker."""
        return self._worker.in_flight is self and self._worker in self._dispatcher.workers

    def delivered(self, offset: int) -> None:
        """Count the message at `offset`, and all dispatched before it, as done."""
        if offset in self.offsets:
            count = self.offsets.index(offset) + 1
            done = self.offsets[:count]
            del self.offsets[:count]
            self._dispatcher.backend.on_done(self._worker, done)

    def acknowledged(self, offset: int) -> None:
        """Count only the message at `offset` as done."""
        if offset in self.offsets:
            self.offsets.remove(offset)
            self._dispatcher.backend.on_done(self._worker, [offset])

    def take_all(self) -> list[int]:
        """Return the offsets of the unacknowledged messages, and forget them."""
        offsets, self.offsets = self.offsets, []
        return offsets


class QueueWorker:
    """Represents one connected worker of a work queue."""

    __slots__ = ("_dispatcher", "_on_lost", "in_flight", "outbox")

    def __init__(self, dispatcher: QueueDispatcher, outbox: Outbox, on_lost: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._on_lost = on_lost
        self.outbox = outbox
        self.in_flight = InFlight(dispatcher, self)

    @property
    def has_credit(self) -> bool:
        """Whether the worker can be given another message."""
        return len(self.in_flight.offsets) < self._dispatcher.window and self.outbox.wants_deliveries

    def leave(self) -> None:
        """Remove the worker; other workers get its unsent messages. Idempotent."""
        self._on_lost = ignore_loss  # the old one refers to the worker's session
        self._dispatcher.remove(self)

    def revoke(self) -> None:
        """Withdraw unsent messages from the worker's outbox, and forget the sent ones."""
        revoked, self.in_flight = self.in_flight, InFlight(self._dispatcher, self)
        self.outbox.withdraw((revoked,))
        revoked.take_all()

    def report_loss(self) -> None:
        """Tell the worker's session that other workers may have got its messages."""
        self._on_lost()


class QueueDispatcher:
    """Gives the messages of one work queue to its workers on this node."""

    def __init__(self, state: CachedTopic, backend: QueueBackend, window: int) -> None:
        self.state = state
        self.backend = backend
        self.window = window  # the largest number of messages in flight to one worker
        self.workers: list[QueueWorker] = []
        self._turn = 0

    def join(self, outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        """Add a worker that takes the queue's messages through `outbox`."""
        if not self.workers:
            self.state.subscribers[self.backend] = None
        worker = QueueWorker(self, outbox, on_lost)
        self.workers.append(worker)
        outbox.listen(self.backend.on_room)
        self.backend.on_room()
        return worker

    def remove(self, worker: QueueWorker) -> None:
        """Remove a worker; the backend gets its unacknowledged messages. Idempotent."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        worker.outbox.unlisten(self.backend.on_room)
        if not self.workers:
            del self.state.subscribers[self.backend]
        self.backend.on_left(worker.in_flight.take_all())

    @property
    def has_credit(self) -> bool:
        """Whether any worker of the queue can be given another message."""
        return any(worker.has_credit for worker in self.workers)

    @property
    def in_flight(self) -> list[int]:
        """The offsets of the messages that are in flight to any worker of the queue."""
        return [offset for worker in self.workers for offset in worker.in_flight.offsets]

    def dispatch(self, offset: int, frame: bytes) -> Outbox | None:
        """Give a message to the queue's next worker in turn that has room for it.

        Returns the worker's outbox, which the caller kicks, or None if no worker has room.
        """
        workers = self.workers
        for step in range(len(workers)):
            worker = workers[(self._turn + step) % len(workers)]
            if not worker.has_credit:
                continue
            in_flight = worker.in_flight
            in_flight.offsets.append(offset)
            if worker.outbox.try_deliver(frame, in_flight, offset):
                self._turn = (self._turn + step + 1) % len(workers)
                return worker.outbox
            if offset in in_flight.offsets:
                in_flight.offsets.remove(offset)
        return None
