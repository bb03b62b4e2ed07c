"""A drain sends two GOAWAYs, waits for RPCs, and ends the rest with UNAVAILABLE."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest
import trio
from trio.testing import MockClock

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.socket.accepted import Accepted
from tests.transport.grpc.harness import Port, Probe, RawClient, connected, data, frame, message, settings


async def test_first_goaway_allows_all_second_names_the_last_and_later_streams_are_refused(server: GrpcServer) -> None:
    async with connected(server) as client, trio.open_nursery() as nursery:
        await client.send(client.request(1), data(1, message(b"a")))
        await client.payload(1, 6)
        nursery.start_soon(server.drain, 1000)

        assert (await client.goaway())[:2] == (2**31 - 1, Http2ErrorCode.NO_ERROR)
        probe_ping = await client.until_kind(frames.PING)
        # On its way when the client learned of the drain: still served.
        await client.send(client.request(3), frame(frames.PING, frames.ACK, 0, probe_ping.body))
        assert (await client.goaway())[:2] == (3, Http2ErrorCode.NO_ERROR)

        await client.send(client.request(5))
        assert await client.reset_code(5) == Http2ErrorCode.REFUSED_STREAM

        await client.send(data(1, message(b"b"), end=True), data(3, message(b"c"), end=True))
        ends = [f for f in await client.rest() if f.kind == frames.HEADERS and f.flags & frames.END_STREAM]
        assert {f.stream_id: client.decode(f)["grpc-status"] for f in ends} == {1: "0", 3: "0"}
        await client.stream.aclose()
    assert server.statistics().connections_open == 0
    assert server.statistics().rejects == {"draining": 1}


async def test_a_drain_that_finds_no_ping_ack_goes_on(server: GrpcServer, jumpy: MockClock) -> None:
    async with connected(server) as client, trio.open_nursery() as nursery:
        await client.until_kind(frames.SETTINGS)
        nursery.start_soon(server.drain, 1000)
        assert (await client.goaway())[0] == 2**31 - 1
        assert (await client.goaway())[0] == 0
        assert await client.next() is None


async def test_after_the_deadline_the_rest_gets_unavailable(server: GrpcServer, probe: Probe, jumpy: MockClock) -> None:
    async with connected(server) as client, trio.open_nursery() as nursery:
        await client.send(client.request(1, "/probe.Probe/Hang"))
        await probe.started.wait()
        before = trio.current_time()
        nursery.start_soon(server.drain, 20)
        assert (await client.trailers(1))["grpc-status"] == "14"
        assert trio.current_time() - before >= 20
        await client.rest()
    assert probe.cancelled.is_set()


async def test_a_cancelled_server_still_says_unavailable(server: GrpcServer, probe: Probe) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    with trio.fail_after(60), far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, Accepted(far, None))
            client = RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(near)))
            async with client.stream:
                await client.send(frames.PREFACE, frame(frames.SETTINGS, 0, 0), client.request(1, "/probe.Probe/Hang"))
                await probe.started.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert (await client.trailers(1))["grpc-status"] == "14"


async def test_grpcio_finishes_its_call_during_a_drain_and_finds_no_server_afterwards(
    server: GrpcServer, port: Port, nursery: trio.Nursery
) -> None:
    async def drain_and_wait_for_goaway() -> None:
        port.accepting.cancel()
        nursery.start_soon(server.drain, 1000)
        while not all(connection.goaway_limit < 2**31 - 1 for connection in server.connections):
            await trio.sleep(0.01)

    def requests() -> Iterator[bytes]:
        yield b"first"
        trio.from_thread.run(drain_and_wait_for_goaway, trio_token=token)
        yield b"second"

    def talk() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/probe.Probe/Echo")
            assert list(call(requests())) == [b"first", b"second"]
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b"late"])))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    token = trio.lowlevel.current_trio_token()
    await trio.to_thread.run_sync(talk)


@pytest.mark.parametrize("limits", [GrpcLimits(max_connection_age_s=100)])
async def test_an_old_connection_is_drained_and_then_ended(client: RawClient, jumpy: MockClock) -> None:
    await client.send(client.request(1))
    before = trio.current_time()
    assert (await client.goaway())[0] == 2**31 - 1
    assert 90 <= trio.current_time() - before <= 125
    assert (await client.trailers(1))["grpc-status"] == "14"
    await client.rest()


async def test_a_drain_does_not_wait_for_connections_that_ended_while_it_waited_for_another(
    server: GrpcServer, port: Port, jumpy: MockClock
) -> None:
    clients = [await RawClient.connect(port) for _ in range(5)]
    for client in clients:
        await client.until_kind(frames.SETTINGS)
    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(client.rest)
        await server.drain(1000)
    assert trio.current_time() - before < 500
    assert not server.connections


async def test_a_client_that_reads_nothing_is_cut_at_the_deadline(
    server: GrpcServer, probe: Probe, port: Port, jumpy: MockClock
) -> None:
    client = await RawClient.connect(port, settings(window=2**31 - 1))
    await client.send(frames.window_update(0, 2**30))
    await client.send(client.request(1, "/probe.Probe/Flood"), data(1, message(b"\x0a\x05" + b"20000"), end=True))
    await probe.started.wait()
    await trio.sleep(1)  # of the clock that jumps: it writes until its socket is full
    deadline = trio.current_time() + 20
    await server.drain(20)
    assert trio.current_time() == deadline
    assert server.statistics().connections_open == 0
