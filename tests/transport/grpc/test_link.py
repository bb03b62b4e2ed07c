"""GrpcLink: batches up, pulled frames down, windows, stalls, and the end."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.link import GrpcLink
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.link import Link, LinkBroken
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase
from tests.transport.grpc.harness import RawClient, data, message, serving, settings

CONNECT = "/aether.v1.AetherGateway/Connect"


class Source:
    """An outbox: a queue, and a record of what was asked of it."""

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.flushes = 0
        self.pulled = 0
        self.cuts = 0

    def pull(self, max_bytes: int) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        while self.queue and size < max_bytes:
            taken.append(self.queue.popleft())
            size += len(taken[-1])
        self.pulled += size
        return taken

    def flushed(self) -> None:
        self.flushes += 1

    def cut(self) -> None:
        self.cuts += 1


class Gateway(AetherGatewayBase):
    """Hands each connected link to the test, and keeps the RPC open for it."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[GrpcLink](10)
        self.ended = trio.Event()

    async def Connect(self, stream: ServerStream) -> None:  # type: ignore[override]  # noqa: N802
        await self._send.send(GrpcLink(stream))
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()

    async def link(self) -> GrpcLink:
        return await self._receive.receive()


@asynccontextmanager
async def linked(
    first: bytes = settings(), **headers: str
) -> AsyncIterator[tuple[RawClient, GrpcLink, Source, Gateway]]:
    gateway = Gateway()
    async with serving(GrpcServer([gateway])) as port:
        client = await RawClient.connect(port, first)
        await client.send(client.request(1, CONNECT, **headers))
        link = await gateway.link()
        source = Source()
        link.attach(source)
        yield client, link, source, gateway


def upstream(text: str) -> bytes:
    return message(pb.UpstreamMessage(init=pb.InitConnection(client_version=text)).SerializeToString())


async def test_a_batch_holds_every_message_that_arrived() -> None:
    async with linked() as (client, link, _, _):
        as_link: Link = link
        await client.send(
            data(1, upstream("1") + upstream("2")[:3]), data(1, upstream("2")[3:]), data(1, upstream("3"))
        )
        got = [found.init.client_version for found in await as_link.receive()]
        while len(got) < 3:
            got += [found.init.client_version for found in await link.receive()]
        assert got == ["1", "2", "3"]
        await client.send(data(1, b"", end=True))
        assert await link.receive() == []


async def test_the_peer_names_address_transport_and_extensions() -> None:
    async with linked(aether_extensions="urn:a, urn:b", user_agent="grpc-python/1") as (client, link, _, _):
        host, port, *_ = client.stream.socket.getsockname()
        assert link.peer.address == f"{host}:{port}"
        assert link.peer.transport == "grpc"
        assert link.peer.metadata == {"aether-extensions": "urn:a, urn:b", "user-agent": "grpc-python/1"}
        assert link.peer.certificate is None


@pytest.mark.parametrize(
    ("mistake", "status"),
    [(message(b"\xff\xff\xff"), Status.INVALID_ARGUMENT), (b"\0\xff\xff\xff\xff", Status.RESOURCE_EXHAUSTED)],
    ids=["undecodable", "too large"],
)
async def test_a_mistake_is_raised_after_what_came_before(mistake: bytes, status: Status) -> None:
    async with linked() as (client, link, _, _):
        await client.send(data(1, upstream("ok") + mistake))
        assert len(await link.receive()) == 1
        with pytest.raises(StatusError) as caught:
            await link.receive()
        assert caught.value.status is status


@pytest.mark.parametrize("how", ["reset", "close", "garbage"])
async def test_a_cut_stream_raises_link_broken_and_does_not_cancel_the_task(how: str) -> None:
    async with linked() as (client, link, source, gateway):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(LinkBroken):
                    await link.receive()
                link.kick()  # harmless on a broken link

            await trio.testing.wait_all_tasks_blocked()
            if how == "reset":
                await client.send(frames.rst_stream(1, Http2ErrorCode.CANCEL))
            elif how == "close":
                await client.stream.aclose()
            else:
                await client.send(frames.window_update(0, 0))
        source.queue.append(b"never")
        link.kick()
        assert source.pulled == 0
        assert source.cuts == 1  # a task that waits for the peer to read is told as well
        assert not gateway.ended.is_set()
        await link.close(Status.UNAVAILABLE)


async def test_messages_before_a_reset_are_still_received() -> None:
    async with linked() as (client, link, _, _):
        await client.send(data(1, upstream("last words")), frames.rst_stream(1, Http2ErrorCode.CANCEL))
        await client.barrier()
        assert [m.init.client_version for m in await link.receive()] == ["last words"]
        with pytest.raises(LinkBroken):
            await link.receive()


async def test_a_kick_sends_at_once_without_any_other_task() -> None:
    async with linked() as (client, link, source, _):
        source.queue.extend([b"one", b"two"])
        link.kick()
        assert source.flushes == 1
        assert link.stalled_since is None
        assert client.decode(await client.until_kind(frames.HEADERS))[":status"] == "200"
        assert await client.payload(1, 16) == message(b"one") + message(b"two")
        link.kick()
        assert source.flushes == 1, "nothing was pulled, so nothing was flushed"


