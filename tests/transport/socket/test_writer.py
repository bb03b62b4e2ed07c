"""SocketWriter on a pair of sockets: order, backlog, bounds, defects, and its end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aether_trio.transport.socket.writer import BURST_BYTES, BURSTS_PER_KICK, SocketWriter

PATIENCE_S = 300


class Source:
    """Has `waiting` to send, and remembers what the writer said."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.events: list[str] = []
        self.bytes_sent = 0
        self.fills = 0
        self.on_flushed: Callable[[], None] = lambda: None
        self.failure: Exception | None = None
        self.writer: SocketWriter | None = None

    def fill(self) -> None:
        self.fills += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        assert self.writer is not None
        taken = 0
        while self.waiting and taken < BURST_BYTES:
            taken += len(self.waiting[0])
            self.writer.queue.append(self.waiting.pop(0))

    def flushed(self) -> bool:
        self.events.append("flushed")
        self.on_flushed()
        return bool(self.waiting)

    def on_stall(self, *, moved: bool) -> None:
        if not moved or self.events[-1] != "moved":
            self.events.append("moved" if moved else "stalled")

    def on_overflow(self) -> None:
        self.events.append("overflow")

    def on_broken(self) -> None:
        self.events.append("broken")

    def on_defect(self, error: Exception) -> None:
        self.events.append(repr(error))


