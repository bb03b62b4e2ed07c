"""Test deliveries: acknowledgements, credit and repetitions."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.client import AgentClient
from aether_trio.wire import framing
from tests.client.gateways import agent
from tests.client.peer import Line, incoming, open_peer, scripted

A = "ag::w::i::a"
WORK = "tb::w::i"


async def deliver(line: Line, channel: int, *offsets: int) -> None:
    await line.say(*(framing.Deliver(channel, offset, incoming(b"%d" % offset)) for offset in offsets))


async def take(client: AgentClient, count: int) -> list[int]:
    """So many messages, by a loop that stops with the last one in its hands."""
    found = []
    async for message in client:
        assert message.topic in {A, WORK}
        assert message.text == str(message.offset)
        found.append(message.offset)
        if len(found) == count:
            break
    return found


def acknowledged(events: list[framing.Event]) -> list[tuple[int, int]]:
    return [(event.channel, event.offset) for event in events if isinstance(event, framing.Delivered)]


async def test_a_message_is_acknowledged_when_the_loop_goes_on() -> None:
    taken, go_on = trio.Event(), trio.Event()

    async def body(a: AgentClient) -> None:
        async for message in a:
            if message.offset == 7:
                taken.set()
                await go_on.wait()
            if message.offset == 9:
                break

    async with scripted(body) as (_, line):
        await line.say(framing.Channel(5, A, 3))
        await deliver(line, 5, 7)
        await taken.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not line.seen
        go_on.set()
        assert await line.next(framing.Delivered) == framing.Delivered(5, 7)
        await deliver(line, 5, 8, 9)
        # One frame may stand for both; leaving the block well acknowledges the last one.
        assert acknowledged(await line.end())[-1] == (5, 9)


async def test_many_acknowledgements_are_one_frame() -> None:
    async def body(a: AgentClient) -> None:
        while len(a._dispatch.inbox) < 100:
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            (await a.receive()).ack()

    async with scripted(body) as (_, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, *range(1, 101))
        assert len(acknowledged(await line.end())) < 100


async def test_what_raises_out_of_the_block_is_not_acknowledged() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(ZeroDivisionError):
                async with agent(peer.address, "a") as a:
                    async for message in a:
                        assert message.offset / (message.offset - 2)

        nursery.start_soon(body)
        line = await peer.accept()
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 3)
        assert acknowledged(await line.end()) == [(1, 1)]


async def test_by_hand_and_out_of_order_the_position_moves_when_all_before_it_is_done() -> None:
    steps = [trio.Event() for _ in range(3)]

    async def body(a: AgentClient) -> None:
        messages = [await a.receive() for _ in range(4)]
        for number, step in zip((2, 0, 1), steps, strict=True):
            await step.wait()
            messages[number].ack()
            messages[number].ack()  # again is nothing

    async with scripted(body, manual_acks=True) as (_, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 4, 8)
        steps[0].set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not line.seen
        steps[1].set()
        assert await line.next(framing.Delivered) == framing.Delivered(1, 1)
        steps[2].set()
        assert await line.next(framing.Delivered) == framing.Delivered(1, 4)
        assert acknowledged(await line.end()) == []


async def test_repetitions_after_a_cut_are_dropped_and_acknowledged_again() -> None:
    async def body(a: AgentClient) -> None:
        assert await take(a, 5) == [1, 2, 3, 4, 5]
        assert a.connections == 2
        assert a._dispatch.inbox.duplicates == 3

    async with scripted(body) as (peer, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 3)
        await line.next(framing.Delivered)
        again = await peer.cut()
        # The gateway has not learnt of any of the acknowledgements.
        await again.say(framing.Channel(9, A))
        await deliver(again, 9, 1)
        assert await again.next(framing.Delivered) == framing.Delivered(9, 1)
        await deliver(again, 9, 2, 3, 4, 5)
        assert acknowledged(await again.end())[-1] == (9, 5)


async def test_a_gateway_that_counts_from_the_beginning_again_is_believed() -> None:
    found: list[bytes] = []

    async def body(a: AgentClient) -> None:
        async for message in a:
            found.append(message.payload)
            if message.payload == b"new 2":
                break

    async with scripted(body) as (peer, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 3)
        await line.next(framing.Delivered)
        again = await peer.cut()
        await again.say(framing.Channel(1, A))
        await again.say(*(framing.Deliver(1, offset, incoming(b"new %d" % offset)) for offset in (1, 2)))
        assert acknowledged(await again.end())[-1] == (1, 2)
    assert found == [b"1", b"2", b"3", b"new 1", b"new 2"]


async def test_work_is_acknowledged_piece_by_piece_and_given_back_when_it_was_not_begun() -> None:
    begun = trio.Event()
    cut = trio.Event()

    async def body(a: AgentClient) -> None:
        first, second = await a.receive(), await a.receive()
        second.ack()
        begun.set()
        await cut.wait()
        first.ack()
        # 30 was in the buffer when the connection was cut: another member may have it now.
        assert [(await a.receive()).offset for _ in range(2)] == [40, 5]

    async with scripted(body, manual_acks=True, on_disconnected=lambda _why: cut.set()) as (peer, line):
        await line.say(framing.Channel(1, WORK, 0, shared=True))
        await deliver(line, 1, 10, 20, 30)
        assert await line.next(framing.Delivered) == framing.Delivered(1, 20)
        await begun.wait()
        again = await peer.cut()
        await again.say(framing.Channel(1, WORK, 0, shared=True))
        # 10 and 20 come again: they are done, and said to be.
        await deliver(again, 1, 10, 20, 40, 5)
        assert acknowledged(await again.end()) == [(1, 10), (1, 20)]


async def test_credit_bounds_what_is_held_and_comes_back_with_acknowledgements() -> None:
    go_on = trio.Event()

    async def body(a: AgentClient) -> None:
        while len(a._dispatch.inbox) < 4:
            await trio.testing.wait_all_tasks_blocked()
        await go_on.wait()
        assert await take(a, 6) == [1, 2, 3, 4, 5, 6]

    async with scripted(body, credit_messages=4, credit_bytes=100_000) as (_, line):
        assert line.hello is not None
        assert (line.hello.credit_messages, line.hello.credit_bytes) == (4, 100_000)
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 3, 4)
        assert not line.connection.deliverable
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not line.seen
        go_on.set()
        for offset in (5, 6):
            while not line.connection.deliverable:
                await line.next(framing.GrantCredit)
            await deliver(line, 1, offset)


async def test_a_new_connection_is_given_the_credit_that_is_left() -> None:
    reconnected = trio.Event()

    async def body(a: AgentClient) -> None:
        await reconnected.wait()
        assert await take(a, 3) == [1, 2, 3]

    async with scripted(body, credit_messages=4) as (peer, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, 1, 2, 3)
        await trio.testing.wait_all_tasks_blocked(0.01)
        again = await peer.cut()
        assert again.hello is not None
        assert again.hello.credit_messages == 1
        reconnected.set()


async def test_several_tasks_share_the_messages() -> None:
    found: list[int] = []

    async def body(a: AgentClient) -> None:
        async with trio.open_nursery() as workers:

            async def work() -> None:
                async for message in a:
                    found.append(message.offset)
                    await trio.sleep(0)
                    if len(found) >= 20:
                        workers.cancel_scope.cancel()

            for _ in range(3):
                workers.start_soon(work)

    async with scripted(body) as (_, line):
        await line.say(framing.Channel(1, A))
        await deliver(line, 1, *range(1, 21))
    assert sorted(found) == list(range(1, 21))
