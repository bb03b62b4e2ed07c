"""Test tunnels: order, half-close, credit, and every end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aether_trio.client.errors import ConnectionLost, NotImplementedByGateway
from aether_trio.client.operations.enums import TunnelEnd, TunnelProtocol
from aether_trio.client.operations.tunnels import (
    FRAME_BYTES,
    GRANT_BYTES,
    INITIAL_CREDIT,
    Tunnel,
    TunnelClosed,
    Tunnels,
)
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.operations.fake import FakeRequester


class World:
    """A tunnel, and the other side of it by hand."""

    def __init__(self, requester: FakeRequester, tunnel: Tunnel) -> None:
        self.requester = requester
        self.tunnel = tunnel

    def data(self, data: bytes, *, seq: int = 1, fin: bool = False) -> None:
        frame = pb.TunnelData(tunnel_id=self.tunnel.tunnel_id, seq=seq, data=data, fin=fin)
        self.requester.publish(pb.DownstreamMessage(tunnel_data=frame))

    def grant(self, count: int) -> None:
        ack = pb.TunnelAck(tunnel_id=self.tunnel.tunnel_id, credits=count)
        self.requester.publish(pb.DownstreamMessage(tunnel_ack=ack))

    def close(self, reason: TunnelEnd, detail: str = "") -> None:
        self.requester.publish(closing(self.tunnel.tunnel_id, reason, detail))

    @property
    def frames(self) -> list[pb.TunnelData]:
        return [one.tunnel_data for one in self.requester.told if one.HasField("tunnel_data")]

    @property
    def grants(self) -> list[int]:
        return [one.tunnel_ack.credits for one in self.requester.told if one.HasField("tunnel_ack")]

    @property
    def closes(self) -> list[pb.TunnelClose]:
        return [one.tunnel_close for one in self.requester.told if one.HasField("tunnel_close")]


def closing(tunnel_id: str, reason: TunnelEnd, detail: str = "") -> pb.DownstreamMessage:
    close = pb.TunnelClose(tunnel_id=tunnel_id, reason=pb.TunnelClose.Reason.ValueType(reason), detail=detail)
    return pb.DownstreamMessage(tunnel_close=close)


@asynccontextmanager
async def opened() -> AsyncIterator[World]:
    requester = FakeRequester()
    async with Tunnels(requester).open(
        "sv::db", protocol=TunnelProtocol.UDP, remote_hint="db:5432", idle_timeout_s=1.5
    ) as tunnel:
        yield World(requester, tunnel)


async def test_bytes_both_ways_and_the_end() -> None:
    async with opened() as world:
        (opening,) = world.requester.confirmed
        assert opening.tunnel_open.tunnel_id == world.tunnel.tunnel_id
        assert opening.tunnel_open.protocol == pb.TunnelOpen.UDP
        assert opening.tunnel_open.idle_timeout_ms == 1500
        await world.tunnel.send(b"hello")
        await world.tunnel.send_eof()
        world.data(b"wor")
        world.data(b"ld", fin=True)
        assert await world.tunnel.receive(2) == b"wo"
        assert await world.tunnel.receive() == b"r"
        assert await world.tunnel.receive() == b"ld"
        with pytest.raises(anyio.EndOfStream):
            await world.tunnel.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await world.tunnel.send(b"more")
    assert [(f.seq, f.data, f.fin) for f in world.frames] == [(0, b"hello", False), (1, b"", True)]
    assert [close.reason for close in world.closes] == [pb.TunnelClose.NORMAL]
    with pytest.raises(anyio.ClosedResourceError):
        await world.tunnel.receive()


async def test_a_sender_waits_for_credit(autojump_clock: object) -> None:
    async with opened() as world, trio.open_nursery() as nursery:
        total = INITIAL_CREDIT + 2 * FRAME_BYTES
        nursery.start_soon(world.tunnel.send, bytes(total))
        await wait_all_tasks_blocked()
        assert sum(len(frame.data) for frame in world.frames) == INITIAL_CREDIT
        world.grant(0)
        await wait_all_tasks_blocked()
        assert sum(len(frame.data) for frame in world.frames) == INITIAL_CREDIT
        world.grant(10)
        await wait_all_tasks_blocked()
        assert len(world.frames[-1].data) == 10
        world.grant(total)
        await wait_all_tasks_blocked()
        assert sum(len(frame.data) for frame in world.frames) == total
        assert [frame.seq for frame in world.frames] == list(range(len(world.frames)))
        assert max(len(frame.data) for frame in world.frames) == FRAME_BYTES


async def test_a_reader_grants_what_it_has_read() -> None:
    async with opened() as world:
        for seq in range(4):
            world.data(bytes(GRANT_BYTES // 2), seq=seq + 1)
        taken = 0
        while taken < 2 * GRANT_BYTES:
            taken += len(await world.tunnel.receive())
        assert world.grants == [GRANT_BYTES, GRANT_BYTES]


@pytest.mark.parametrize("reason", [TunnelEnd.PEER_RESET, TunnelEnd.IDLE_TIMEOUT, TunnelEnd.QUOTA, TunnelEnd.ERROR])
async def test_a_tunnel_that_is_cut(reason: TunnelEnd) -> None:
    async with opened() as world:
        world.data(b"last words")
        world.close(reason, "why")
        assert await world.tunnel.receive() == b"last words"
        with pytest.raises(TunnelClosed, match="why") as raised:
            await world.tunnel.receive()
        assert raised.value.reason is reason
        with pytest.raises(TunnelClosed):
            await world.tunnel.send(b"into the void")
    assert world.closes == [], "one does not close what is closed"


async def test_a_normal_close_is_an_end_of_stream() -> None:
    async with opened() as world:
        world.data(b"bye")
        world.close(TunnelEnd.NORMAL)
        assert await world.tunnel.receive() == b"bye"
        with pytest.raises(anyio.EndOfStream):
            await world.tunnel.receive()


async def test_a_cut_connection_ends_reader_and_sender() -> None:
    async with opened() as world:
        world.requester.feeds.publish("connection_lost", ConnectionLost("cut", in_doubt=True))
        with pytest.raises(ConnectionLost):
            await world.tunnel.receive()
        for _ in range(2):  # who tries again and again can be cancelled
            with trio.testing.assert_checkpoints(), pytest.raises(ConnectionLost):
                await world.tunnel.receive()
            with trio.testing.assert_checkpoints(), pytest.raises(ConnectionLost):
                await world.tunnel.send(b"x")


@pytest.mark.parametrize(
    ("detail", "error"), [("ERR_NOT_IMPLEMENTED: not yet", NotImplementedByGateway), ("ACL_DENIED: no", TunnelClosed)]
)
async def test_a_refusal_is_raised_where_it_is_opened(detail: str, error: type[Exception]) -> None:
    requester = FakeRequester()

    def refuse(message: pb.UpstreamMessage) -> None:
        if message.HasField("tunnel_open"):
            requester.publish(closing(message.tunnel_open.tunnel_id, TunnelEnd.ERROR, detail))

    requester.on_tell = refuse
    with pytest.raises(error):
        async with Tunnels(requester).open("sv::db"):
            raise AssertionError("it was opened")
    assert not any(one.HasField("tunnel_close") for one in requester.sent)


async def test_a_service_takes_or_refuses() -> None:
    requester = FakeRequester()
    tunnels = Tunnels(requester)
    async with tunnels.incoming() as incoming:
        opening = pb.TunnelOpen(tunnel_id="t1", target_topic="sv::db::1", remote_hint="db:5432")
        frame = pb.TunnelData(tunnel_id="t1", seq=0, data=opening.SerializeToString())
        requester.publish(pb.DownstreamMessage(tunnel_data=frame))
        assert await anext(incoming) == opening
        async with tunnels.accept(opening) as tunnel:
            # A caller counts its frames from 0 as well, so only what is an opening is one.
            data = pb.TunnelData(tunnel_id="t1", seq=0, data=b"\x0a\x02no")
            requester.publish(pb.DownstreamMessage(tunnel_data=data))
            assert await tunnel.receive() == b"\x0a\x02no"
            await tunnel.send(b"yes")
        await tunnels.refuse(pb.TunnelOpen(tunnel_id="t2"), TunnelEnd.QUOTA, "too many")
    assert [(one.tunnel_data.tunnel_id, one.tunnel_data.data) for one in requester.told[:1]] == [("t1", b"yes")]
    assert (requester.told[-1].tunnel_close.tunnel_id, requester.told[-1].tunnel_close.reason) == ("t2", 3)