@dataclass
class Pair:
    """A source, its writer, and the peer's end of the connection."""

    source: Source
    writer: SocketWriter
    peer: trio.SocketStream

    def send(self, *parts: bytes) -> None:
        self.source.waiting = list(parts)
        self.writer.kick()

    async def read(self, size: int) -> bytes:
        found = b""
        with trio.fail_after(PATIENCE_S):
            while len(found) < size:
                found += await self.peer.receive_some(size - len(found))
        return found

    async def flushed(self) -> None:
        with trio.fail_after(PATIENCE_S):
            await self.writer.wait_flushed()


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    source = Source()
    async with trio.open_nursery() as nursery:
        writer = source.writer = SocketWriter(source, ours, None, nursery, counters=source, **options)
        try:
            yield Pair(source, writer, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        finally:
            writer.release()
            await trio.lowlevel.checkpoint()
            ours.close()
            theirs.close()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with opened() as made:
        yield made


async def test_what_the_kernel_takes_is_sent_at_once_without_a_task(pair: Pair) -> None:
    pair.source.waiting = [b"one", b"two"]
    pair.writer.queue.append(b"first")
    pair.writer.kick()
    assert pair.writer.is_idle
    assert not pair.writer.is_writing
    assert pair.source.events == ["flushed"]
    assert await pair.read(11) == b"firstonetwo"
    assert pair.source.bytes_sent == 11
    await pair.flushed()


async def test_a_kick_inside_a_kick_leaves_the_work_to_the_outer_one(pair: Pair) -> None:
    source = pair.source
    more = [b"%d" % number for number in range(3)]

    def refill() -> None:
        if more:
            source.waiting.append(more.pop(0))
            pair.writer.kick()

    source.on_flushed = refill
    pair.writer.kick()
    await pair.flushed()
    assert await pair.read(3) == b"012"


async def test_a_backlog_waits_in_one_task_and_nothing_is_asked_for_meanwhile(pair: Pair) -> None:
    size = 20_000_000
    source, writer = pair.source, pair.writer
    pair.send(b"x" * size, b"behind")
    assert writer.is_writing
    assert not writer.is_idle
    assert writer.stalled_since is not None
    assert 0 < writer.backlog_bytes < size
    fills = source.fills
    for _ in range(5):
        writer.kick()
    await wait_all_tasks_blocked()
    assert source.fills == fills
    writer.queue.append(b"queued")
    assert await pair.read(size) == b"x" * size
    await pair.flushed()
    assert await pair.read(12) == b"queuedbehind"
    assert source.events[0] == "stalled"
    assert source.events.count("moved") >= 1
    assert source.events[-1] == "flushed"
    assert (writer.stalled_since, writer.is_writing, writer.backlog_bytes) == (None, False, 0)


async def test_a_source_that_always_has_more_leaves_other_tasks_their_turn(pair: Pair) -> None:
    source = pair.source
    bursts = 3 * BURSTS_PER_KICK
    source.waiting = [b"y" * 1_000] * bursts

    def fill() -> None:
        source.fills += 1
        if source.waiting:
            pair.writer.queue.append(source.waiting.pop())

    source.fill = fill  # type: ignore[method-assign]
    pair.writer.kick()
    assert source.fills == BURSTS_PER_KICK
    assert pair.writer.is_writing
    await pair.flushed()
    assert len(await pair.read(bursts * 1_000)) == bursts * 1_000


async def test_what_is_queued_for_a_peer_that_does_not_read_is_bounded() -> None:
    async with opened(max_queued_bytes=1_000) as pair:
        pair.send(b"x" * 20_000_000)
        pair.writer.queue.append(b"z" * 1_000)
        pair.writer.kick()
        assert not pair.writer.is_broken
        pair.writer.queue.append(b"z")
        pair.writer.kick()
        assert pair.writer.is_broken
        assert pair.source.events == ["stalled", "overflow", "broken"]
        assert pair.writer.queue == []
        await pair.flushed()


async def test_a_peer_that_has_gone_breaks_the_connection_once(pair: Pair) -> None:
    pair.peer.socket.close()
    for _ in range(3):
        pair.send(b"x" * 1_000)
    assert pair.writer.is_broken
    assert pair.source.events.count("broken") == 1
    await pair.flushed()


async def test_an_abort_ends_the_task_that_waits_and_those_that_wait_for_it(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        pair.send(b"x" * 20_000_000)
        nursery.start_soon(pair.flushed)
        await wait_all_tasks_blocked()
        pair.writer.abort()
        pair.writer.abort()
        await wait_all_tasks_blocked()
        assert (pair.writer.is_writing, pair.writer.is_idle) == (False, True)
        assert pair.source.events == ["stalled", "broken"]


async def test_a_writer_whose_task_was_cancelled_sends_nothing_behind_the_missing_bytes() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    source = Source()
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            writer = source.writer = SocketWriter(source, ours, None, nursery)
            source.waiting = [b"x" * 10_000_000]
            writer.kick()
            assert writer.is_writing
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        theirs.recv(source.bytes_sent)  # there is room again
        source.waiting = [b"behind"]
        writer.kick()
        assert writer.is_idle
        ours.close()
        assert set(theirs.makefile("rb").read()) <= set(b"x")


async def test_a_released_writer_asks_its_source_for_nothing(pair: Pair) -> None:
    pair.send(b"x" * 20_000_000, b"more")
    pair.writer.release()
    pair.writer.release()
    fills = pair.source.fills
    pair.writer.kick()
    await wait_all_tasks_blocked()
    assert pair.source.fills == fills
    assert not pair.writer.is_writing
    assert pair.source.events == ["stalled"]


async def test_a_defect_of_the_source_is_its_own_to_report_and_the_writer_goes_on(pair: Pair) -> None:
    pair.source.failure = ZeroDivisionError("fill")
    pair.writer.kick()
    assert pair.source.events == ["ZeroDivisionError('fill')"]
    pair.send(b"after")
    assert await pair.read(5) == b"after"


@pytest.mark.parametrize("where", ["flushed", "on_stall"])
async def test_a_defect_in_the_task_is_reported_as_well(pair: Pair, where: str) -> None:
    source = pair.source
    pair.send(b"x" * 20_000_000)

    def fail(**_: Any) -> bool:
        raise ZeroDivisionError(where)

    setattr(source, where, fail)
    with trio.fail_after(PATIENCE_S):
        while f"ZeroDivisionError({where!r})" not in source.events:
            await pair.peer.receive_some(1_000_000)