async def test_pulling_stops_at_the_streams_window_and_goes_on_with_it() -> None:
    async with linked(settings(window=1000)) as (client, link, source, _):
        source.queue.extend([b"m" * 395] * 10)
        before = trio.current_time()
        link.kick()
        assert source.pulled == 3 * 395, "only the last message may go beyond what was asked for"
        assert link.stalled_since is not None
        assert link.stalled_since >= before
        assert source.flushes == 0
        assert len(await client.payload(1, 1000)) == 1000
        await client.send(frames.window_update(1, 100_000))
        await client.payload(1, 3000)
        await trio.testing.wait_all_tasks_blocked()
        assert link.stalled_since is None
        assert source.flushes >= 1
        assert source.pulled == 3950


async def test_a_socket_that_takes_nothing_keeps_the_backlog_in_the_source() -> None:
    async with linked(settings(window=2**30)) as (client, link, source, _):
        await client.send(frames.window_update(0, 2**30))
        await client.barrier()
        chunk, count = b"c" * 8192, 2000
        source.queue.extend([chunk] * count)
        link.kick()
        await trio.testing.wait_all_tasks_blocked(0.05)
        held = source.pulled
        assert held < count * 8192, "the kernel cannot hold 16 MB"
        assert link.stalled_since is not None
        for _ in range(100):
            link.kick()
        assert source.pulled == held, "nothing is pulled into memory while the socket is full"
        received = await client.payload(1, count * (8192 + 5))
        assert received == message(chunk) * count
        await trio.testing.wait_all_tasks_blocked()
        assert link.stalled_since is None
        assert source.flushes >= 1


async def test_one_stalled_stream_does_not_hold_up_another_on_the_same_connection() -> None:
    gateway = Gateway()
    async with serving(GrpcServer([gateway])) as port:
        client = await RawClient.connect(port, settings(window=0))
        await client.send(client.request(1, CONNECT), client.request(3, CONNECT))
        links = [await gateway.link(), await gateway.link()]  # trio starts tasks in any order
        stalled, moving = sorted(links, key=lambda link: link._stream.http2.stream_id)
        sources = Source(), Source()
        for link, source in zip((stalled, moving), sources, strict=True):
            link.attach(source)
            source.queue.extend([b"x" * 1000] * 5)
        stalled.kick()
        moving.kick()
        await client.send(frames.window_update(3, 100_000))
        assert await client.payload(3, 5025) == message(b"x" * 1000) * 5
        assert sources[0].pulled == 0
        assert stalled.stalled_since is not None
        assert moving.stalled_since is None


async def test_close_before_any_message_is_a_trailers_only_response() -> None:
    async with linked() as (client, link, source, _):
        source.queue.append(b"not to be sent")
        await link.close(Status.ALREADY_EXISTS, "held by another")
        found = await client.until_kind(frames.HEADERS)
        assert found.flags & frames.END_STREAM
        headers = client.decode(found)
        assert (headers[":status"], headers["grpc-status"], headers["grpc-message"]) == ("200", "6", "held by another")
        # The client had not ended its side: it is told that the server reads no more.
        assert await client.reset_code(1) == Http2ErrorCode.NO_ERROR
        await link.close(Status.INTERNAL)


async def test_close_comes_after_what_was_pulled() -> None:
    async with linked(settings(window=10)) as (client, link, source, _):
        source.queue.extend([b"a" * 20, b"b" * 20])
        link.kick()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.close, Status.UNAVAILABLE, "moving")
            await client.payload(1, 10)
            await client.send(frames.window_update(1, 1000))
            assert await client.payload(1, 15) == message(b"a" * 20)[10:]
            assert (await client.trailers(1))["grpc-status"] == "14"
        assert list(source.queue) == [b"b" * 20]


async def test_close_does_not_wait_for_ever_for_a_stalled_peer(jumpy: MockClock) -> None:
    async with linked(settings(window=10)) as (client, link, source, _):
        source.queue.append(b"a" * 100)
        link.kick()
        before = trio.current_time()
        await link.close(Status.UNAVAILABLE, "gone")
        assert 4.9 < trio.current_time() - before < 6
        assert (await client.trailers(1))["grpc-status"] == "14"


async def test_a_source_may_kick_from_flushed() -> None:
    async with linked() as (client, link, _, _):

        class Refilling(Source):
            def flushed(self) -> None:
                super().flushed()
                if self.flushes < 50:
                    self.queue.append(b"%d" % self.flushes)
                    link.kick()

        refilling = Refilling()
        link._stream._source = refilling
        refilling.queue.append(b"0")
        link.kick()
        want = b"".join(message(b"%d" % n) for n in range(50))
        assert await client.payload(1, len(want)) == want


async def test_a_source_is_attached_once() -> None:
    async with linked() as (_, link, source, _):
        with pytest.raises(RuntimeError, match="already has a source"):
            link.attach(source)


async def test_an_unread_link_shuts_its_own_window_and_opens_it_when_read() -> None:
    async with linked() as (client, link, _, _):
        body = upstream("v" * 15_000)
        for _ in range(4):
            await client.send(data(1, body))
        await client.barrier()
        assert not [f for f in client.seen if f.kind == frames.WINDOW_UPDATE and f.stream_id == 1]
        assert len(await link.receive()) == 4
        assert (await client.until_kind(frames.WINDOW_UPDATE, stream_id=1)).body == (4 * len(body)).to_bytes(4, "big")
