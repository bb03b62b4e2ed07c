"""The gRPC server as a whole: statistics, fairness, and random frames."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
import trio

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.socket.accepted import Accepted
from tests.transport.grpc.harness import Port, RawClient, data, frame, message, settings


@pytest.mark.parametrize("taken", [1, 10, 24, 30, 200])
async def test_a_socket_whose_first_bytes_were_read_by_a_sniffer(server: GrpcServer, taken: int) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    client = RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(near)))
    with trio.fail_after(60), far:
        async with client.stream, trio.open_nursery() as nursery:
            await client.send(frames.PREFACE, settings(), client.request(1), data(1, message(b"sniffed")))
            nursery.start_soon(server.serve, Accepted(far, None, head=far.recv(taken)))
            assert await client.payload(1, 12) == message(b"sniffed")
            nursery.cancel_scope.cancel()


async def test_statistics_count_what_is_open_and_what_was(server: GrpcServer, client: RawClient) -> None:
    await client.send(client.request(1), client.request(3), data(1, message(b"a")))
    await client.payload(1, 6)
    now = server.statistics()
    assert (now.connections_open, now.connections_total, now.streams_open, now.streams_total) == (1, 1, 2, 2)
    assert now.bytes_received > 100
    assert now.bytes_sent > 50
    (connection,) = server.connections
    assert connection.statistics().streams_open == 2
    assert connection.statistics().data_frames_sent == 1
    assert connection.statistics().send_window_bytes == 65_535 - 6
    await client.stream.aclose()
    while server.statistics().connections_open:
        await trio.sleep(0.01)
    assert server.statistics().streams_open == 0


async def test_streams_of_one_connection_take_turns(port: Port) -> None:
    client = await RawClient.connect(port, settings(window=2**30))
    await client.send(frames.window_update(0, 2**30))
    for stream_id in (1, 3):
        await client.send(
            client.request(stream_id, "/probe.Probe/Flood"), data(stream_id, message(b"\n\x042000"), end=True)
        )
    order = [(await client.until_kind(frames.DATA)).stream_id for _ in range(4000)]
    assert 500 < order[:2000].count(1) < 1500


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [GrpcLimits(linger_s=0.05)])
async def test_damaged_sessions_end_cleanly(server: GrpcServer, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    randomness = random.Random(seed)
    for _ in range(100):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        with near, far, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, Accepted(far, None))
                session = _session(randomness)
                for at in range(0, len(session), 97):
                    try:
                        near.send(session[at : at + 97])
                    except OSError:
                        break  # the server has ended it already
                    await trio.lowlevel.checkpoint()
                near.shutdown(socket.SHUT_WR)
    assert caplog.text == ""
    now = server.statistics()
    assert (now.connections_open, now.streams_open) == (0, 0)
    assert now.streams_total > 0


def _session(randomness: random.Random) -> bytes:
    client = RawClient(None)  # type: ignore[arg-type]
    parts = [
        settings(window=randomness.choice([0, 100, 70_000, 2**31 - 1]), table=randomness.choice([0, 100, 4096])),
        client.request(1),
        data(1, message(randomness.randbytes(30))),
        frames.window_update(randomness.choice([0, 1, 3]), randomness.choice([1, 2**30])),
        client.request(3, end=True, x_more="z" * randomness.randrange(100)),
        frames.ping(b"12345678"),
        frame(frames.PRIORITY, 0, 3, b"\0\0\0\0\x10"),
        frames.rst_stream(randomness.choice([1, 3]), Http2ErrorCode.CANCEL),
        data(1, b"", end=True),
        frame(frames.HEADERS, randomness.choice([0, 4, 5]), 5, client.block()),
        frame(frames.CONTINUATION, 4, 5),
        frames.goaway(0, Http2ErrorCode.NO_ERROR),
        frame(frames.SETTINGS, frames.ACK, 0),
        client.request(7, "/probe.Probe/Flood"),
        data(7, message(b"\n\x0250"), end=True),
    ]
    if randomness.random() < 0.5:
        randomness.shuffle(parts)
    content = bytearray(b"".join(part for part in parts if randomness.random() < 0.85))
    for _ in range(randomness.choice([0, 1, 3])):
        if content:
            content[randomness.randrange(len(content))] = randomness.randrange(256)
    return frames.PREFACE + settings() + bytes(content)


async def test_an_idle_connection_holds_nothing_of_what_it_read(server: GrpcServer, client: RawClient) -> None:
    await client.until_kind(frames.SETTINGS)
    await client.send(client.request(1), data(1, message(b"h" * 15_000)))
    await client.payload(1, 15_005)
    await trio.testing.wait_all_tasks_blocked()
    assert _bytes_held_by_tasks() < 1_000
    (connection,) = server.connections
    assert connection.wire.writer.backlog_bytes == 0
    assert connection.plane._tail == b""
    assert connection.plane.out == []
    (stream,) = connection.plane.streams.values()
    assert (stream.inbox, stream.payload.partial_bytes, stream.pending) == ([], 0, None)


def _bytes_held_by_tasks() -> int:
    """In the local variables of every coroutine of the server's connections."""
    held, waiting = 0, list(_tasks(trio.lowlevel.current_root_task()))
    for task in waiting:
        coroutine = task.coro
        while coroutine is not None and hasattr(coroutine, "cr_frame"):
            if coroutine.cr_frame is not None and "aether_trio" in coroutine.cr_frame.f_code.co_filename:
                held += sum(len(value) for value in coroutine.cr_frame.f_locals.values() if isinstance(value, bytes))
            coroutine = coroutine.cr_await
    return held


def _tasks(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    if task is not None:
        yield task
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from _tasks(child)


async def test_large_answers_on_many_streams_all_reach_a_slow_reader(server: GrpcServer, port: Port) -> None:
    streams, body = range(1, 16, 2), message(b"l" * 1_000_000)
    client = await RawClient.connect(port, settings(window=2**30))
    await client.send(frames.window_update(0, 2**30), *map(client.request, streams))
    for stream_id in streams:
        for at in range(0, len(body), 16_000):
            await client.send(data(stream_id, body[at : at + 16_000]))
    await trio.testing.wait_all_tasks_blocked(0.05)
    (connection,) = server.connections
    assert connection.wire.writer.is_writing
    assert sum(map(len, connection.plane.out)) < 10_000
    await client.send(*(data(stream_id, b"", end=True) for stream_id in streams))
    for _ in streams:
        await client.until(lambda found: found.kind == frames.HEADERS and bool(found.flags & frames.END_STREAM))
    for stream_id in streams:
        assert b"".join(f.body for f in client.seen if (f.kind, f.stream_id) == (frames.DATA, stream_id)) == body
    assert server.statistics().rejects == {}


async def test_a_prompt_answer_leaves_together_with_the_handshake(server: GrpcServer, port: Port) -> None:
    client = await RawClient.bare(port)
    await client.send(frames.PREFACE, settings(), client.request(1), data(1, message(b"now"), end=True))
    first = await client.stream.receive_some()
    assert message(b"now") in first
    assert first.startswith(server._shared.settings_frame)
    await client.stream.aclose()


async def test_a_slow_answer_does_not_hold_the_handshake_back(client: RawClient) -> None:
    await client.send(client.request(1, "/probe.Probe/Hang"))
    await client.until(lambda found: found.kind == frames.SETTINGS and bool(found.flags & frames.ACK))
    await client.stream.aclose()
