"""Test the buffer of deliveries and its credit, without a connection."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.client.connection.inbox import MAX_TOPICS, Inbox
from aether_trio.client.errors import MessagesAbandoned, SessionEnded
from aether_trio.wire.framing import Channel
from aether_trio.wire.framing.constants import MAX_CREDIT
from tests.client.peer import incoming


@pytest.mark.parametrize("credit", [(0, 1), (1, 0), (MAX_CREDIT + 1, 1), (1, MAX_CREDIT + 1)])
def test_a_credit_that_no_connection_can_bring_is_refused(credit: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="credit_messages or credit_bytes"):
        Inbox(*credit)


def test_what_is_granted_fills_up_the_credit_and_no_more() -> None:
    inbox = Inbox(8, 1000)
    assert inbox.grant_due(7, 900) is None, "less than a quarter of both is missing"
    assert inbox.grant_due(6, 900) == (2, 100)
    assert inbox.grant_due(8, 750) == (0, 250)
    assert inbox.grant_due(6, 1000) == (2, 0)
    inbox.open_channel(Channel(1, "t", 0))
    inbox.deliver(1, 1, incoming(b"x" * 2000))
    assert inbox.grant_due(5, 0) == (2, 0), "a large one has taken more than all of the bytes"


async def test_credit_that_is_missed_is_told_at_once_each_time_that_a_quarter_is_free() -> None:
    inbox = Inbox(8, 1 << 20)
    told: list[str] = []
    inbox.wake = lambda: told.append("now")
    inbox.wake_soon = lambda: told.append("soon")
    inbox.open_channel(Channel(1, "t", 0))
    for offset in range(1, 7):
        inbox.deliver(1, offset, incoming(b"x"))
    for _ in range(2):
        for _ in range(2):
            (await inbox.receive()).ack()
        assert inbox.grant_due(8 - inbox.held_messages - 2, 0)
    assert told == ["soon", "now", "soon", "now"]


async def test_a_failure_lets_go_of_what_was_buffered_and_keeps_what_is_in_the_programs_hands() -> None:
    inbox = Inbox(8, 1 << 20)
    inbox.open_channel(Channel(1, "t", 0))
    size = len(incoming(b"x"))
    for offset in (1, 2, 3):
        inbox.deliver(1, offset, incoming(b"x"))
    message = await inbox.receive()
    inbox.close(SessionEnded("X", "over"))
    assert (len(inbox), inbox.held_messages, inbox.held_bytes) == (0, 1, size)
    with pytest.raises(SessionEnded):
        await inbox.receive()
    message.ack()
    assert (inbox.held_messages, inbox.held_bytes) == (0, 0)


async def test_a_cut_drops_what_another_member_may_have_got_and_its_credit() -> None:
    inbox = Inbox(8, 1 << 20)
    inbox.open_channel(Channel(1, "own", 0))
    inbox.open_channel(Channel(2, "group", 0, shared=True))
    inbox.deliver(1, 1, incoming(b"own"))
    inbox.deliver(2, 1, incoming(b"group"))
    inbox.cut()
    assert (inbox.held_messages, inbox.held_bytes) == (1, len(incoming(b"own")))
    assert inbox.hello_credit() == (7, (1 << 20) - inbox.held_bytes)
    inbox.open_channel(Channel(2, "group", 0, shared=True))
    inbox.deliver(2, 1, incoming(b"group"))
    inbox.close(None)
    assert [(await inbox.receive()).payload for _ in range(2)] == [b"own", b"group"]
    with pytest.raises(StopAsyncIteration):
        await inbox.receive()


@pytest.mark.parametrize("failure", [None, SessionEnded("X", "over")], ids=["the end", "a failure"])
async def test_a_reader_that_waits_hears_of_the_end(failure: SessionEnded | None) -> None:
    inbox = Inbox(8, 1 << 20)
    heard: list[BaseException] = []

    async def read() -> None:
        try:
            await inbox.receive()
        except (SessionEnded, StopAsyncIteration) as error:
            heard.append(error)

    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            inbox.close(failure)
            inbox.close(None)
    assert [type(error) for error in heard] == [StopAsyncIteration if failure is None else SessionEnded]


async def test_a_reader_that_waits_hears_that_nothing_can_come() -> None:
    """All that may be delivered is in the hands of tasks that have ended."""
    inbox = Inbox(2, 1 << 20)
    inbox.open_channel(Channel(1, "t", 0))
    for offset in (1, 2):
        inbox.deliver(1, offset, incoming(b"x"))
    first, second = await inbox.receive(), await inbox.receive()
    first.abandon()
    heard: list[BaseException] = []

    async def read() -> None:
        try:
            await inbox.receive()
        except MessagesAbandoned as error:
            heard.append(error)

    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert heard == []
            second.abandon()
    assert len(heard) == 1
    second.ack()
    inbox.deliver(1, 3, incoming(b"third"))
    assert (await inbox.receive()).payload == b"third"


@pytest.mark.parametrize("shared", [False, True])
async def test_topics_that_nothing_is_known_of_any_more_are_forgotten(shared: bool) -> None:
    """A client that lives long has very many: a task has one for each connection."""
    inbox = Inbox(1024, 1 << 20)
    inbox.open_channel(Channel(1, "first", 0))
    inbox.deliver(1, 7, incoming(b"in the hands of the program"))
    held = await inbox.receive()
    for number in range(2 * MAX_TOPICS):
        inbox.cut()
        inbox.open_channel(Channel(1, "the same", 0))
        inbox.open_channel(Channel(2, f"ta::w::i::{number}", 0, shared=shared))
        inbox.deliver(2, 1, incoming(b"x"))
        (await inbox.receive()).ack()
    assert len(inbox._topics) <= MAX_TOPICS
    assert {"first", "the same"} <= inbox._topics.keys()
    inbox.cut()
    inbox.open_channel(Channel(1, "first", 0))
    inbox.deliver(1, 7, incoming(b"in the hands of the program"))
    assert inbox.duplicates == 1
    held.ack()
    assert inbox._topics["first"].owes
