"""Ten thousand small things of one connection leave turns to the others."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11._readers
import pytest
import trio

from aether_trio.cli.options import split_address
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.read_loop import A_TURN, REQUEST_COSTS, ReadLoop
from aether_trio.transport.framed.link import FRAMES_AT_ONCE, FramedLink
from aether_trio.transport.grpc import link as grpc_link
from aether_trio.transport.grpc.rpc import RpcAcceptor
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.h2_engine import H2Engine
from aether_trio.transport.http2.stream import MESSAGES_AT_ONCE
from aether_trio.wire import framing, undecodable
from tests.security.clients import FramedTalker, gateway_with, talkers
from tests.transport.framed.adversary import frame
from tests.transport.grpc.harness import RawClient, settings
from tests.transport.grpc.harness import frame as h2_frame

MANY = 4000
WEBSOCKET_EMPTY = b"\x82\x80" + bytes(4)


class Steps(trio.abc.Instrument):
    """How often something was called in one step of a task, at most."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now.clear()

    def count(self, name: str) -> None:
        self._now[name] += 1
        self.total[name] += 1
        self.most[name] = max(self.most[name], self._now[name])


@pytest.fixture
async def steps(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Steps]:
    found = Steps()

    def watch(owner: Any, name: str) -> None:
        watched = getattr(owner, name)

        @functools.wraps(watched)
        def counted(*args: Any, **options: Any) -> Any:
            found.count(name)
            return watched(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    watch(Dispatcher, "dispatch")
    watch(ReadLoop, "_publish")
    watch(grpc_link, "decode_upstream")
    watch(RpcAcceptor, "_open")
    watch(FramedLink, "_count_control")
    watch(h11._readers, "validate")
    watch(undecodable, "read_varint")
    watch(H2Engine, "adopt")

    trio.lowlevel.add_instrument(found)
    yield found
    trio.lowlevel.remove_instrument(found)


@asynccontextmanager
async def raw_client() -> AsyncIterator[RawClient]:
    """A connection to a gateway that sends exact frames, and no acknowledgements."""
    async with gateway_with() as gateway, await trio.open_tcp_stream(*split_address(gateway.address)) as stream:
        client = RawClient(stream)
        client.acks_settings = False
        yield client


async def until_answered(client: RawClient, requests: Sequence[bytes], last: int) -> None:
    """Send requests in one write, and wait for the end of the call of this number."""
    first = (frames.PREFACE, settings(), h2_frame(frames.SETTINGS, frames.ACK, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, *first, *requests)
        end = (frames.HEADERS, last, frames.END_STREAM)
        await client.until(lambda f: (f.kind, f.stream_id, f.flags & frames.END_STREAM) == end)


@pytest.mark.parametrize(
    ("transport", "nothing"),
    [("grpc", bytes(5)), ("framed", frame(8)), ("websocket", WEBSOCKET_EMPTY)],
    ids=["grpc", "framed", "websocket"],
)
async def test_many_small_requests_are_handled_in_many_turns(transport: str, nothing: bytes, steps: Steps) -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        talker = await clients.connect(transport, "busy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talker.go_on, nothing * MANY)
            if transport != "grpc":  # whose talker reads while it writes
                for _ in range(MANY):
                    await talker.answer("error")
        if transport == "grpc":
            for _ in range(MANY):
                await talker.answer("error")
    assert steps.total["dispatch"] == MANY
    assert steps.most["dispatch"] <= A_TURN // REQUEST_COSTS
    assert steps.most["decode_upstream"] <= MESSAGES_AT_ONCE


async def test_many_small_sends_are_taken_in_many_turns(steps: Steps) -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        talker = await clients.connect("framed", "busy")
        assert isinstance(talker, FramedTalker)
        await talker.peer.send(*(framing.Send(seq, "ag::w::idle::1", b"") for seq in range(1, 2001)))
        while (await talker.peer.next(framing.Ack)).seq < 2000:
            pass
    assert steps.total["_publish"] == 2000
    assert steps.most["_publish"] <= A_TURN


async def test_many_small_frames_are_looked_at_in_many_turns(steps: Steps) -> None:
    async with gateway_with(framed={"control_frames_per_s": float(MANY)}) as gateway, talkers(gateway) as clients:
        talker = await clients.connect("framed", "busy")
        await talker.go_on(frame(0x80) * MANY + frame(8))
        await talker.answer("error")
    assert steps.total["_count_control"] == MANY
    assert steps.most["_count_control"] <= FRAMES_AT_ONCE


async def test_many_requests_of_an_unauthenticated_client_are_answered_in_many_turns(steps: Steps) -> None:
    """Each request of an unauthenticated client is told that there is no such method."""
    last = 2 * MANY - 1
    async with raw_client() as client:
        requests = [client.request(number, "/nothing", end=True) for number in range(1, last + 1, 2)]
        await until_answered(client, requests, last)
    assert steps.total["_open"] == MANY
    assert steps.most["_open"] <= 24


async def test_a_head_of_many_lines_is_refused_before_it_is_taken_apart(steps: Steps) -> None:
    async with raw_client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 12_000 + b"\r\n")
        answer = b"".join([part async for part in client.stream])
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert steps.most["validate"] <= 300


async def test_a_message_of_many_fields_that_cannot_be_decoded_is_searched_in_some_of_them(steps: Steps) -> None:
    fields = b"\x78\x00" * 30_000  # unknown fields
    async with gateway_with() as gateway, talkers(gateway) as clients:
        talker = await clients.dial("framed")
        assert isinstance(talker, FramedTalker)
        await talker.go_on(frame(8, fields + b"\xff"))
        await talker.peer.until_end()
    assert 0 < steps.most["read_varint"] <= 4096


async def test_a_connection_of_many_calls_asks_something_new(steps: Steps) -> None:
    """Until then its headers were not looked at, which were those of others."""
    watch = "/grpc.health.v1.Health/Watch"
    async with gateway_with() as gateway:
        for number_of_connection in range(2):  # the first one's headers are looked at
            async with await trio.open_tcp_stream(*split_address(gateway.address)) as stream:
                client = RawClient(stream)
                await client.send(frames.PREFACE, settings(), client.request(1, watch))
                await client.until_kind(frames.SETTINGS)
                await client.send(*(client.request(number, watch) for number in range(3, 1001, 2)))
                await client.send(client.request(1001, f"/nothing-{number_of_connection}"))
                await client.trailers(1001)
    assert steps.most["adopt"] <= 32


async def test_a_request_of_many_headers_counts_for_many_requests(steps: Steps) -> None:
    """Each header is one byte, that of an entry in HPACK's table."""
    flags = frames.END_HEADERS | frames.END_STREAM
    async with raw_client() as client:
        blocks = {number: client.block(f"/{number}") + b"\x90" * 250 for number in range(1, 200, 2)}
        requests = [h2_frame(frames.HEADERS, flags, number, block) for number, block in blocks.items()]
        await until_answered(client, requests, 199)
    assert steps.total["_open"] == 100
    assert steps.most["_open"] == 1
