"""A message is sent again after a cut while the gateway remembers its number."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from aether_trio.client import AgentClient, ConnectionLost
from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.wire import framing
from tests.client.gateways import agent, open_test_gateway
from tests.client.peer import Peer, scripted
from tests.helpers.core import run_in_virtual_time

B = "ag::w::i::b"
LIMIT_S = 300.0
HOUR = framing.ServerHello(dedup_s=3600)


async def test_what_was_committed_on_a_connection_that_only_the_gateway_knew_to_be_dead_is_not_doubled() -> None:
    async with open_test_gateway(framed={"dedup_s": 1}) as gateway, open_fault_proxy(gateway.address) as proxy:
        with trio.fail_after(LIMIT_S):
            async with (
                agent(f"aether://{gateway.address}", "b") as b,
                agent(f"aether://{proxy.address}", "a", ping_interval_s=None) as a,
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


def play(body: Callable[[AgentClient], Awaitable[None]], script: Callable[[Peer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with scripted(body, hello=HOUR, ping_interval_s=None) as (peer, _):
            await script(peer)

    run_in_virtual_time(main)


async def in_doubt(a: AgentClient) -> None:
    with pytest.raises(ConnectionLost) as caught:
        await a.send(B, b"x")
    assert caught.value.in_doubt


async def settled(peer: Peer, payload: bytes) -> None:
    send = await peer.line.next(framing.Send)
    assert send.payload == payload
    await peer.line.say(framing.Ack(send.seq))


def test_a_cut_that_is_noticed_after_an_hour_leaves_in_doubt_what_was_written_before() -> None:
    async def body(a: AgentClient) -> None:
        await in_doubt(a)
        await a.send(B, b"afterwards")

    async def script(peer: Peer) -> None:
        await peer.line.next(framing.Send)
        await trio.sleep(3601)
        await peer.cut(HOUR)
        await settled(peer, b"afterwards")

    play(body, script)


def test_what_is_written_after_hours_of_silence_is_sent_again() -> None:
    async def body(a: AgentClient) -> None:
        await trio.sleep(7200)
        await a.send(B, b"just now")

    async def script(peer: Peer) -> None:
        await peer.line.next(framing.Send)
        await peer.cut(HOUR)
        await settled(peer, b"just now")

    play(body, script)


def test_of_two_messages_the_older_one_is_in_doubt_and_the_other_is_sent_again() -> None:
    async def body(a: AgentClient) -> None:
        old = await a.publish(B, b"old")
        await trio.sleep(1800)
        await a.send(B, b"young")
        with pytest.raises(ConnectionLost):
            await old.committed()

    async def script(peer: Peer) -> None:
        await peer.line.next(framing.Send)
        await peer.line.next(framing.Send)
        await trio.sleep(2000)
        await peer.cut(HOUR)
        await settled(peer, b"young")

    play(body, script)


def test_repeating_it_prolongs_nothing() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(3):
            await peer.line.next(framing.Send)
            await trio.sleep(1300)
            await peer.cut(HOUR)

    play(in_doubt, script)


@pytest.mark.parametrize(
    ("passed_s", "calendar_s", "hello"),
    [
        pytest.param(100, 0, framing.ServerHello(dedup_s=60), id="the next gateway remembers for a shorter time"),
        pytest.param(0, 3601, HOUR, id="the machine slept, and the clock of the event loop stood still"),
        pytest.param(3601, -86400, HOUR, id="the calendar is set back"),
    ],
)
def test_it_is_in_doubt_by_either_clock_and_by_what_the_next_gateway_remembers(
    monkeypatch: pytest.MonkeyPatch, passed_s: float, calendar_s: float, hello: framing.ServerHello
) -> None:
    async def script(peer: Peer) -> None:
        await peer.line.next(framing.Send)
        if calendar_s:
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + calendar_s)
        await trio.sleep(passed_s)
        await peer.cut(hello)

    play(in_doubt, script)
