"""What becomes of publications, and whether it is known: the queue alone, without a connection."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AetherError, ClientClosed, ConnectionLost, InvalidArgument
from aether_trio.client.connection.outbox import Outbox
from aether_trio.client.connection.outgoing import Publication, Upstream


class Wire:
    """Takes everything."""

    def encode_publication(self, publication: Publication) -> bytes:
        return publication.payload

    def encode_upstream(self, upstream: Upstream) -> bytes:
        return upstream.data


async def publish(outbox: Outbox, count: int) -> list[Publication]:
    return [await outbox.publish("t", b"x", 6, b"", confirm=False) for _ in range(count)]


def in_doubt(publication: Publication) -> bool:
    assert isinstance(publication.error, ConnectionLost)
    return publication.error.in_doubt


async def test_each_outcome_counts_once() -> None:
    outbox = Outbox(100, 1000)
    publications = await publish(outbox, 6)
    errors: list[AetherError | None] = [
        None,
        InvalidArgument("ERR_INVALID_TOPIC", "no"),
        ConnectionLost("cut", in_doubt=True),
        ConnectionLost("withdrawn", in_doubt=False),
    ]
    for publication, error in zip(publications, errors, strict=False):
        outbox.settle(publication, error)
        outbox.settle(publication, None)
    assert (outbox.published, outbox.unsettled) == (6, 2)
    assert (outbox.committed, outbox.refused, outbox.in_doubt, outbox.not_sent) == (1, 1, 1, 1)
    outbox.close(ClientClosed())
    assert (outbox.unsettled, outbox.not_sent) == (0, 3)


async def test_what_was_written_once_stays_in_doubt_while_it_waits_to_be_sent_again() -> None:
    outbox = Outbox(100, 1000)
    sent = (await publish(outbox, 1))[0]
    assert not outbox.doubtful
    assert outbox.pull(Wire(), 100, starting=True) == [b"x"]
    outbox.reopen(repeat=True)
    assert outbox.resent == 1
    assert outbox.doubtful
    never = (await publish(outbox, 1))[0]
    outbox.close(ClientClosed())
    assert in_doubt(sent)
    assert isinstance(never.error, ClientClosed)
    assert (outbox.in_doubt, outbox.not_sent) == (1, 1)


async def test_withdrawing_says_whether_it_was_sent() -> None:
    outbox = Outbox(100, 1000)
    sent, kept = await publish(outbox, 2)
    outbox.pull(Wire(), 100, starting=True)
    outbox.cut()
    outbox.withdraw(sent)
    outbox.reopen(repeat=True)
    never = (await publish(outbox, 1))[0]
    outbox.withdraw(never)
    assert (in_doubt(sent), in_doubt(never)) == (True, False)
    assert outbox.pull(Wire(), 100, starting=True) == [b"x"]
    outbox.ack(kept.seq)
    assert (outbox.committed, outbox.in_doubt, outbox.not_sent, outbox.unsettled) == (1, 1, 1, 0)


async def test_what_the_connection_has_written_takes_its_course_and_is_not_sent_again_after_a_cut() -> None:
    outbox = Outbox(100, 1000)
    arrives, refused, lost = await publish(outbox, 3)
    outbox.pull(Wire(), 100, starting=True)
    for publication in (arrives, refused, lost):
        outbox.withdraw(publication)
    assert outbox.unsettled == 3, "their answers will come"
    outbox.ack(arrives.seq)
    outbox.nack(lost.seq, InvalidArgument("ERR_INVALID_TOPIC", "no"))
    outbox.cut()
    assert arrives.error is None
    assert in_doubt(refused)
    assert isinstance(lost.error, InvalidArgument), "it was refused before the cut"
    outbox.reopen(repeat=True)
    assert not outbox.waiting


async def test_what_nobody_waits_for_takes_no_memory_while_no_connection_takes_it() -> None:
    outbox = Outbox(100, 1000)
    before = (await publish(outbox, 1))[0]
    for _ in range(1000):
        outbox.withdraw((await publish(outbox, 1))[0])
        asked = Upstream(b"q", lambda _error: None)
        outbox.put(asked)
        outbox.discard(asked)
        outbox.discard(asked)
    assert list(outbox._queue) == [before]
    assert outbox.pull(Wire(), 100, starting=True) == [b"x"]


async def test_flush_raises_the_first_refusal_and_counts_those_that_it_did_not_keep() -> None:
    outbox = Outbox(4, 1000)
    for number in range(10):
        (publication,) = await publish(outbox, 1)
        outbox.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
    with pytest.raises(InvalidArgument, match="number 0") as caught:
        await outbox.flush()
    assert caught.value.__notes__ == ["and 9 more messages since the last flush"]
    await outbox.flush()


async def test_refusals_that_their_sender_has_seen_make_room_for_those_that_nobody_has() -> None:
    outbox = Outbox(2, 1000)
    for number in range(3):
        (publication,) = await publish(outbox, 1)
        outbox.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
        if number < 2:
            with pytest.raises(InvalidArgument):
                await publication.committed()
    with pytest.raises(InvalidArgument, match="number 2") as caught:
        await outbox.flush()
    assert not hasattr(caught.value, "__notes__")


async def test_a_client_that_ends_tells_each_operation_that_waits_for_a_connection_why() -> None:
    outbox = Outbox(100, 1000)
    told: list[AetherError | None] = []
    taken, waiting = Upstream(b"taken", told.append), Upstream(b"waiting", told.append)
    outbox.put(taken)
    assert outbox.pull(Wire(), 100, starting=True) == [b"taken"]
    outbox.put(waiting)
    assert (told, taken.queued, waiting.queued) == ([None], False, True)
    ended = ClientClosed()
    outbox.close(ended)
    outbox.close(ClientClosed())
    assert (told, waiting.queued) == ([None, ended], False)
    assert not outbox.waiting


async def test_what_was_written_is_sent_again_once_for_each_cut() -> None:
    outbox = Outbox(100, 1000)
    await publish(outbox, 2)
    for _ in range(3):
        assert outbox.pull(Wire(), 100, starting=True) == [b"x", b"x"]
        outbox.cut()
        outbox.reopen(repeat=True)
    assert outbox.resent == 6
    assert outbox.unsettled == 2


async def test_nothing_is_in_doubt_while_nothing_was_written_and_all_of_it_hides_no_part_that_was() -> None:
    outbox = Outbox(100, 1000)
    assert not outbox.doubtful
    await publish(outbox, 1)
    outbox.pull(Wire(), 100, starting=True)
    outbox.reopen(repeat=True)
    await publish(outbox, 1)
    assert outbox.doubtful, "the first of the two was written"


async def test_refusals_that_were_seen_make_room_however_many_were_only_counted() -> None:
    outbox = Outbox(2, 1000)
    publications = []
    for number in range(5):
        (publication,) = await publish(outbox, 1)
        publications.append(publication)
        if number == 4:
            for seen in publications[:2]:
                with pytest.raises(InvalidArgument):
                    await seen.committed()
        outbox.settle(publication, InvalidArgument("ERR_INVALID_TOPIC", f"number {number}"))
    with pytest.raises(InvalidArgument, match="number 4") as caught:
        await outbox.flush()
    assert caught.value.__notes__ == ["and 2 more messages since the last flush"]


async def test_a_client_that_ends_says_what_was_refused_before() -> None:
    outbox = Outbox(100, 1000)
    first, second = await publish(outbox, 2)
    outbox.pull(Wire(), 100, starting=True)
    outbox.nack(second.seq, InvalidArgument("ERR_INVALID_TOPIC", "no"))
    outbox.close(ClientClosed())
    assert in_doubt(first)
    assert isinstance(second.error, InvalidArgument)
    assert (outbox.in_doubt, outbox.refused) == (1, 1)


async def test_a_message_waits_until_there_is_room_for_its_bytes() -> None:
    outbox = Outbox(100, 10)
    first = await outbox.publish("t", b"x" * 6, 6, b"", confirm=False)
    taken: list[Publication] = []

    async def second() -> None:
        taken.append(await outbox.publish("t", b"y" * 6, 6, b"", confirm=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert (taken, outbox.unsettled_bytes) == ([], 6)
        outbox.settle(first, None)
    assert outbox.unsettled_bytes == 6
    outbox.settle(taken[0], None)
    assert outbox.unsettled_bytes == 0
    assert await outbox.publish("t", b"z" * 60, 6, b"", confirm=False), "one alone may always go"
