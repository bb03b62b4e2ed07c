"""Messages for one participant: bounded, in order, sent when the kernel has them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from aether_trio.delivery.outbox import Outbox, OutboxLimits
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from tests.helpers.log_bench import SMALL, Reader


class Offsets:
    """A subscription that only notes what has been delivered, and what need not be."""

    topic = "ag::w::a::1"
    shared = False

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.passed: list[int] = []
        self.position_done = 0

    def acknowledged(self, offset: int) -> None:
        self.passed.append(offset)
        self.position_done = offset

    def delivered(self, offset: int) -> None:
        self.seen.append(offset)


def test_the_budget_of_a_pull_is_for_all_queues_together() -> None:
    """Each queue begins with the rest of the budget; only the last frame exceeds it."""
    reader = Reader(paused=True)
    outbox = reader.outbox
    for number in range(3):
        outbox.put_control(b"c%09d" % number)
        assert outbox.try_deliver(b"d%09d" % number, Offsets(), number + 1)
        outbox.put_ephemeral(b"l%09d" % number)
    assert outbox.pull(11) == [b"c000000000", b"c000000001"]
    assert (outbox.control_bytes, outbox.delivery_bytes, outbox.ephemeral_bytes) == (10, 30, 30)
    assert outbox.pull(10) == [b"c000000002"]
    assert (outbox.control_bytes, outbox.delivery_bytes, outbox.ephemeral_bytes) == (0, 30, 30)
    outbox.put_control(b"c000000003")
    assert outbox.pull(21) == [b"c000000003", b"d000000000", b"d000000001"]
    assert (outbox.control_bytes, outbox.delivery_bytes, outbox.ephemeral_bytes) == (0, 10, 30)
    assert outbox.pull(21) == [b"d000000002", b"l000000000", b"l000000001"]
    assert (outbox.control_bytes, outbox.delivery_bytes, outbox.ephemeral_bytes) == (0, 0, 10)
    assert outbox.pull(10) == [b"l000000002"]
    assert outbox.pull(10) == []
    assert outbox.ephemeral_bytes == 0


def test_a_delivery_is_reported_when_it_is_flushed_and_not_before() -> None:
    reader, offsets = Reader(paused=True), Offsets()
    for offset in (1, 2, 3):
        reader.outbox.try_deliver(b"x" * 10, offsets, offset)
    reader.outbox.pull(20)
    assert offsets.seen == []
    reader.outbox.flushed()
    assert offsets.seen == [2]  # everything up to it
    reader.outbox.flushed()
    assert offsets.seen == [2]


def test_a_full_outbox_takes_no_more_deliveries_and_any_message_fits_into_an_empty_one() -> None:
    reader = Reader(paused=True)
    assert reader.outbox.try_deliver(b"x" * 5000, Offsets(), 1)  # larger than the limit, alone
    assert not reader.outbox.try_deliver(b"x", Offsets(), 2)
    reader.resume()
    assert reader.outbox.delivery_bytes == 0
    assert reader.outbox.try_deliver(b"x", Offsets(), 2)


def test_a_burst_ahead_of_a_free_socket_is_no_lag() -> None:
    reader = Reader()
    for offset in range(1, 100):
        assert reader.outbox.try_deliver(b"x" * 100, Offsets(), offset)
    assert reader.kicks > 0
    assert reader.highest <= SMALL.delivery_bytes


def test_an_update_larger_than_the_ephemeral_topic_still_goes() -> None:
    reader = Reader(paused=True)
    reader.outbox.put_ephemeral(b"x" * 1000)
    reader.resume()
    assert reader.frames == [b"x" * 1000]


def test_after_detach_only_control_goes_out_and_nothing_is_reported() -> None:
    reader, offsets = Reader(paused=True), Offsets()
    reader.outbox.try_deliver(b"a", offsets, 1)
    reader.outbox.pull(10)
    reader.outbox.try_deliver(b"b", offsets, 2)
    reader.outbox.put_ephemeral(b"topic")
    reader.outbox.put_control(b"goodbye")
    reader.outbox.detach()
    assert not reader.outbox.try_deliver(b"c", offsets, 3)
    reader.outbox.put_ephemeral(b"topic")
    reader.resume()
    assert reader.frames == [b"goodbye"]
    assert offsets.seen == []
    assert reader.outbox.delivery_bytes == 0


def test_what_is_withdrawn_is_not_sent() -> None:
    reader, kept, gone = Reader(paused=True), Offsets(), Offsets()
    reader.outbox.try_deliver(b"kept", kept, 1)
    reader.outbox.try_deliver(b"gone", gone, 1)
    reader.outbox.withdraw([gone])
    assert reader.outbox.delivery_bytes == 4
    reader.resume()
    assert reader.frames == [b"kept"]
    assert (kept.seen, gone.seen) == ([1], [])


def test_listeners_hear_of_each_flush_until_they_leave() -> None:
    reader, heard = Reader(), []

    def listener() -> None:
        heard.append(1)

    reader.outbox.listen(listener)
    reader.outbox.put_control(b"x")
    reader.outbox.unlisten(listener)
    reader.outbox.unlisten(listener)
    reader.outbox.put_control(b"x")
    assert heard == [1]


@pytest.mark.parametrize("how", ["read", "cut"])
async def test_a_task_that_waits_for_room_goes_on_when_the_peer_reads_or_is_gone(how: str) -> None:
    reader = Reader(OutboxLimits(control_bytes=10), paused=True)
    reader.outbox.put_control(b"x" * 10)
    assert not reader.outbox.control_has_room
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.outbox.wait_control_room)
        nursery.start_soon(reader.outbox.wait_control_sent)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        if how == "read":
            reader.resume()
        else:
            reader.outbox.cut()
    assert reader.outbox.control_has_room


def test_deliveries_wait_while_the_gate_is_paused() -> None:
    gate = SimpleNamespace(paused=True)
    outbox = Outbox(SimpleNamespace(kick=lambda: None), OutboxLimits(), lambda: None, gate=gate)
    assert outbox.try_deliver(b"durable", Offsets(), 1)
    outbox.queue_control(b"answer")
    outbox.put_ephemeral(b"progress")
    assert outbox.pull(1000) == [b"answer", b"progress"]
    assert outbox.pull_deliveries(1000) == []
    gate.paused = False
    assert outbox.pull(1000) == [b"durable"]


def test_a_message_that_no_client_takes_is_passed_over_and_its_consumer_told() -> None:
    told: list[tuple[str, int, int]] = []
    outbox = Outbox(
        SimpleNamespace(kick=lambda: None),
        SMALL,
        lambda: None,
        on_oversized=lambda topic, offset, size: told.append((topic, offset, size)),
    )
    offsets, largest = Offsets(), bytes(CLIENT_MESSAGE_BYTES)
    assert outbox.try_deliver(largest + b"x", offsets, 1)
    assert outbox.pull(1 << 30) == []
    assert (told, offsets.passed) == ([(offsets.topic, 1, CLIENT_MESSAGE_BYTES + 1)], [1])
    assert outbox.try_deliver(largest, offsets, 2)
    assert outbox.try_deliver(largest + b"x", offsets, 3), "while the one in front of it is on its way"
    assert [len(frame) for frame in outbox.pull(1 << 30)] == [CLIENT_MESSAGE_BYTES]
    assert (len(told), offsets.passed) == (2, [1])
    outbox.detach()
    assert not outbox.try_deliver(largest + b"x", offsets, 4)
    assert len(told) == 2


def test_a_client_that_grants_credit_gets_no_more_than_that() -> None:
    reader = Reader(paused=True)
    outbox = reader.outbox
    for offset in range(1, 7):
        assert outbox.try_deliver(b"%010d" % offset, Offsets(), offset)
    assert len(outbox.pull(10)) == 1, "before it does, any number"
    outbox.grant(1, 25)
    assert len(outbox.pull(1000)) == 1
    assert outbox.pull(1000) == []
    outbox.grant(10, 0)
    assert len(outbox.pull(1000)) == 2, "the last one goes beyond the bytes"
    assert outbox.pull(1000) == []
    outbox.grant(0, 100)
    assert len(outbox.pull(1000)) == 2
    assert outbox.delivery_bytes == 0


def test_the_owner_hears_of_the_end_until_it_is_forgotten() -> None:
    heard: list[object] = []
    outbox = Outbox(
        SimpleNamespace(kick=lambda: heard.append("kick")),
        SMALL,
        lambda: heard.append("topic"),
        lambda: heard.append("cut"),
        on_failure=heard.append,
        on_oversized=lambda *passed: heard.append(passed),
    )
    error = OSError("the link")
    outbox.put_control(b"answer")
    outbox.failed(error)
    outbox.cut()
    assert heard == ["kick", error, "cut"]
    assert outbox.control_bytes == 0
    assert outbox.pull(100) == []
    outbox.forget()
    outbox.put_control(b"answer")
    outbox.cut()
    outbox.try_deliver(bytes(CLIENT_MESSAGE_BYTES + 1), Offsets(), 1)
    for _ in range(2):
        outbox.put_ephemeral(bytes(SMALL.ephemeral_bytes))
    assert len(heard) == 3
