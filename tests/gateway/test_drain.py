"""A drain serves what is on its way, on every transport, and then ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.cli.options import split_address
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.session.session import Session
from aether_trio.testing.memory import agent, message_to
from aether_trio.transport.http2 import frames
from aether_trio.wire import framing
from tests.client import gateways
from tests.client.gateways import open_test_gateway
from tests.gateway.sessions import session_of
from tests.helpers.core import kv_get
from tests.helpers.participants import TRANSPORTS, participant
from tests.security.clients import talkers
from tests.transport.framed.adversary import PREFACE
from tests.transport.framed.harness import FramedPeer
from tests.transport.grpc.harness import RawClient, data, frame, message, settings

A, B = "ag::w::a::1", "ag::w::b::1"
NEVER_S = 3600.0
"""A deadline that a test does not live to see: what ends before it has ended for another reason."""


@asynccontextmanager
async def draining(deadline_s: float, **limits: float) -> AsyncIterator[tuple[Gateway, Callable[[], None]]]:
    """A gateway, and what begins its drain; the block begins it, and then it ends."""
    async with (
        open_test_gateway(grpc={"drain_deadline_s": deadline_s}, limits=limits) as gateway,
        trio.open_nursery() as nursery,
    ):
        yield gateway, partial(nursery.start_soon, gateway.drain)
        await has_closed(gateway)


async def has_closed(gateway: Gateway) -> None:
    with trio.fail_after(300):
        await gateway.wait_closed()


async def framed(gateway: Gateway, name: str) -> FramedPeer:
    peer = FramedPeer(await trio.open_tcp_stream(*split_address(gateway.addresses["framed"])))
    await peer.open(agent("w", name, "1"))
    return peer


async def test_a_framed_client_finishes_behind_a_goaway_and_ends_the_drain() -> None:
    async with draining(NEVER_S) as (gateway, drain):
        a = await framed(gateway, "a")
        await a.send(framing.Send(1, A, b"one"), framing.Send(2, A, b"two"))
        one, _ = await a.delivery()
        await a.delivery()
        await a.send(framing.Send(3, B, b"on its way"))
        late = a.codec.send(framing.Send(4, B, b"sent before it knew"))
        drain()
        goaway = await a.next(framing.GoAway)
        assert (goaway.reason, goaway.within_ms) == (framing.GoAwayReason.DRAINING, round(0.9 * NEVER_S * 1000))
        await a.send_raw(late)
        await a.send(framing.Delivered(one.channel, one.offset), framing.Envelope(kv_get("1").SerializeToString()))
        assert (await a.answer("kv")).kv.request_id == "1"
        while (await a.next(framing.Ack)).seq < 4:
            pass
        log = gateway.core.log
        assert log.topics.ensure(B).tail == 2
        assert (await log.unread(A))[0] == 1  # its position
        with trio.fail_after(300):
            await a.finish()
        assert a.error is None


async def test_a_framed_client_that_does_not_go_is_served_for_as_long_as_was_said() -> None:
    async with draining(2.0) as (gateway, drain):
        a = await framed(gateway, "a")
        began = trio.current_time()
        late = a.codec.send(framing.Send(1, A, b"to a client that is leaving"))
        drain()
        goaway = await a.next(framing.GoAway)
        await a.send_raw(late)
        while (await a.next(framing.Ack)).seq < 1:
            pass
        error = await a.until_end()
        assert error is not None
        assert (error.code, error.retryable) == (Status.UNAVAILABLE, True)
        # A lower bound: no machine is too slow for it.
        assert trio.current_time() - began >= goaway.within_ms / 1000
        # Nothing new to work on.
        assert not [event for event in a._events if isinstance(event, framing.Deliver)]
        await has_closed(gateway)
        await a.stream.aclose()


@pytest.mark.parametrize("transport", ["grpc", "websocket"])
async def test_what_has_come_is_served_before_the_end(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with draining(NEVER_S) as (gateway, drain):
        asked, go_on = trio.Event(), trio.Event()
        sound = gateway.core.dispatcher._batch_handlers["kv_op"]

        async def slow(session: Session, payloads: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await sound(session, payloads)

        monkeypatch.setitem(gateway.core.dispatcher._batch_handlers, "kv_op", slow)
        async with participant(transport, gateway.address, agent("w", "a", "1")) as a:
            await a.send(kv_get("1"))
            await asked.wait()
            await a.send(message_to(B, b"behind it"))
            await a.send(kv_get("2"))
            drain()
            await a.next("signal")
            go_on.set()
            assert (await a.next("kv")).kv.request_id == "1"
            assert (await a.next("kv")).kv.request_id == "2"
            assert await a.status() is Status.UNAVAILABLE
        assert gateway.core.log.topics.ensure(B).tail == 1


@pytest.mark.parametrize("transport", ["grpc", "websocket"])
async def test_idle_clients_do_not_hold_up_a_drain(transport: str) -> None:
    async with draining(NEVER_S) as (gateway, drain):
        async with participant(transport, gateway.address, agent("w", "a", "1")) as a:
            drain()
            assert await a.status() is Status.UNAVAILABLE
        await has_closed(gateway)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*split_address(gateway.address))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_reads_nothing_is_cut_at_the_deadline(transport: str) -> None:
    async with (
        draining(1.0) as (gateway, drain),
        participant("grpc", gateway.address, agent("w", "a", "1")) as a,
        participant(transport, gateway.address, agent("w", "b", "1")),
    ):
        session = session_of(gateway, B)
        while session.link.stalled_since is None:
            await a.send(message_to(B, bytes(1_000_000)))
            await a.send(kv_get("1"))
            await a.next("kv")
        drain()
        await has_closed(gateway)


async def test_our_client_loses_nothing_and_keeps_its_tasks() -> None:
    """It ends its side itself; its tasks wait for it as when the gateway had ended it."""
    async with draining(NEVER_S) as (gateway, drain), gateways.agent(f"aether://{gateway.addresses['framed']}", "1"):
        session = session_of(gateway, "ag::w::i::1")
        drain()
        await has_closed(gateway)
        assert session.ending is None  # the client was the one who went
        assert session.ended_by_gateway
        assert not session.finished


@asynccontextmanager
async def grpc_client(gateway: Gateway) -> AsyncIterator[RawClient]:
    """A connection on which nothing was sent."""
    async with await trio.open_tcp_stream(*split_address(gateway.addresses["grpc"])) as stream:
        yield RawClient(stream)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_clients_without_a_first_message_do_not_delay_a_drain(transport: str) -> None:
    async with draining(NEVER_S, init_wait_s=NEVER_S) as (gateway, drain), talkers(gateway) as clients:
        newcomer = await clients.dial(transport)
        if transport == "framed":
            await newcomer.peer.next(framing.ServerHello)
        elif transport == "grpc":
            await newcomer.go_on(b"\0")
            while not gateway._ports._transports["grpc"].statistics().streams_open:
                await trio.sleep(0.01)
        drain()
        await has_closed(gateway)


async def test_a_client_that_has_not_said_hello_does_not_hold_up_a_drain() -> None:
    async with (
        draining(NEVER_S, init_wait_s=NEVER_S) as (gateway, drain),
        await trio.open_tcp_stream(*split_address(gateway.addresses["framed"])) as stream,
    ):
        await stream.send_all(PREFACE)
        while not gateway._ports.statistics().chosen["framed"]:
            await trio.sleep(0.01)
        drain()
        with trio.fail_after(300):
            error = await FramedPeer(stream).until_end()
        assert error is not None
        assert (error.code, error.retryable) == (Status.UNAVAILABLE, True)


async def test_who_watches_the_health_does_not_hold_up_a_drain() -> None:
    async with draining(NEVER_S) as (gateway, drain), grpc_client(gateway) as client:
        watch = client.request(1, "/grpc.health.v1.Health/Watch")
        await client.send(frames.PREFACE, settings(), watch, data(1, message(b""), end=True))
        assert await client.payload(1, 7) == message(b"\x08\x01")
        drain()
        with trio.fail_after(300):
            assert (await client.trailers(1))["grpc-status"] == "14"
            assert message(b"\x08\x02") in [one.body for one in client.seen]
            await client.rest()


@pytest.mark.parametrize(
    "method", ["grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
)
async def test_a_call_that_says_nothing_does_not_hold_up_a_drain(method: str) -> None:
    async with draining(NEVER_S) as (gateway, drain), grpc_client(gateway) as client:
        await client.send(frames.PREFACE, settings(), client.request(1, f"/{method}"))
        while not gateway._ports._transports["grpc"].statistics().streams_open:
            await trio.sleep(0.01)
        drain()
        with trio.fail_after(300):
            assert (await client.trailers(1))["grpc-status"] == "14"
            await client.rest()


async def test_what_a_client_has_sent_that_is_leaving_itself_is_served() -> None:
    """Its GOAWAY says that it opens no calls any more; those that it has go on."""
    async with draining(NEVER_S) as (gateway, drain), grpc_client(gateway) as client:
        await client.send(frames.PREFACE, settings(), client.request(1, "/aether.v1.AetherGateway/Connect"))
        await client.send(data(1, message(agent("w", "a", "1").SerializeToString())))
        await client.payload(1, 6)
        await client.send(frame(frames.GOAWAY, 0, 0, bytes(8)), frame(frames.PING, 0, 0, bytes(8)))
        await client.until_kind(frames.PING)
        drain()
        with trio.fail_after(300):
            ping = await client.until_kind(frames.PING)
            late = message_to(B, b"on its way").SerializeToString()
            await client.send(data(1, message(late)), frame(frames.PING, frames.ACK, 0, ping.body))
            assert (await client.trailers(1))["grpc-status"] == "14"
        assert gateway.core.log.topics.ensure(B).tail == 1
        await client.rest()
