"""Test what becomes of publications in the queue, without a connection."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AetherError, ClientClosed, ConnectionLost, InvalidArgument
from aether_trio.client.connection.outgoing_messages import OutgoingMessage, Publication
from aether_trio.client.connection.send_queue import SendQueue


class Wire:
    def encode_publication(self, publication: Publication) -> bytes:
        return publication.payload

    def encode_upstream(self, upstream: OutgoingMessage) -> bytes:
        return upstream.data


async def publish(send_queue: SendQueue, count: int) -> list[Publication]:
    return [await send_queue.publish("t", b"x", 6, b"", confirm=False) for _ in range(count)]


def in_doubt(publication: Publication) -> bool:
    assert isinstance(publication.error, ConnectionLost)
    return publication.error.in_doubt


async def test_each_outcome_counts_once() -> None:
    send_queue = SendQueue(100, 1000)
    publications = await publish(send_queue, 6)
    errors: list[AetherError | None] = [
        None,
        InvalidArgument("ERR_INVALID_TOPIC", "no"),
        ConnectionLost("cut", in_doubt=True),
        ConnectionLost("withdrawn", in_doubt=False),
    ]
    for publication, error in zip(publications, errors, strict=False):
        send_queue.settle(publication, error)
        send_queue.settle(publication, None)
    assert (send_queue.published, send_queue.unsettled) == (6, 2)
    assert (send_queue.committed, send_queue.refused, send_queue.in_doubt, send_queue.not_sent) == (1, 1, 1, 1)
    send_queue.close(ClientClosed())
    assert (send_queue.unsettled, send_queue.not_sent) == (0, 3)


async def test_what_was_written_once_stays_in_doubt_while_it_waits_to_be_sent_again() -> None:
    send_queue = SendQueue(100, 1000)
    sent = (await publish(send_queue, 1))[0]
    assert not send_queue.doubtful
    assert send_queue.pull(Wire(), 100, starting=True) == [b"x"]
    send_queue.reopen(repeat=True)
    assert send_queue.resent == 1
    assert send_queue.doubtful
    never = (await publish(send_queue, 1))[0]
    send_queue.close(ClientClosed())
    assert in_doubt(sent)
    assert isinstance(never.error, ClientClosed)
    assert (send_queue.in_doubt, send_queue.not_sent) == (1, 1)


async def test_withdrawing_says_whether_it_was_sent() -> None:
    send_queue = SendQueue(100, 1000)
    sent, kept = await publish(send_queue, 2)
    send_queue.pull(Wire(), 100, starting=True)
    send_queue.cut()
    send_queue.withdraw(sent)
    send_queue.reopen(repeat=True)
    never = (await publish(send_queue, 1))[0]
    send_queue.withdraw(never)
    assert (in_doubt(sent), in_doubt(never)) == (True, False)
    assert send_queue.pull(Wire(), 100, starting=True) == [b"x"]
    send_queue.ack(kept.seq)
    assert (send_queue.committed, send_queue.in_doubt, send_queue.not_sent, send_queue.unsettled) == (1, 1, 1, 0)


async def test_what_the_connection_has_written_takes_its_course_and_is_not_sent_again_after_a_cut() -> None:
    send_queue = SendQueue(100, 1000)
    arrives, refused, lost = await publish(send_queue, 3)
    send_queue.pull(Wire(), 100, starting=True)
    for publication in (arrives, refused, lost):
        send_queue.withdraw(publication)
    assert send_queue.unsettled == 3, "their answers will come"
    send_queue.ack(arrives.seq)
    send_queue.nack(lost.seq, InvalidArgument("ERR_INVALID_TOPIC", "no"))
    send_queue.cut()
    assert arrives.error is None
    assert in_doubt(refused)
    assert isinstance(lost.error, InvalidArgument), "it was refused before the cut"
    send_queue.reopen(repeat=True)
    assert not send_queue.waiting


async def test_what_was_withdrawn_takes_no_memory_while_there_is_no_connection() -> None:
    send_queue = SendQueue(100, 1000)
    before = (await publish(send_queue, 1))[0]
    for _ in range(1000):
        send_queue.withdraw((await publish(send_queue, 1))[0])
        asked = OutgoingMessage(b"q", lambda _error: None)
        send_queue.put(asked)
        send_queue.discard(asked)
        send_queue.discard(asked)
    assert list(send_queue._queue) == [before]
    assert send_queue.pull(Wire(), 100, starting=True) == [b"x"]


async def test_flush_raises_the_first_refusal_and_counts_those_that_it_did_not_keep() -> None:
    send_queue = SendQueue(4, 1000)
    for number in range(10):
        (publication,) = await publish(send_queue, 1)
        send_queue.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
    with pytest.raises(InvalidArgument, match="number 0") as caught:
        await send_queue.flush()
    assert caught.value.__notes__ == ["and 9 more messages since the last flush"]
    await send_queue.flush()


async def test_refusals_that_their_sender_has_seen_make_room_for_those_that_it_has_not() -> None:
    send_queue = SendQueue(2, 1000)
    for number in range(3):
        (publication,) = await publish(send_queue, 1)
        send_queue.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
        if number < 2:
            with pytest.raises(InvalidArgument):
                await publication.committed()
    with pytest.raises(InvalidArgument, match="number 2") as caught:
        await send_queue.flush()
    assert not hasattr(caught.value, "__notes__")


async def test_a_client_that_ends_tells_each_operation_that_waits_for_a_connection_why() -> None:
    send_queue = SendQueue(100, 1000)
    told: list[AetherError | None] = []
    taken, waiting = OutgoingMessage(b"taken", told.append), OutgoingMessage(b"waiting", told.append)
    send_queue.put(taken)
    assert send_queue.pull(Wire(), 100, starting=True) == [b"taken"]
    send_queue.put(waiting)
    assert (told, taken.queued, waiting.queued) == ([None], False, True)
    ended = ClientClosed()
    send_queue.close(ended)
    send_queue.close(ClientClosed())
    assert (told, waiting.queued) == ([None, ended], False)
    assert not send_queue.waiting


async def test_what_was_written_is_sent_again_once_for_each_cut() -> None:
    send_queue = SendQueue(100, 1000)
    await publish(send_queue, 2)
    for _ in range(3):
        assert send_queue.pull(Wire(), 100, starting=True) == [b"x", b"x"]
        send_queue.cut()
        send_queue.reopen(repeat=True)
    assert send_queue.resent == 6
    assert send_queue.unsettled == 2


async def test_nothing_is_in_doubt_while_nothing_was_written_and_all_of_it_hides_no_part_that_was() -> None:
    send_queue = SendQueue(100, 1000)
    assert not send_queue.doubtful
    await publish(send_queue, 1)
    send_queue.pull(Wire(), 100, starting=True)
    send_queue.reopen(repeat=True)
    await publish(send_queue, 1)
    assert send_queue.doubtful, "the first of the two was written"


async def test_refusals_that_were_seen_make_room_however_many_were_only_counted() -> None:
    send_queue = SendQueue(2, 1000)
    publications = []
    for number in range(5):
        (publication,) = await publish(send_queue, 1)
        publications.append(publication)
        if number == 4:
            for seen in publications[:2]:
                with pytest.raises(InvalidArgument):
                    await seen.committed()
        send_queue.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
    with pytest.raises(InvalidArgument, match="number 4") as caught:
        await send_queue.flush()
    assert caught.value.__notes__ == ["and 2 more messages since the last flush"]


async def test_a_client_that_ends_says_what_was_refused_before() -> None:
    send_queue = SendQueue(100, 1000)
    first, second = await publish(send_queue, 2)
    send_queue.pull(Wire(), 100, starting=True)
    send_queue.nack(second.seq, InvalidArgument("ERR_INVALID_TOPIC", "no"))
    send_queue.close(ClientClosed())
    assert in_doubt(first)
    assert isinstance(second.error, InvalidArgument)
    assert (send_queue.in_doubt, send_queue.refused) == (1, 1)


async def test_a_message_waits_until_there_is_room_for_its_bytes() -> None:
    send_queue = SendQueue(100, 10)
    first = await send_queue.publish("t", b"x" * 6, 6, b"", confirm=False)
    taken: list[Publication] = []

    async def second() -> None:
        taken.append(await send_queue.publish("t", b"y" * 6, 6, b"", confirm=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert (taken, send_queue.unsettled_bytes) == ([], 6)
        send_queue.settle(first, None)
    assert send_queue.unsettled_bytes == 6
    send_queue.settle(taken[0], None)
    assert send_queue.unsettled_bytes == 0
    assert await send_queue.publish("t", b"z" * 60, 6, b"", confirm=False), "one alone may always go"
