"""The native client against our server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from aether_trio.transport.grpc.client import GrpcCall, GrpcChannel, open_channel
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2.connection_io import ConnectionIo
from aether_trio.transport.http2.frames import Http2ErrorCode, goaway
from aether_trio.transport.http2.stream import Http2Stream
from aether_trio.transport.link import LinkBroken
from tests.transport.grpc.harness import Port, Probe


def ask(text: str) -> HealthCheckRequest:
    return HealthCheckRequest(service=text)


async def one(channel: GrpcChannel, text: str) -> str:
    return (await channel.unary("/probe.Probe/One", ask(text), HealthCheckRequest)).service


@pytest.fixture
async def channel(port: Port) -> AsyncIterator[GrpcChannel]:
    async with open_channel("127.0.0.1", int(port)) as opened:
        yield opened


async def test_large_messages_cross_every_window(channel: GrpcChannel) -> None:
    big = "b" * 3_000_000
    async with channel.stream("/probe.Probe/Echo", HealthCheckRequest) as call, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            for _ in range(3):
                await call.send(ask(big), ask("small"))
            await call.end()

        got = [reply.service async for reply in call]
    assert got == [big, "small"] * 3
    assert channel.statistics().bytes_sent > 3 * len(big)


async def test_an_answer_before_our_end_counts(channel: GrpcChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has read the request answers, and resets what it need not read."""
    wait_drained = ConnectionIo.wait_drained

    async def late(connection: ConnectionIo, stream: Http2Stream) -> None:
        while isinstance(stream.handler, GrpcCall) and stream.broken_reason is None:
            await trio.sleep(0.01)
        await wait_drained(connection, stream)

    monkeypatch.setattr(ConnectionIo, "wait_drained", late)
    with trio.fail_after(300):
        assert await one(channel, "x") == "x"


async def test_a_status_is_raised_around_the_channel_as_it_is(port: Port) -> None:
    with pytest.raises(GRPCError) as caught:
        async with open_channel("127.0.0.1", int(port)) as channel:
            await channel.unary("/probe.Probe/Fail", ask("größer"), HealthCheckRequest)
    assert (caught.value.status, caught.value.message) == (Status.FAILED_PRECONDITION, "größer")


async def test_leaving_a_call_cancels_it(channel: GrpcChannel, probe: Probe) -> None:
    async with channel.stream("/probe.Probe/Hang", HealthCheckRequest):
        await probe.started.wait()
    await probe.cancelled.wait()


async def test_a_timeout_reaches_the_server_and_is_raised(channel: GrpcChannel, probe: Probe) -> None:
    with pytest.raises(GRPCError) as caught:
        async with channel.stream("/probe.Probe/Hang", HealthCheckRequest, timeout=0.2) as call:
            await call.receive()
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    await probe.cancelled.wait()


async def test_a_drained_server_breaks_new_calls_and_the_end_breaks_old_ones(
    server: GrpcServer, probe: Probe, channel: GrpcChannel
) -> None:
    async with channel.stream("/probe.Probe/Hang", HealthCheckRequest) as call:
        await probe.started.wait()
        await server.drain(0)
        with pytest.raises(GRPCError) as caught:
            await call.receive()
        assert caught.value.status is Status.UNAVAILABLE
    with pytest.raises(LinkBroken):
        async with channel.stream("/probe.Probe/Echo", HealthCheckRequest):
            pass


async def test_the_clients_own_message_cap(port: Port) -> None:
    async with open_channel("127.0.0.1", int(port), limits=GrpcLimits(max_receive_message_bytes=100)) as channel:
        with pytest.raises(GRPCError) as caught:
            await one(channel, "x" * 200)
        assert caught.value.status is Status.RESOURCE_EXHAUSTED


async def test_no_server() -> None:
    with pytest.raises(OSError, match="all attempts to connect"):
        async with open_channel("127.0.0.1", 1):
            pass


@pytest.mark.parametrize("limits", [GrpcLimits(max_receive_message_bytes=1000)])
async def test_a_server_that_has_ended_the_call_is_not_sent_the_rest(channel: GrpcChannel) -> None:
    """What a server refuses by its length would fill the windows for ever."""
    async with channel.stream("/probe.Probe/Echo", HealthCheckRequest) as call:
        with trio.fail_after(300), pytest.raises(GRPCError) as caught:
            await call.send(ask("x" * 20_000_000))
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        with pytest.raises(GRPCError):
            await call.receive()
    assert await one(channel, "y") == "y"


async def test_a_port_that_speaks_something_else_says_so() -> None:
    """By a GOAWAY without the SETTINGS that ought to come first."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer() -> None:
            async with await listener.accept() as stream:
                await stream.receive_some()
                await stream.send_all(goaway(0, Http2ErrorCode.HTTP_1_1_REQUIRED, "TLS is required here"))
                await stream.send_eof()
                async for _ in stream:
                    pass

        with pytest.raises(LinkBroken, match="TLS is required here"):
            async with open_channel("127.0.0.1", listener.socket.getsockname()[1]) as channel:
                await one(channel, "x")
