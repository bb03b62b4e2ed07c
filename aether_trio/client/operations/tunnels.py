"""`agent.tunnels`: carries bytes or datagrams to a service behind the gateway.

A tunnel is an anyio ByteStream, so whatever speaks over one of those speaks over it. It does not
outlive its connection: after a reconnect its peer is gone, and a new one must be opened.

Credit is counted in bytes, as the published clients and sidecars do: each side may have
INITIAL_CREDIT bytes on the way that the other has not read, and is granted more as they are read.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import ByteStream
from google.protobuf.message import DecodeError

from aether_trio.client.errors import AetherError, ConnectionLost, NotImplementedByGateway, from_text
from aether_trio.client.feeds import Feed
from aether_trio.client.operations.enums import TunnelEnd, TunnelProtocol
from aether_trio.client.operations.namespace import Namespace, upstream
from aether_trio.client.operations.principals import Authorization, authorization_context
from aether_trio.client.operations.records import member
from aether_trio.client.operations.streams import ConvertedFeed
from aether_trio.client.requester import Requester
from aether_trio.wire.pb import aether_pb2 as pb

INITIAL_CREDIT: Final = 1024 * 1024
GRANT_BYTES: Final = 256 * 1024
"""Credit is granted again for so many read bytes; no window of a peer is smaller."""
FRAME_BYTES: Final = 256 * 1024
_FRAMES_WAITING: Final = 8192
"""Frames that may wait. Credit bounds bytes, this bounds very small frames."""
_GOODBYE_S: Final = 5.0


class TunnelClosed(AetherError):
    """The tunnel was closed by its other side or the gateway; `reason` says why."""

    def __init__(self, reason: TunnelEnd, detail: str) -> None:
        super().__init__(reason.name, detail)
        self.reason = reason


class Tunnel(ByteStream):
    """One open tunnel to or from a service; an anyio ByteStream."""

    def __init__(self, requester: Requester, tunnel_id: str, data: Feed[Any], credit: Feed[Any]) -> None:
        self.tunnel_id = tunnel_id
        self._requester = requester
        self._data = data
        self._grants = credit
        self._credit = INITIAL_CREDIT
        self._read_bytes = 0
        self._last_seq = 0
        self._next_seq = 0
        self._rest = b""
        self._finished = False
        self._closed = False
        self._end: AetherError | None = None
        self._peer_finished = False
        self._sending = anyio.Lock()

    async def send(self, item: bytes) -> None:
        """Send bytes as the other side reads them. Raises TunnelClosed."""
        async with self._sending:
            if self._finished or self._closed:
                raise anyio.ClosedResourceError
            rest = memoryview(item)
            while rest:
                await self._wait_for_credit()
                part = rest[: min(len(rest), FRAME_BYTES, self._credit)]
                rest = rest[len(part) :]
                self._credit -= len(part)
                await self._send_frame(bytes(part))

    async def send_eof(self) -> None:
        """End the sending direction of the tunnel; receiving goes on."""
        async with self._sending:
            if not self._finished and not self._closed:
                self._finished = True
                await self._send_frame(b"", fin=True)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return 1 to `max_bytes` bytes. Raises EndOfStream, TunnelClosed, ConnectionLost."""
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise anyio.ClosedResourceError
        while not self._rest:
            if self._peer_finished:
                raise anyio.EndOfStream
            if self._end is not None:
                raise self._end
            await self._read_frame()
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        self._read_bytes += len(taken)
        if self._read_bytes >= GRANT_BYTES:
            granted, self._read_bytes = self._read_bytes, 0
            ack = pb.TunnelAck(tunnel_id=self.tunnel_id, ack_seq=self._last_seq, credits=granted)
            await self._requester.tell(upstream("tunnel_ack", ack))
        return taken

    async def aclose(self) -> None:
        """Close both directions of the tunnel. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._data.close()
        self._grants.close()
        if self._end is None:
            close = pb.TunnelClose(tunnel_id=self.tunnel_id, reason=pb.TunnelClose.NORMAL)
            with anyio.move_on_after(_GOODBYE_S, shield=True):
                await self._requester.tell(upstream("tunnel_close", close))
        await anyio.lowlevel.checkpoint()

    def raise_if_refused(self) -> None:
        """Raise TunnelClosed if the gateway or the service has closed the tunnel."""
        while (first := self._grants.get_nowait()) is not None:
            self._take_grant(first)
        if self._end is not None:
            raise self._end

    async def _read_frame(self) -> None:
        async for frame in self._data:
            if isinstance(frame, ConnectionLost):
                self._end = frame
            elif isinstance(frame, pb.TunnelClose):
                self._note_end(frame)
                self._peer_finished = frame.reason == pb.TunnelClose.NORMAL
            else:
                self._last_seq = frame.seq
                self._rest = frame.data
                self._peer_finished = frame.fin
            return
        raise anyio.EndOfStream if not self._closed else anyio.ClosedResourceError

    async def _wait_for_credit(self) -> None:
        self.raise_if_refused()
        while self._credit <= 0:
            async for grant in self._grants:
                self._take_grant(grant)
                break
            else:
                raise anyio.ClosedResourceError
            if self._end is not None:
                raise self._end

    def _take_grant(self, payload: Any) -> None:
        if isinstance(payload, ConnectionLost):
            self._end = payload
        elif isinstance(payload, pb.TunnelClose):
            self._note_end(payload)
        else:
            self._credit += payload.credits

    def _note_end(self, close: pb.TunnelClose) -> None:
        named = from_text(close.detail, "TUNNEL")
        if isinstance(named, NotImplementedByGateway):
            self._end = named
        else:
            self._end = TunnelClosed(member(TunnelEnd, close.reason), close.detail)

    async def _send_frame(self, data: bytes, *, fin: bool = False) -> None:
        frame = pb.TunnelData(tunnel_id=self.tunnel_id, seq=self._next_seq, data=data, fin=fin)
        self._next_seq += 1
        await self._requester.tell(upstream("tunnel_data", frame))


class Tunnels(Namespace):
    """Opens tunnels to services, and accepts tunnels to this service."""

    @asynccontextmanager
    async def open(
        self,
        target: str,
        *,
        protocol: TunnelProtocol = TunnelProtocol.TCP,
        remote_hint: str = "",
        backend: str = "",
        metadata: Mapping[str, str] | None = None,
        idle_timeout_s: float = 300.0,
        max_bytes: int = 0,
        authorization: Authorization | None = None,
    ) -> AsyncIterator[Tunnel]:
        """Open a tunnel to the service "sv::db::1", or to any instance of "sv::db".

            async with agent.tunnels.open("sv::db", remote_hint="postgres:5432") as tunnel:
                await tunnel.send(b"...")

        `max_bytes` 0 is no limit. Refusals of the gateway are raised here, that of a service by the
        first `receive` (TunnelClosed).
        """
        message = pb.TunnelOpen(
            tunnel_id=f"tunnel-{secrets.token_hex(8)}",
            target_topic=target,
            protocol=pb.TunnelOpen.Protocol.ValueType(protocol),
            remote_hint=remote_hint,
            backend_name=backend,
            metadata=dict(metadata or {}),
            idle_timeout_ms=int(idle_timeout_s * 1000),
            max_bytes=max_bytes,
            authorization=authorization_context(authorization),
        )
        async with self._listening(message.tunnel_id) as tunnel:
            await self._tell_confirmed("tunnel_open", message)
            tunnel.raise_if_refused()
            yield tunnel

    @asynccontextmanager
    async def incoming(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[pb.TunnelOpen]]:
        """Yield tunnels that others open to this service; `accept` or refuse each at once."""
        with self._feed("tunnel_data", match=_is_opening, capacity=capacity) as feed:
            yield ConvertedFeed(feed, _opening)

    @asynccontextmanager
    async def accept(self, opening: pb.TunnelOpen) -> AsyncIterator[Tunnel]:
        """Accept a tunnel that was opened to this service, while the block lasts."""
        async with self._listening(opening.tunnel_id) as tunnel:
            yield tunnel

    async def refuse(self, opening: pb.TunnelOpen, reason: TunnelEnd = TunnelEnd.ERROR, detail: str = "") -> None:
        """Refuse a tunnel that was opened to this service."""
        close = pb.TunnelClose(
            tunnel_id=opening.tunnel_id, reason=pb.TunnelClose.Reason.ValueType(reason), detail=detail
        )
        await self._tell("tunnel_close", close)

    @asynccontextmanager
    async def _listening(self, tunnel_id: str) -> AsyncIterator[Tunnel]:
        def mine(payload: Any) -> bool:
            return str(payload.tunnel_id) == tunnel_id and not _is_opening(payload)

        async with AsyncExitStack() as stack:
            data = stack.enter_context(
                self._exchange_feed("tunnel_data", "tunnel_close", match=mine, capacity=_FRAMES_WAITING)
            )
            grants = stack.enter_context(
                self._exchange_feed("tunnel_ack", "tunnel_close", match=mine, capacity=_FRAMES_WAITING)
            )
            tunnel = Tunnel(self._requester, tunnel_id, data, grants)
            stack.push_async_callback(tunnel.aclose)
            yield tunnel


def _is_opening(payload: Any) -> bool:
    """Return whether this is frame 0 of a tunnel, which holds its TunnelOpen."""
    return _opening(payload) is not None


def _opening(payload: Any) -> pb.TunnelOpen | None:
    if not isinstance(payload, pb.TunnelData) or payload.seq != 0 or payload.fin:
        return None
    try:
        opening = pb.TunnelOpen.FromString(payload.data)
    except DecodeError:
        return None
    return opening if opening.tunnel_id == payload.tunnel_id else None
