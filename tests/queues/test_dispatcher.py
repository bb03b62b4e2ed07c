"""The dispatcher of a work queue alone: credit, turns, order, revoked messages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aether_trio.concurrency.kicks import Kickable
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.queues.dispatcher import QueueDispatcher, QueueWorker
from tests.helpers.log_bench import SMALL, Reader

WINDOW = 4


class Backend:
    """Records what the dispatcher reports."""

    reads = True

    def __init__(self) -> None:
        self.done: list[int] = []
        self.left: list[int] = []
        self.rooms = 0

    def on_room(self) -> None:
        self.rooms += 1

    def on_done(self, worker: QueueWorker, offsets: Sequence[int]) -> None:
        self.done += offsets

    def on_left(self, offsets: Sequence[int]) -> None:
        self.left += offsets

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None: ...
    def look(self) -> None: ...
    def renew(self) -> None: ...


class Lab:
    """A dispatcher with a recording backend."""

    def __init__(self) -> None:
        self.backend = Backend()
        self.state = CachedTopic("tb::w::resize")
        self.dispatcher = QueueDispatcher(self.state, self.backend, WINDOW)
        self.losses: list[Reader] = []

    def join(self, *, paused: bool = True) -> tuple[Reader, QueueWorker]:
        reader = Reader(paused=paused)
        return reader, self.dispatcher.join(reader.outbox, lambda: self.losses.append(reader))

    def dispatch(self, *offsets: int) -> list[int]:
        """Dispatch these; return the offsets that a worker had room for."""
        return [offset for offset in offsets if self.dispatcher.dispatch(offset, b"%d" % offset) is not None]


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_workers_take_turns_until_their_credit_is_used_up(lab: Lab) -> None:
    _, one = lab.join()
    _, two = lab.join()
    assert lab.dispatch(*range(1, 11)) == list(range(1, 2 * WINDOW + 1))
    assert (one.in_flight.offsets, two.in_flight.offsets) == ([1, 3, 5, 7], [2, 4, 6, 8])
    assert not lab.dispatcher.has_credit


async def test_an_acknowledgement_gives_credit_to_its_worker_alone(lab: Lab) -> None:
    _, one = lab.join()
    _, two = lab.join()
    lab.dispatch(*range(1, 9))
    two.in_flight.acknowledged(6)
    assert lab.backend.done == [6]
    assert lab.dispatch(9, 10) == [9]
    assert two.in_flight.offsets == [2, 4, 8, 9]
    assert one.in_flight.offsets == [1, 3, 5, 7]


async def test_a_delivery_acknowledges_what_was_dispatched_before_it_even_if_that_is_newer(lab: Lab) -> None:
    _, worker = lab.join()
    lab.dispatch(7, 2, 9)  # 2 was returned by another worker
    worker.in_flight.delivered(2)
    assert lab.backend.done == [7, 2]
    assert worker.in_flight.offsets == [9]


async def test_a_worker_with_a_full_outbox_is_passed_over(lab: Lab) -> None:
    lab.join()
    free, _ = lab.join(paused=False)
    large = b"x" * SMALL.delivery_bytes
    assert lab.dispatcher.dispatch(1, large) is not None
    assert lab.dispatcher.dispatch(2, large) is free.outbox
    free.kick()
    assert lab.dispatcher.dispatch(3, large) is free.outbox


async def test_what_a_worker_leaves_goes_to_the_backend_once(lab: Lab) -> None:
    _, worker = lab.join()
    lab.dispatch(1, 2, 3)
    in_flight = worker.in_flight
    in_flight.acknowledged(2)
    worker.leave()
    worker.leave()
    in_flight.acknowledged(1)
    assert (lab.backend.left, lab.backend.done) == ([1, 3], [2])
    assert not in_flight.is_open
    assert lab.state.subscribers == {}


async def test_revoked_messages_are_not_sent_and_their_acknowledgements_change_nothing(lab: Lab) -> None:
    reader, worker = lab.join()
    lab.dispatch(1, 2)
    revoked = worker.in_flight
    worker.revoke()
    assert lab.dispatch(1) == [1]  # leased again
    revoked.delivered(1)
    revoked.acknowledged(2)
    assert lab.backend.done == []
    assert (revoked.is_open, worker.in_flight.is_open) == (False, True)
    reader.resume()
    assert reader.frames == [b"1"]


async def test_a_loss_is_reported_to_a_worker_that_is_still_there(lab: Lab) -> None:
    reader, worker = lab.join()
    _, gone = lab.join()
    gone.leave()
    worker.report_loss()
    gone.report_loss()
    assert lab.losses == [reader]
