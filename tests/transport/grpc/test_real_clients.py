"""grpcio and grpclib, unmodified, in threads against our gRPC server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio
import grpclib.client
import pytest
import trio
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1 import reflection_grpc, reflection_pb2
from grpclib.reflection.v1alpha import reflection_grpc as alpha_grpc
from grpclib.reflection.v1alpha import reflection_pb2 as alpha_pb2

from aether_trio.transport.grpc.health import GATEWAY, NOT_SERVING, SERVING, GrpcHealth
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.reflection import with_reflection
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase
from tests.transport.grpc.harness import Port, Probe, serving

T = TypeVar("T")

ECHO = "/probe.Probe/Echo"


def request(text: str) -> bytes:
    return HealthCheckRequest(service=text).SerializeToString()


async def with_grpcio(port: Port, talk: Callable[[grpc.Channel], T], **options: Any) -> T:
    """Return what `talk` returns, in a thread."""

    def run() -> T:
        with grpc.insecure_channel(f"127.0.0.1:{port}", **options) as channel:
            return talk(channel)

    return await trio.to_thread.run_sync(run)


async def with_grpclib(port: Port, talk: Callable[[grpclib.client.Channel], Awaitable[T]]) -> T:
    """Return what `talk` returns, on asyncio in a thread."""

    async def run() -> T:
        async with grpclib.client.Channel("127.0.0.1", int(port)) as channel:
            return await talk(channel)

    return await trio.to_thread.run_sync(asyncio.run, run())


async def test_grpcio_streams_small_and_large_messages_both_ways(port: Port) -> None:
    sizes = [0, 1, 16_379, 16_380, 65_535, 65_536, 1_000_000, 3_900_000, *range(200)]
    sent = iter([b"x" * size for size in sizes])
    assert await with_grpcio(port, lambda channel: [len(reply) for reply in channel.stream_stream(ECHO)(sent)]) == sizes


async def test_grpcio_sees_statuses_details_and_metadata(port: Port) -> None:
    def talk(channel: grpc.Channel) -> None:
        for path, text, status, details in (
            ("/probe.Probe/Fail", "50 % größer\n", grpc.StatusCode.FAILED_PRECONDITION, "50 % größer\n"),
            ("/probe.Probe/Fail", "bug", grpc.StatusCode.UNKNOWN, "Internal Server Error"),
            ("/probe.Probe/Nothing", "", grpc.StatusCode.UNIMPLEMENTED, "Method not found: /probe.Probe/Nothing"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(request(text))
            assert (caught.value.code(), caught.value.details()) == (status, details)
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_stream("/probe.Probe/Hang")(iter([]), timeout=0.2).next()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        reply, call = channel.unary_unary("/probe.Probe/Metadata").with_call(
            request(""), metadata=(("ask", "me"), ("raw-bin", b"\0\1"))
        )
        assert dict(call.initial_metadata())["initial"] == "me"
        assert dict(call.trailing_metadata())["final-bin"] == b"\x00\xff"
        assert HealthCheckRequest.FromString(reply).service == str(b"\0\1")

    await with_grpcio(port, talk)


@pytest.mark.parametrize("limits", [GrpcLimits(max_receive_message_bytes=1000)])
async def test_grpcio_is_told_of_the_cap_and_goes_on(port: Port) -> None:
    def talk(channel: grpc.Channel) -> None:
        call = channel.stream_stream(ECHO)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"x" * 5_000_000])))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(call(iter([b"y" * 1000]))) == [b"y" * 1000]

    await with_grpcio(port, talk)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_grpcio_may_compress(port: Port, compression: grpc.Compression) -> None:
    sent = [b"squeeze me " * 1000, b"", b"x"]
    got = await with_grpcio(
        port, lambda channel: list(channel.stream_stream(ECHO)(iter(sent))), compression=compression
    )
    assert got == sent


async def test_grpcio_cancelling_a_call_cancels_its_task(port: Port, probe: Probe, nursery: trio.Nursery) -> None:
    started = threading.Event()

    def talk(channel: grpc.Channel) -> None:
        call = channel.stream_stream("/probe.Probe/Hang")(iter([b""]))
        assert started.wait(60)
        call.cancel()

    nursery.start_soon(with_grpcio, port, talk)
    await probe.started.wait()
    started.set()
    await probe.cancelled.wait()


async def test_a_slow_grpcio_reader_does_not_stop_a_fast_one_on_the_same_connection(port: Port) -> None:
    def talk(channel: grpc.Channel) -> tuple[int, int]:
        flood = channel.unary_stream("/probe.Probe/Flood")
        slow: Iterator[bytes] = flood(request("5000"))
        next(slow)
        fast = sum(1 for _ in flood(request("5000")))
        return fast, 1 + sum(1 for _ in slow)

    assert await with_grpcio(port, talk) == (5000, 5000)


async def test_grpcio_aio_with_the_sdks_keepalive_options(port: Port) -> None:
    options = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]

    async def talk() -> list[bytes]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.stream_stream(ECHO)()
            for number in range(100):
                await call.write(b"%d" % number)
            await call.done_writing()
            return [reply async for reply in call]

    replies = await trio.to_thread.run_sync(asyncio.run, talk())
    assert replies == [b"%d" % number for number in range(100)]


async def test_grpclib_streams_and_sees_errors(port: Port) -> None:
    both = (HealthCheckRequest, HealthCheckRequest)

    async def talk(channel: grpclib.client.Channel) -> None:
        async with channel.request(ECHO, Cardinality.STREAM_STREAM, *both) as stream:
            for number in range(50):
                await stream.send_message(HealthCheckRequest(service=str(number) * 1000), end=number == 49)
            assert [reply.service async for reply in stream] == [str(number) * 1000 for number in range(50)]
        with pytest.raises(GRPCError) as caught:
            await grpclib.client.UnaryUnaryMethod(channel, "/probe.Probe/Fail", *both)(both[0](service="because"))
        assert (caught.value.status.name, caught.value.message) == ("FAILED_PRECONDITION", "because")

    await with_grpclib(port, talk)


class Gateway(AetherGatewayBase):
    async def Connect(self, stream: Any) -> None:  # noqa: N802
        await stream.send_trailing_metadata()


async def test_health_check_and_watch() -> None:
    health = GrpcHealth()
    health.set_status(SERVING, "")
    token = trio.lowlevel.current_trio_token()

    async def talk(channel: grpclib.client.Channel) -> None:
        stub = HealthStub(channel)
        for name, status in (("", SERVING), (GATEWAY, NOT_SERVING)):
            assert (await stub.Check(HealthCheckRequest(service=name))).status == status
        with pytest.raises(GRPCError) as caught:
            await stub.Check(HealthCheckRequest(service="unknown"))
        assert caught.value.status.name == "NOT_FOUND"
        async with stub.Watch.open() as stream:
            await stream.send_message(HealthCheckRequest(service=GATEWAY), end=True)
            for status in (NOT_SERVING, SERVING):
                reply = await stream.recv_message()
                assert reply is not None
                assert reply.status == status
                trio.from_thread.run_sync(health.set_status, SERVING, GATEWAY, trio_token=token)
            await stream.cancel()

    async with serving(GrpcServer([Gateway(), health])) as port:
        await with_grpclib(port, talk)
    assert health.status("unknown") is None
    assert HealthCheckResponse.SERVING == SERVING


@pytest.mark.parametrize(
    ("stub", "request_"),
    [
        (reflection_grpc.ServerReflectionStub, reflection_pb2.ServerReflectionRequest),
        (alpha_grpc.ServerReflectionStub, alpha_pb2.ServerReflectionRequest),
    ],
    ids=["v1", "v1alpha"],
)
async def test_reflection(stub: Any, request_: Any) -> None:
    requests = [
        request_(list_services=""),
        request_(file_containing_symbol="aether.v1.AetherGateway"),
        request_(file_containing_symbol="grpc.health.v1.Health"),
        request_(file_containing_symbol="no.such.Thing"),
        request_(file_by_filename="no/such.proto"),
        request_(all_extension_numbers_of_type="aether.v1.UpstreamMessage"),
    ]
    async with serving(GrpcServer(with_reflection([Gateway(), GrpcHealth()]))) as port:
        replies = await with_grpclib(port, lambda channel: stub(channel).ServerReflectionInfo(requests))
    listed = {service.name for service in replies[0].list_services_response.service}
    assert listed == {"aether.v1.AetherGateway", "grpc.health.v1.Health"}
    for reply, inside in ((replies[1], b"UpstreamMessage"), (replies[2], b"HealthCheckRequest")):
        assert inside in reply.file_descriptor_response.file_descriptor_proto[0]
    assert [reply.error_response.error_code for reply in replies[3:5]] == [5, 5]
    assert replies[5].all_extension_numbers_response.base_type_name == "aether.v1.UpstreamMessage"
