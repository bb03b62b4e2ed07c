"""Peers that cost too much are ended by budgets, and other clients notice nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing
from grpclib.health.v1.health_pb2 import HealthCheckRequest
from trio.testing import MockClock

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.http2.limits import Allowance, Allowances
from tests.transport.grpc.harness import (
    Port,
    RawClient,
    connected,
    data,
    frame,
    header_frames,
    message,
    serving,
    settings,
)

SMALL = Allowance(20, 0.0)
TIGHT = replace(Allowances(*[SMALL] * 8), window_updates=Allowance(60, 0.0))

Flood = Callable[[RawClient], bytes]


def each(client: RawClient, count: int, more: Callable[[int], bytes] = lambda _: b"") -> bytes:
    """So many requests, with `more` of its number behind each of them."""
    return b"".join(client.request(number) + more(number) for number in range(1, 2 * count, 2))


@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (lambda _: settings() * 100, "settings_flood"),
        (lambda _: frames.ping(b"12345678", ack=True) * 100, "ping_flood"),
        (lambda c: each(c, 50, lambda number: frames.rst_stream(number, Http2ErrorCode.CANCEL)), "rapid_reset"),
        # CVE-2025-8671: the client never resets, it provokes the server's resets.
        (lambda c: each(c, 50, lambda number: frames.window_update(number, 0)), "rapid_reset"),
        (lambda c: each(c, 1000), "rapid_reset"),  # streams that are refused
        (lambda c: each(c, 1) + data(1, b"") * 100, "empty_data_flood"),
        (lambda c: each(c, 1) + frame(frames.DATA, frames.PADDED, 1, b"\x05" + b"\0" * 5) * 100, "empty_data_flood"),
        (lambda _: frames.window_update(0, 1) * 100, "window_update_flood"),
        (lambda _: frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\x10") * 100, "priority_flood"),
        (lambda c: each(c, 1) + frames.rst_stream(1, Http2ErrorCode.CANCEL) + data(1, b"x") * 100, "stray_data_flood"),
        (lambda _: frame(0x77, 0, 0, b"?") * 100, "unknown_frame_flood"),
    ],
)
@pytest.mark.parametrize("limits", [GrpcLimits(allowances=TIGHT, max_concurrent_streams=100)])
async def test_floods_end_with_enhance_your_calm(server: GrpcServer, port: Port, flood: Flood, reason: str) -> None:
    other = await RawClient.connect(port)
    await other.send(other.request(1))
    client = await RawClient.connect(port)
    await client.send(flood(client))
    _, code, debug = await client.goaway()
    assert (code, debug) == (Http2ErrorCode.ENHANCE_YOUR_CALM, reason)
    assert await client.next() is None
    assert server.statistics().rejects[reason] == 1
    await other.send(data(1, message(b"unmoved")))
    assert await other.payload(1, 12) == message(b"unmoved")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda c: header_frames(c.block(), *[b""] * 99), "continuation_flood"),
        (lambda _: header_frames(*[b"\0" * 16_000] * 4), "header_block_size"),
        (lambda c: header_frames(c.block(), c.block(x_large="v" * 16_000), end=True), "header_list_size"),
    ],
)
async def test_header_bombs(server: GrpcServer, client: RawClient, content: Flood, reason: str) -> None:
    await client.send(content(client))
    _, code, _ = await client.goaway()
    assert code == Http2ErrorCode.ENHANCE_YOUR_CALM
    assert server.statistics().rejects[reason] == 1


async def test_many_unknown_settings_are_not_remembered(server: GrpcServer, client: RawClient) -> None:
    body = b"".join((1000 + n).to_bytes(2, "big") + b"\0\0\0\1" for n in range(2000))
    await client.send(frame(frames.SETTINGS, 0, 0, body), client.request(1), data(1, message(b"fine")))
    assert await client.payload(1, 9) == message(b"fine")
    (connection,) = server.connections
    assert len(connection.settings_and_headers._h2._h2.remote_settings) < 10


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (settings(push=2), Http2ErrorCode.PROTOCOL_ERROR),
        (settings(window=2**31), Http2ErrorCode.FLOW_CONTROL_ERROR),
        (settings(frame=100), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, b"12345"), Http2ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.PING, 0, 0, b"short"), Http2ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.PING, 0, 1, b"12345678"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, b"\0\0\0\1"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 2, b"\0\0\0\1"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\1"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, b"123"), Http2ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 0, b"123"), Http2ErrorCode.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, 4, 2, b"\x82"), Http2ErrorCode.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), Http2ErrorCode.COMPRESSION_ERROR),
    ],
)
async def test_malformed_control_frames_get_a_goaway(client: RawClient, content: bytes, code: Http2ErrorCode) -> None:
    await client.send(content)
    _, got, _ = await client.goaway()
    # h2 reports every failure of HPACK as PROTOCOL_ERROR.
    assert got in {code, Http2ErrorCode.PROTOCOL_ERROR}
    assert await client.next() is None


@pytest.mark.parametrize("limits", [GrpcLimits(allowances=TIGHT)])
async def test_resets_of_streams_that_were_served_are_no_flood(client: RawClient) -> None:
    await client.send(client.request(1))
    served = range(3, 203, 2)
    for stream_id in served:
        await client.send(client.request(stream_id), data(stream_id, message(b"m")))
        await client.payload(stream_id, 6)
    await client.send(b"".join(frames.rst_stream(stream_id, Http2ErrorCode.CANCEL) for stream_id in served))
    await client.send(data(1, message(b"unmoved")))
    assert await client.payload(1, 12) == message(b"unmoved")


async def test_early_pings_are_struck_and_forgiven_by_data(client: RawClient) -> None:
    await client.send(client.request(1))
    for _ in range(5):  # each answer forgives, as grpc-core's own probes need
        await client.send(frames.ping(b"measure!"), frames.ping(b"measure!"), data(1, message(b"m")))
        await client.payload(1, 6)
    await client.send(frames.ping(b"too many") * 4)
    _, code, debug = await client.goaway()
    assert (code, debug) == (Http2ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")


async def test_pings_ten_seconds_apart_are_fine_without_any_stream(client: RawClient, jumpy: MockClock) -> None:
    for _ in range(6):
        await client.send(frames.ping(b"keep up!"))
        assert (await client.until_kind(frames.PING)).flags == frames.ACK
        await trio.sleep(10)


@pytest.mark.parametrize(
    ("first", "code", "reason"),
    [
        (b"", Http2ErrorCode.SETTINGS_TIMEOUT, "handshake_timeout"),
        (frames.PREFACE[:10], Http2ErrorCode.SETTINGS_TIMEOUT, "handshake_timeout"),
        (frames.PREFACE, Http2ErrorCode.SETTINGS_TIMEOUT, "handshake_timeout"),
        (frames.PREFACE + settings(), Http2ErrorCode.NO_ERROR, "idle_timeout"),
    ],
    ids=["nothing", "half a preface", "preface", "settings without an acknowledgement"],
)
@pytest.mark.parametrize("limits", [GrpcLimits(handshake_timeout_s=5, idle_timeout_s=5)])
async def test_a_client_that_is_silent_after_connecting_is_let_go(
    server: GrpcServer, first: bytes, code: Http2ErrorCode, reason: str, jumpy: MockClock
) -> None:
    async with serving(server) as port:
        client = await RawClient.bare(port)
        client.acks_settings = False
        await client.send(first)
        before = trio.current_time()
        assert (await client.goaway())[1] == code
        assert await client.next() is None
        assert trio.current_time() - before >= 5
    assert server.statistics().rejects[reason] == 1
    assert server.statistics().connections_open == 0


@pytest.mark.parametrize("limits", [GrpcLimits(idle_timeout_s=60)])
async def test_a_connection_without_streams_ends_after_its_idle_time(server: GrpcServer, jumpy: MockClock) -> None:
    async with connected(server) as client:
        await client.until_kind(frames.SETTINGS)
        await client.send(client.request(1), data(1, message(b"busy")))
        await client.payload(1, 9)
        await trio.sleep(600)  # an open stream keeps it
        await client.send(data(1, b"", end=True))
        await client.trailers(1)
        before = trio.current_time()
        assert (await client.goaway())[1] == Http2ErrorCode.NO_ERROR
        assert trio.current_time() - before >= 60
    assert server.statistics().rejects["idle_timeout"] == 1


@pytest.mark.parametrize(
    "limits", [GrpcLimits(allowances=replace(Allowances(), pings=Allowance(10**9, 0.0)), max_ping_strikes=10**9)]
)
async def test_a_peer_that_never_reads_our_replies_is_dropped(server: GrpcServer) -> None:
    async with serving(server) as port:
        stream = await port.connect()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(frames.PREFACE + settings())
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(frames.ping(b"12345678") * 5000)
    assert server.statistics().rejects["unread_replies"] == 1


@pytest.mark.parametrize("limits", [GrpcLimits(max_unread_answers_bytes=32_768)])
async def test_who_reads_no_answers_is_asked_for_no_more_requests(server: GrpcServer, port: Port) -> None:
    """A client without a credential could hold 40 MB of answers otherwise."""
    client = await RawClient.connect(port, settings(window=0))
    numbers = range(1, 401, 2)
    asked = message(HealthCheckRequest(service="x" * 4096).SerializeToString())
    for number in numbers:
        await client.send(client.request(number, "/probe.Probe/One"), data(number, asked, end=True))
    await client.barrier()
    await trio.testing.wait_all_tasks_blocked()
    (connection,) = server.connections
    held = [len(stream.pending) for stream in connection.plane.streams.values() if stream.pending is not None]
    assert 32_768 < sum(held) <= 32_768 + len(asked)
    await client.send(settings(window=65_535), frames.window_update(0, 2**30))
    for _ in numbers:
        await client.until(lambda f: f.kind == frames.HEADERS and bool(f.flags & frames.END_STREAM))
    assert sum(len(one.body) for one in client.seen if one.kind == frames.DATA) == len(numbers) * len(asked)


@pytest.mark.parametrize("limits", [GrpcLimits(allowances=TIGHT)])
async def test_a_client_that_answers_each_message_with_window_updates_is_no_flood(client: RawClient) -> None:
    """grpc-core does: one for the stream and one for the connection."""
    await client.send(client.request(1))
    answer = frames.window_update(0, 6) + frames.window_update(1, 6)
    for _ in range(300):
        await client.send(data(1, message(b"x")))
        await client.payload(1, 6)
        await client.send(answer)
    # Without reading anything, the same frames end the connection.
    await client.send(answer * 600)
    assert (await client.goaway())[2] == "window_update_flood"


@pytest.mark.parametrize("limits", [GrpcLimits(idle_timeout_s=0)])
async def test_an_idle_timeout_of_zero_is_none(client: RawClient, jumpy: MockClock) -> None:
    await client.until_kind(frames.SETTINGS)
    await trio.sleep(40_000)
    await client.send(client.request(1), data(1, message(b"here"), end=True))
    assert (await client.trailers(1))["grpc-status"] == "0"
    await client.stream.aclose()
