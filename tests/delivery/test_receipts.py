"""What a connection is told of its numbered sends: in order, once, not too early."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from aether_trio.delivery.receipts import Receipts, refusal_frame
from aether_trio.log.deduplication import Publisher
from aether_trio.model.errors import Code, RequestError
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.log_bench import Bench, Reader

TOPIC = "ag::w::a::1"
NO = RequestError(Code.INVALID_TOPIC, "no such topic")
FULL = RequestError(Code.PUBLISH_FAILED, "the disk is full", retryable=True)


class Connection:
    """One connection of a client: what it sends, and what it has been told."""

    def __init__(self, bench: Bench, publisher: Publisher | None = None) -> None:
        self.log = bench.log
        self.reader = Reader(paused=True)
        self.receipts = Receipts(bench.log, self.reader.outbox, publisher)

    def send(self, *numbers: int) -> int:
        """As the session does it; the log's number of the last one."""
        last = 0
        for seq in numbers:
            if self.receipts.wanted(seq):
                last = self.log.append_nowait(self.log.topics.ensure(TOPIC), b"%d" % seq, self.receipts)
                self.receipts.appended(seq, last)
        return last

    def envelopes(self) -> list[str]:
        """The refusals that came as answers."""
        return [pb.DownstreamMessage.FromString(frame).error.code for frame in self.reader.outbox.pull(1 << 20)]


