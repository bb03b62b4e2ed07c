"""Test what a client counts."""

from __future__ import annotations

import dataclasses

import anyio
import pytest
import trio

from aether_trio.client import (
    AgentClient,
    ClientClosed,
    ClientStatistics,
    ConnectionLost,
    InvalidArgument,
    Retry,
    State,
    connect_sync,
)
from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.wire import framing
from tests.client.gateways import QUICK, SCHEMES, agent, in_a_thread, open_test_gateway, with_gateway
from tests.client.peer import incoming, scripted
from tests.helpers.gateway import open_gateway_process


def check_sums(now: ClientStatistics) -> None:
    assert now.published == now.committed + now.refused + now.in_doubt + now.not_sent + now.unsettled
    assert min(value for value in dataclasses.astuple(now) if isinstance(value, int)) >= 0


@with_gateway(schemes=SCHEMES)
async def test_a_conversation(address: str) -> None:
    async with agent(address, "a") as a, agent(address, "b") as b:
        alone = dataclasses.replace(a.statistics(), state=State.NEW, connections=0)
        assert alone == agent(address, "c").statistics(), "a connection alone counts nothing else"
        for number in range(5):
            await a.send(b.topic, f"number {number}")
        with pytest.raises(InvalidArgument):
            await a.send("nowhere", b"")
        await a.kv.put("k", b"v")
        async for message in b:
            if message.text == "number 1":
                break
        now = b.statistics()
        while now.buffered < 3:  # they are committed, and on their way to it
            await anyio.sleep(0.01)
            now = b.statistics()
        assert (now.received, now.unacknowledged, now.duplicates) == (2, 1, 0)
        assert now.held_bytes >= 4 * len("number 1")
    for client, published, refused, requests in ((a, 6, 1, 1), (b, 0, 0, 0)):
        after = client.statistics()
        check_sums(after)
        assert (after.published, after.refused, after.committed) == (published, refused, published - refused)
        assert (after.requests, after.requests_open, after.connections) == (requests, 0, 1)
        assert (after.state, after.unsettled, after.unsettled_bytes, after.resent) == (State.CLOSED, 0, 0, 0)


async def test_what_is_sent_again_after_a_cut() -> None:
    async with (
        open_test_gateway() as gateway,
        open_fault_proxy(gateway.address) as proxy,
        agent(f"aether://{proxy.address}", "a") as a,
    ):
        (await proxy.connection(0)).downstream.drop()
        publication = await a.publish(a.topic, b"once")
        while a.statistics().requests_open or not publication.written:
            await trio.sleep(0.01)
        assert (a.statistics().unsettled, a.statistics().unsettled_bytes) == (1, len(b"once"))
        proxy.cut_all()
        await publication.committed()
        assert (await a.receive()).payload == b"once"
        now = a.statistics()
        assert (now.connections, now.resent, now.committed, now.received) == (2, 1, 1, 1)
        check_sums(now)


async def test_what_is_in_doubt_after_a_cut() -> None:
    async with (
        open_test_gateway() as gateway,
        open_fault_proxy(gateway.address) as proxy,
        agent(f"ws://{proxy.address}", "a") as a,
    ):
        (await proxy.connection(0)).downstream.drop()
        publication = await a.publish(a.topic, b"perhaps")
        while not publication.written:
            await trio.sleep(0.01)
        proxy.cut_all()
        with pytest.raises(ConnectionLost):
            await publication.committed()
        now = a.statistics()
        assert (now.in_doubt, now.committed, now.resent) == (1, 0, 0)
        check_sums(now)


async def test_a_repeated_delivery_is_a_duplicate() -> None:
    async def body(a: AgentClient) -> None:
        async for message in a:
            if message.offset == 2:
                break
        now = a.statistics()
        assert (now.received, now.duplicates, now.buffered, now.unacknowledged) == (2, 1, 0, 1)

    async with scripted(body) as (peer, line):
        await line.say(framing.Channel(1, "ag::w::i::a"), framing.Deliver(1, 1, incoming(b"1")))
        await line.next(framing.Delivered)
        again = await peer.cut()
        await again.say(framing.Channel(1, "ag::w::i::a"))
        await again.say(*(framing.Deliver(1, offset, incoming(b"%d" % offset)) for offset in (1, 2)))


async def test_attempts_that_fail_and_messages_that_never_leave() -> None:
    async with open_gateway_process() as gateway:
        client = agent(f"aether://{gateway.address}", "a", close_timeout_s=0.1)
        with pytest.raises(ConnectionLost) as caught:
            async with client as a:
                await trio.to_thread.run_sync(gateway.kill)
                while a.statistics().failed_attempts < 2:
                    await trio.sleep(0.01)
                assert a.statistics().state in {State.CONNECTING, State.WAITING}
                publication = await a.publish(a.topic, b"never sent")
        assert not caught.value.in_doubt, "nothing was sent"
        with pytest.raises(ClientClosed):
            await publication.committed()
        after = client.statistics()
        assert (after.connections, after.published, after.not_sent, after.in_doubt) == (1, 1, 1, 0)
        check_sums(after)


@in_a_thread
def test_the_blocking_client_has_them_too(address: str) -> None:
    with connect_sync(address, workspace="w", implementation="i", specifier="a", retry=QUICK) as a:
        a.send(a.topic, b"hello")
        assert a.receive(30).payload == b"hello"
        assert a.statistics().state is State.CONNECTED
    after = a.statistics()
    assert (after.committed, after.received, after.state) == (1, 1, State.CLOSED)


async def test_what_a_failed_client_drops_was_never_taken() -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        a = agent(f"aether://{proxy.address}", "a", retry=Retry(max_attempts=0))
        with pytest.raises(ConnectionLost):
            async with a:
                await a.send(a.topic, "one")
                while a.statistics().buffered < 1:
                    await trio.sleep(0.01)
                proxy.cut_all()
                await trio.sleep_forever()
        after = a.statistics()
        assert (after.buffered, after.unacknowledged, after.held_bytes) == (0, 0, 0)
