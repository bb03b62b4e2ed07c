"""What was written and not settled is sent again for as long as the gateway may know it, counted
from its first writing.

The gateway may have noticed an end of the connection long before the client does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from aether_trio.client import AgentClient, ConnectionLost
from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.wire import framing
from tests.client.gateways import agent, open_test_gateway
from tests.client.peer import Line, Peer, open_peer
from tests.helpers.core import run_in_virtual_time

B = "ag::w::i::b"
LIMIT_S = 300.0
HOUR = framing.ServerHello(dedup_s=3600)


async def test_what_was_committed_on_a_connection_that_only_the_gateway_knew_to_be_dead_is_not_doubled() -> None:
    async with open_test_gateway(framed={"dedup_s": 1}) as gateway, open_fault_proxy(gateway.address) as proxy:
        with trio.fail_after(LIMIT_S):
            async with (
                agent(f"aether://{gateway.address}", "b") as b,
                agent(f"aether://{proxy.address}", "a", ping_interval=None) as a,
            ):
                connection = await proxy.connection(0)
                connection.downstream.stall()
                publication = await a.publish(b.topic, b"once")
                assert (await b.receive()).text == "once"
                connection.cut(client=False)
                await trio.sleep(1.5)  # the gateway has forgotten it; it may take longer
                connection.cut()
                with pytest.raises(ConnectionLost) as caught:
                    await publication.committed()
                assert caught.value.in_doubt
                await a.send(b.topic, b"afterwards")
                assert (await b.receive()).text == "afterwards"


# -- with a scripted one, in hours that pass at once


def play(body: Callable[[AgentClient], Awaitable[None]], script: Callable[[Peer, Line], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def run() -> None:
                async with agent(peer.address, "a", ping_interval=None) as a:
                    await body(a)

            nursery.start_soon(run)
            await script(peer, await peer.accept(hello=HOUR))

    run_in_virtual_time(main)


async def in_doubt(a: AgentClient, payload: bytes) -> None:
    with pytest.raises(ConnectionLost) as caught:
        await a.send(B, payload)
    assert caught.value.in_doubt


async def settled(line: Line, payload: bytes) -> None:
    send = await line.next(framing.Send)
    assert send.payload == payload
    await line.say(framing.Ack(send.seq))


async def cut(line: Line) -> None:
    await trio.aclose_forcefully(line.stream)


def test_a_cut_that_is_noticed_after_an_hour_leaves_in_doubt_what_was_written_before() -> None:
    async def body(a: AgentClient) -> None:
        await in_doubt(a, b"an hour ago")
        await a.send(B, b"afterwards")

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        await trio.sleep(3601)
        await cut(line)
        line = await peer.accept("s2", HOUR)
        await settled(line, b"afterwards")
        await line.end()

    play(body, script)


def test_what_is_written_after_hours_of_silence_is_sent_again() -> None:
    async def body(a: AgentClient) -> None:
        await trio.sleep(7200)
        await a.send(B, b"just now")

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        await cut(line)
        line = await peer.accept("s2", HOUR)
        await settled(line, b"just now")
        await line.end()

    play(body, script)


def test_of_two_messages_the_older_one_is_in_doubt_and_the_other_is_sent_again() -> None:
    async def body(a: AgentClient) -> None:
        old = await a.publish(B, b"old")
        await trio.sleep(1800)
        await a.send(B, b"young")
        with pytest.raises(ConnectionLost):
            await old.committed()

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        await line.next(framing.Send)
        await trio.sleep(2000)
        await cut(line)
        line = await peer.accept("s2", HOUR)
        await settled(line, b"young")
        await line.end()

    play(body, script)


def test_repeating_it_prolongs_nothing() -> None:
    async def body(a: AgentClient) -> None:
        await in_doubt(a, b"x")

    async def script(peer: Peer, line: Line) -> None:
        for _ in range(3):
            await line.next(framing.Send)
            await trio.sleep(1300)
            await cut(line)
            line = await peer.accept("s2", HOUR)
        await line.end()

    play(body, script)


def test_a_gateway_that_remembers_for_a_shorter_time_than_the_last_one_is_believed() -> None:
    async def body(a: AgentClient) -> None:
        await in_doubt(a, b"x")

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        await trio.sleep(100)
        await cut(line)
        line = await peer.accept("s2", framing.ServerHello(dedup_s=60))
        await line.end()

    play(body, script)


def test_the_hours_that_a_machine_slept_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the event loop stands still meanwhile, and that of the calendar does not."""

    async def body(a: AgentClient) -> None:
        await in_doubt(a, b"x")

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3601)
        await cut(line)
        line = await peer.accept("s2", HOUR)
        await line.end()

    play(body, script)


def test_a_calendar_that_is_set_back_prolongs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(a: AgentClient) -> None:
        await in_doubt(a, b"x")

    async def script(peer: Peer, line: Line) -> None:
        await line.next(framing.Send)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 86400)
        await trio.sleep(3601)
        await cut(line)
        line = await peer.accept("s2", HOUR)
        await line.end()

    play(body, script)
