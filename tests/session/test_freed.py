"""Sessions are freed by counting references, without the cycle collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
import trio

from aether_trio.delivery.receipts import Receipts
from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, message_to, pump, task, user

End = Callable[[Core, MemoryLink], None]
T = TypeVar("T")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def session_of(core: Core) -> Session:
    [session] = list(core.registry)
    return session


ENDS: dict[str, End] = {
    "it finishes": lambda core, peer: peer.finish(),
    "it is cut": lambda core, peer: peer.cut(),
    "it is kicked": lambda core, peer: session_of(core).end(Status.CANCELLED, "kicked", pb.Signal.FORCE_DISCONNECT),
    "it cheats": lambda core, peer: peer.send(pb.UpstreamMessage(init=pb.InitConnection())),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("hello", [agent("w", "a", "1"), task("w", "t"), user("u", "1")], ids=["agent", "task", "user"])
@pytest.mark.usefixtures("no_collector")
async def test_a_session_is_freed_when_its_stream_has_ended(core: Core, hello: pb.UpstreamMessage, end: End) -> None:
    async with connect(core, hello) as peer:
        peer.send(message_to("ag::w::b::1", b"x"))
        await barrier(peer)
        freed = weakref.ref(session_of(core))
        end(core, peer)
        await pump(100)
    await pump(100)
    assert len(core.registry) == 0
    assert freed() is None


@pytest.mark.usefixtures("no_collector")
async def test_so_is_one_that_was_taken_over(core: Core) -> None:
    async with connect(core, agent("w", "a", "1"), wait_ack=False) as first:
        ack = (await first.next("connection_ack")).connection_ack
        freed = weakref.ref(session_of(core))
        async with connect(core, agent("w", "a", "1", resume_session_id=ack.session_id)):
            await first.wait_end()
            await pump(100)
            assert freed() is None


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("publisher", [None, b"p" * 16], ids=["this connection's", "a publisher's"])
@pytest.mark.usefixtures("no_collector")
async def test_so_is_one_that_has_numbered_its_sends(core: Core, publisher: bytes | None, end: End) -> None:
    """A session with receipts, which refer to its outbox, and with unsent refusals."""
    gc.collect()
    peer = MemoryLink()
    peer.peer = replace(peer.peer, publisher=publisher)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.sessions.serve, peer)
        peer.send(agent("w", "a", "1"))
        await peer.next("connection_ack")
        send(
            peer,
            *(Send(seq, "ag::w::b::1", b"x") for seq in (1, 2)),
            Send(3, "nowhere", b"x"),
            Send(4, "ag::w::b", b"x"),
        )
        await barrier(peer)
        freed = weakref.ref(session_of(core))
        assert [one.outbox for one in alive(Receipts)] == [session_of(core).outbox]
        send(peer, Send(5, "ag::w::b::1", b"x"), Send(6, "nowhere", b"x"), Send(7, "ag::w::b::1", b"x", extra=b"\xff"))
        end(core, peer)
        await pump(100)
    await pump(100)
    assert len(core.registry) == 0
    assert freed() is None
    assert alive(Receipts) == []


def send(peer: MemoryLink, *sends: Send) -> None:
    """As a client on the framed transport."""
    peer.send(*sends)  # type: ignore[arg-type]


def alive(kind: type[T]) -> list[T]:
    return [one for one in gc.get_objects() if type(one) is kind]