class Counted(deque[Any]):
    """Says how often it was gone through."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


def publisher(window: int = 8) -> Publisher:
    return Publisher("ag::w::me::1", b"p" * 16, window, [], 0)


async def test_nothing_is_due_before_anything_is_sent(bench: Bench) -> None:
    receipts = Connection(bench).receipts
    assert not receipts.due
    assert receipts.take() == ([], 0)


async def test_an_acknowledgement_waits_for_the_log_and_is_given_once(bench: Bench) -> None:
    connection = Connection(bench)
    last = connection.send(3, 4, 9)
    assert not connection.receipts.due
    assert connection.receipts.take() == ([], 0)
    await bench.log.wait_settled(last)
    assert connection.receipts.due
    assert connection.receipts.take() == ([], 9)
    assert not connection.receipts.due
    assert connection.receipts.take() == ([], 0)


async def test_only_what_is_settled_from_the_front_is_acknowledged(bench: Bench) -> None:
    connection = Connection(bench)
    settled = connection.send(1, 2)
    await bench.log.wait_settled(settled)
    connection.send(3)
    connection.receipts.refuse(4, NO)
    assert connection.receipts.take() == ([(4, NO)], 2), "4 is refused, and acknowledged behind 3"
    assert connection.receipts.take() == ([], 0)
    await bench.log.drain()
    assert connection.receipts.take() == ([], 4)


async def test_refusals_come_in_their_order_and_with_the_acknowledgement_that_covers_them(bench: Bench) -> None:
    connection = Connection(bench)
    connection.receipts.refuse(1, NO)
    assert connection.receipts.due
    connection.receipts.refuse(2, FULL)
    assert connection.receipts.take() == ([(1, NO), (2, FULL)], 2)
    assert not connection.receipts.due


async def test_what_the_log_refuses_is_refused_by_its_number(bench: Bench) -> None:
    connection = Connection(bench)
    bench.database.fail_writes = 100
    last = connection.send(5, 6)
    await bench.log.wait_settled(last)
    refused, acked = connection.receipts.take()
    assert [(seq, error.code) for seq, error in refused] == [(5, Code.PUBLISH_FAILED), (6, Code.PUBLISH_FAILED)]
    assert acked == 6
    assert connection.envelopes() == []


async def test_what_the_log_refuses_and_came_without_a_number_is_answered(bench: Bench) -> None:
    connection = Connection(bench)
    bench.database.fail_writes = 100
    number = bench.log.append_nowait(bench.log.topics.ensure(TOPIC), b"x", connection.receipts)
    await bench.log.wait_settled(number)
    assert connection.envelopes() == [Code.PUBLISH_FAILED]
    assert connection.receipts.take() == ([], 0)


async def test_each_group_that_is_refused_is_looked_up_anew(bench: Bench) -> None:
    receipts = Connection(bench).receipts
    receipts.appended(1, 11)
    receipts.refused(11, FULL)
    receipts.appended(2, 12)
    receipts.refused(12, FULL)
    assert receipts.take()[0] == [(1, FULL), (2, FULL)]


async def test_a_refused_group_costs_each_of_its_messages_the_same_numbered_or_not(bench: Bench) -> None:
    receipts, many = Connection(bench).receipts, 1000
    receipts._waiting = waiting = Counted()
    for seq in range(1, many + 1):
        receipts.appended(seq, 2 * seq)
    for number in range(1, 2 * many + 1):  # the odd ones came in envelopes
        receipts.refused(number, FULL)
    refused, _ = receipts.take()
    assert [seq for seq, _ in refused] == list(range(1, many + 1))
    assert receipts.outbox.control_bytes
    assert waiting.times == 1
    receipts.appended(many + 1, 2 * many + 2)
    receipts.refused(2 * many + 2, FULL)
    assert receipts.take()[0] == [(many + 1, FULL)]


async def test_a_repeated_number_has_its_receipt_from_the_first(bench: Bench) -> None:
    """At once if the first is in the log, else with it; neither is a second message."""
    mine = publisher()
    first = Connection(bench, mine)
    last = first.send(1, 2)
    second = Connection(bench, mine)
    assert mine.connection is second.receipts
    assert second.send(1, 2) == 0
    assert second.receipts.take() == ([], 0)
    mine.begin(last)
    mine.committed(0)
    await bench.log.wait_settled(last)
    assert second.receipts.take() == ([], 2)
    assert second.send(2) == 0
    assert second.receipts.due
    assert second.receipts.take() == ([], 2)
    assert second.send(3) == last + 1


async def test_a_number_that_is_too_old_is_neither_sent_nor_acknowledged(bench: Bench) -> None:
    connection = Connection(bench, publisher(window=2))
    await bench.log.wait_settled(connection.send(1, 2, 9))
    publisher_ = connection.receipts.publisher
    assert publisher_ is not None
    publisher_.refused(10**9)
    with pytest.raises(RequestError) as caught:
        connection.receipts.wanted(7)
    assert caught.value.code is Code.SEQUENCE_FORGOTTEN
    assert "number 7 " in caught.value.message
    assert connection.receipts.wanted(8), "in the window, and not in the log"
    assert connection.receipts.take() == ([], 9)


async def test_the_latest_connection_is_told_what_became_of_an_earlier_ones_sends(bench: Bench) -> None:
    mine = publisher()
    first = Connection(bench, mine)
    bench.database.fail_writes = 100
    last = first.send(1)
    second = Connection(bench, mine)
    second.send(1)
    await bench.log.wait_settled(last)
    for connection in (first, second):
        refused, acked = connection.receipts.take()
        assert [(seq, error.code) for seq, error in refused] == [(1, Code.PUBLISH_FAILED)]
        assert acked == 1
        assert connection.envelopes() == []


async def test_an_envelopes_refusal_is_for_the_connection_that_sent_it(bench: Bench) -> None:
    mine = publisher()
    first, second = Connection(bench, mine), Connection(bench, mine)
    first.receipts.refused(77, FULL)
    assert first.envelopes() == [Code.PUBLISH_FAILED]
    assert second.envelopes() == []
    assert second.receipts.take() == ([], 0)


async def test_each_connection_with_news_is_woken(bench: Bench) -> None:
    mine = publisher()
    first = Connection(bench, mine)
    alone: set[object] = set()
    first.receipts.settled(alone)  # type: ignore[arg-type]
    assert alone == {first.reader.outbox}
    second = Connection(bench, mine)
    both: set[object] = set()
    first.receipts.settled(both)  # type: ignore[arg-type]
    assert both == {first.reader.outbox, second.reader.outbox}
    unnumbered: set[object] = set()
    connection = Connection(bench)
    connection.receipts.settled(unnumbered)  # type: ignore[arg-type]
    assert unnumbered == {connection.reader.outbox}


async def test_a_commit_kicks_the_connection_whose_sends_it_settles(bench: Bench) -> None:
    connection = Connection(bench)
    kicks = connection.reader.kicks
    await bench.log.wait_settled(connection.send(1))
    await trio.testing.wait_all_tasks_blocked()
    assert connection.reader.kicks > kicks


def test_the_refusal_of_a_group_is_encoded_once() -> None:
    assert refusal_frame(NO) is refusal_frame(NO)
    assert pb.DownstreamMessage.FromString(refusal_frame(NO)).error.message == "no such topic"
