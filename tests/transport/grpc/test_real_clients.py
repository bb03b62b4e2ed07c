"""grpcio (sync and asyncio) and grpclib, unmodified, against our server.

They run in threads; the server is on trio.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import grpclib.client
import pytest
import trio
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_grpc import ServerReflectionStub
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest

from aether_trio.transport.grpc.health import GATEWAY, NOT_SERVING, SERVING, GrpcHealth
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.reflection import with_reflection
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase
from tests.transport.grpc.harness import probe_server, serving

ECHO = "/probe.Probe/Echo"


def request(text: str) -> bytes:
    return HealthCheckRequest(service=text).SerializeToString()


async def test_grpcio_streams_small_and_large_messages_both_ways() -> None:
    server, _ = probe_server()
    sizes = [0, 1, 16_379, 16_380, 65_535, 65_536, 1_000_000, 3_900_000, *range(200)]

    def client(port: int) -> list[int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return [len(reply) for reply in channel.stream_stream(ECHO)(iter([b"x" * size for size in sizes]))]

    async with serving(server) as port:
        assert await trio.to_thread.run_sync(client, int(port)) == sizes


async def test_grpcio_sees_statuses_details_and_metadata() -> None:
    server, _ = probe_server()

    def client(port: int) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name, path, text in (
                ("raised", "/probe.Probe/Fail", "größer"),
                ("bug", "/probe.Probe/Fail", "bug"),
                ("unknown", "/probe.Probe/Nothing", ""),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(path)(request(text))
                seen[name] = (caught.value.code(), caught.value.details())
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_stream("/probe.Probe/Hang")(iter([]), timeout=0.2).next()
            seen["deadline"] = caught.value.code()
            reply, call = channel.unary_unary("/probe.Probe/Metadata").with_call(
                request(""), metadata=(("ask", "me"), ("raw-bin", b"\0\1"))
            )
            seen["initial"] = dict(call.initial_metadata())["initial"]
            seen["final"] = dict(call.trailing_metadata())["final-bin"]
            seen["reply"] = HealthCheckRequest.FromString(reply).service
        return seen

    async with serving(server) as port:
        seen = await trio.to_thread.run_sync(client, int(port))
    assert seen["raised"] == (grpc.StatusCode.FAILED_PRECONDITION, "größer")
    assert seen["bug"] == (grpc.StatusCode.UNKNOWN, "Internal Server Error")
    assert seen["unknown"][0] is grpc.StatusCode.UNIMPLEMENTED
    assert seen["deadline"] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (seen["initial"], seen["final"], seen["reply"]) == ("me", b"\x00\xff", str(b"\0\1"))


async def test_grpcio_is_told_of_the_cap_and_goes_on() -> None:
    server, _ = probe_server(limits=GrpcLimits(max_receive_message_bytes=1000))

    def client(port: int) -> tuple[Any, list[bytes]]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(ECHO)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b"x" * 5_000_000])))
            return caught.value.code(), list(call(iter([b"y" * 1000])))

    async with serving(server) as port:
        code, replies = await trio.to_thread.run_sync(client, int(port))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert replies == [b"y" * 1000]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_grpcio_may_compress(compression: grpc.Compression) -> None:
    server, _ = probe_server()

    def client(port: int) -> list[bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
            return list(channel.stream_stream(ECHO)(iter([b"squeeze me " * 1000, b"", b"x"])))

    async with serving(server) as port:
        assert await trio.to_thread.run_sync(client, int(port)) == [b"squeeze me " * 1000, b"", b"x"]


async def test_grpcio_cancelling_a_call_cancels_its_task() -> None:
    server, probe = probe_server()
    started = threading.Event()

    def client(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/probe.Probe/Hang")(iter([b""]))
            assert started.wait(60)
            call.cancel()

    async with serving(server) as port, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, client, int(port))
        await probe.started.wait()
        started.set()
        await probe.cancelled.wait()


async def test_a_slow_grpcio_reader_does_not_stop_a_fast_one_on_the_same_connection() -> None:
    server, _ = probe_server()
    go_on = threading.Event()

    def client(port: int) -> tuple[int, int]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            flood = channel.unary_stream("/probe.Probe/Flood")
            slow: Iterator[bytes] = flood(request("5000"))
            next(slow)
            fast = sum(1 for _ in flood(request("5000")))
            go_on.set()
            return fast, 1 + sum(1 for _ in slow)

    async with serving(server) as port:
        assert await trio.to_thread.run_sync(client, int(port)) == (5000, 5000)
    assert go_on.is_set()


async def test_grpcio_aio_with_the_sdks_keepalive_options() -> None:
    server, _ = probe_server()
    options = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]

    async def talk(port: int) -> list[bytes]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.stream_stream(ECHO)()
            for number in range(100):
                await call.write(b"%d" % number)
            await call.done_writing()
            return [reply async for reply in call]

    async with serving(server) as port:
        replies = await trio.to_thread.run_sync(lambda: asyncio.run(talk(int(port))))
    assert replies == [b"%d" % number for number in range(100)]


async def test_grpclib_streams_and_sees_errors() -> None:
    server, _ = probe_server()

    async def talk(port: int) -> tuple[list[str], Any]:
        async with grpclib.client.Channel("127.0.0.1", port) as channel:
            async with channel.request(
                ECHO, Cardinality.STREAM_STREAM, HealthCheckRequest, HealthCheckRequest
            ) as stream:
                for number in range(50):
                    await stream.send_message(HealthCheckRequest(service=str(number) * 1000), end=number == 49)
                got = [reply.service[:2] async for reply in stream]
            method = grpclib.client.UnaryUnaryMethod(
                channel, "/probe.Probe/Fail", HealthCheckRequest, HealthCheckRequest
            )
            with pytest.raises(GRPCError) as caught:
                await method(HealthCheckRequest(service="because"))
            return got, (caught.value.status.name, caught.value.message)

    async with serving(server) as port:
        got, error = await trio.to_thread.run_sync(lambda: asyncio.run(talk(int(port))))
    assert len(got) == 50
    assert error == ("FAILED_PRECONDITION", "because")


class Gateway(AetherGatewayBase):
    async def Connect(self, stream: Any) -> None:  # noqa: N802
        await stream.send_trailing_metadata()


async def test_health_check_and_watch() -> None:
    health = GrpcHealth()
    health.set_status(SERVING, "")
    changed: list[int] = []

    async def talk(port: int) -> list[Any]:
        async with grpclib.client.Channel("127.0.0.1", port) as channel:
            stub = HealthStub(channel)
            seen: list[Any] = [(await stub.Check(HealthCheckRequest(service=name))).status for name in ("", GATEWAY)]
            with pytest.raises(GRPCError) as caught:
                await stub.Check(HealthCheckRequest(service="unknown"))
            seen.append(caught.value.status.name)
            async with stub.Watch.open() as stream:
                await stream.send_message(HealthCheckRequest(service=GATEWAY), end=True)
                first = await stream.recv_message()
                assert first is not None
                seen.append(first.status)
                trio.from_thread.run_sync(health.set_status, SERVING, GATEWAY, trio_token=token)
                second = await stream.recv_message()
                assert second is not None
                seen.append(second.status)
                changed.append(1)
                await stream.cancel()
            return seen

    token = trio.lowlevel.current_trio_token()
    async with serving(GrpcServer([Gateway(), health])) as port:
        seen = await trio.to_thread.run_sync(lambda: asyncio.run(talk(int(port))))
    assert seen == [SERVING, NOT_SERVING, "NOT_FOUND", NOT_SERVING, SERVING]
    assert health.status("unknown") is None
    assert HealthCheckResponse.SERVING == SERVING


async def test_reflection_v1_and_v1alpha() -> None:
    async def ask(port: int, stub_type: Any, request_type: Any) -> list[Any]:
        async with grpclib.client.Channel("127.0.0.1", port) as channel:
            return await stub_type(channel).ServerReflectionInfo(
                [
                    request_type(list_services=""),
                    request_type(file_containing_symbol="aether.v1.AetherGateway"),
                    request_type(file_containing_symbol="grpc.health.v1.Health"),
                    request_type(file_containing_symbol="no.such.Thing"),
                    request_type(file_by_filename="no/such.proto"),
                    request_type(all_extension_numbers_of_type="aether.v1.UpstreamMessage"),
                ]
            )

    from grpclib.reflection.v1alpha.reflection_grpc import ServerReflectionStub as AlphaStub
    from grpclib.reflection.v1alpha.reflection_pb2 import ServerReflectionRequest as AlphaRequest

    async with serving(GrpcServer(with_reflection([Gateway(), GrpcHealth()]))) as port:
        for stub, kind in ((ServerReflectionStub, ServerReflectionRequest), (AlphaStub, AlphaRequest)):
            replies = await trio.to_thread.run_sync(lambda s=stub, k=kind: asyncio.run(ask(int(port), s, k)))
            listed = {service.name for service in replies[0].list_services_response.service}
            assert listed == {"aether.v1.AetherGateway", "grpc.health.v1.Health"}
            for reply, inside in ((replies[1], b"UpstreamMessage"), (replies[2], b"HealthCheckRequest")):
                assert inside in reply.file_descriptor_response.file_descriptor_proto[0]
            assert [reply.error_response.error_code for reply in replies[3:5]] == [5, 5]
            assert replies[5].all_extension_numbers_response.base_type_name == "aether.v1.UpstreamMessage"
