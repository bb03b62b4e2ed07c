"""The server's side of a connection: its life, what control frames mean, keepalive rules, drain, and the end.

Lifecycle: `serve` owns a nursery in which the RPC tasks and the on-demand writer live, while it reads itself. When reading
ends, every open stream is told that it broke; tasks whose stream has a scope are cancelled, link tasks see LinkBroken,
and whoever is left after `close_timeout_s` is cancelled with the nursery. One deadline, the nursery's own, covers the
handshake, idleness, and that last wait.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import h2.events
import trio

from aether_trio.model.containment import DEFECT, report
from aether_trio.model.errors import Status
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.control import SharedControl
from aether_trio.transport.http2.frame_checks import check_ping, check_priority, parse_goaway, parse_reset
from aether_trio.transport.http2.frames import STREAM_MASK, ErrorCode, ProtocolViolation
from aether_trio.transport.http2.output import Sealer
from aether_trio.transport.http2.pumped import PumpedStream
from aether_trio.transport.http2.server_control import SETTINGS_ACK, as_text, size_of
from aether_trio.transport.http2.server_streams import ServerStreams
from aether_trio.transport.http2.statistics import ConnectionStatistics, Counters
from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.accepted import address_text

if TYPE_CHECKING:
    from aether_trio.transport.grpc.inflation import InflationTurns
    from aether_trio.transport.http2.limits import Allowance, GrpcLimits
    from aether_trio.transport.socket.unfinished_input import Account

_INITIAL_WINDOW_SIZE: Final = 4
_MAX_FRAME_SIZE: Final = 5
_LARGEST_FRAME_BYTES: Final = 64 * 1024
"""Ours, whatever more the peer allows: one stream's frame is what the others wait for."""

Accept = Callable[["ServerConnection", int, list[tuple[str, str]]], None]


class ServerConnection(ServerStreams):
    """One client. `accept` starts an RPC for a request's headers, or refuses it."""

    __slots__ = (
        "_accept",
        "_defective",
        "_ended_event",
        "_finished",
        "_ping_acked",
        "_round_trip",
        "address",
        "certificate",
        "lingering",
        "shared",
        "started",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: Any,
        sealer: Sealer | None,
        certificate: PeerCertificate | None,
        limits: GrpcLimits,
        allowances: tuple[Allowance, ...],
        shared: SharedControl,
        counters: Counters,
        nursery: trio.Nursery,
        accept: Accept,
        account: Account,
        turns: InflationTurns,
    ) -> None:
        super().__init__(sock, sealer, limits, allowances, shared, counters, nursery, account, turns)
        self.address = address
        """The peer's, as `accept` returned it."""
        self.certificate = certificate
        self.lingering = False
        """The end came from us: the socket must not be closed before the peer has read why."""
        self._ended_event: trio.Event | None = None
        self._finished = self._defective = False
        self.shared = shared
        self.started = trio.current_time()
        self._accept = accept
        self._ping_acked: trio.Event | None = None
        self._round_trip: trio.Event | None = None

    # The task ------------------------------------------------------------------------------------------------------

    async def serve(self, head: bytes) -> str:
        """Serve until the connection ends; returns why. The caller closes the socket."""
        # These leave with the answer to the client's first bytes, which it sends without waiting (RFC 9113 section 3.4).
        self.plane.out.append(self.shared.settings_frame)
        self.plane.out.append(self.plane.opening_window_update())
        try:
            reason = await self._serve_first(head) or await self.read_until_end()
        except trio.Cancelled:
            self._cut_off()
            raise
        self.lingering = self.closing
        self.closing = True
        if self.nursery.child_tasks:
            self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.close_timeout_s
            if not self.lingering:
                self.abandon()
        self.break_streams(reason)
        return reason

    async def _serve_first(self, head: bytes) -> str | None:
        """Serve what has come at once; why that was the end, if it was. From here on the handshake is waited for."""
        if head and not await self.received(head):
            return "closed"
        if not self.plane.streams:
            self.nursery.cancel_scope.deadline = self.started + self.limits.handshake_timeout_s
        return None

    def _cut_off(self) -> None:
        """A deadline passed, or the server stops without a drain: say so as far as that goes without waiting."""
        self.lingering = True
        if self.plane.streams:
            self.evict(Status.UNAVAILABLE, "the server stops")
        elif not self.closing:
            settled = self.plane.settings_seen
            self.counters.reject("idle_timeout" if settled else "handshake_timeout")
            code = ErrorCode.NO_ERROR if settled else ErrorCode.SETTINGS_TIMEOUT
            self.plane.out.append(frames.goaway(self.plane.highest_stream_id, code, "timeout"))
        self.closing = True
        self.pump()

    def break_streams(self, reason: str) -> None:
        """Tell every open stream that the connection has ended."""
        for stream in list(self.plane.streams.values()):
            assert isinstance(stream, PumpedStream)
            stream.broken(reason)
            self.forget(stream)

    def evict_public(self, status: Status, message: str) -> None:
        """End with trailers the streams that need no credential. Does not wait."""
        for stream in self._public():
            stream.evict(status, message)
        self.end_if_done()

    @property
    def has_public(self) -> bool:
        """A stream is open that needs no credential."""
        return bool(self._public())

    def _public(self) -> list[PumpedStream]:
        streams = self.plane.streams.values()
        return [stream for stream in streams if isinstance(stream, PumpedStream) and stream.is_public]

    def evict(self, status: Status, message: str) -> None:
        """End every stream with trailers, and then the connection. Does not wait."""
        self._say_last_goaway()
        for stream in list(self.plane.streams.values()):
            assert isinstance(stream, PumpedStream)
            stream.evict(status, message)
        self.end_if_done()

    @property
    def who(self) -> str:
        """The connection, for logs."""
        return f"grpc with {address_text(self.address)}"

    def failed(self, error: Exception) -> None:
        """See Output: the calls end with UNKNOWN, if that can be said."""
        if self._defective:
            super().failed(error)
            return
        self._defective = True
        report(error, self.who)
        self.evict(Status.UNKNOWN, DEFECT)

    async def wait_ended(self) -> None:
        if self._finished:
            await trio.lowlevel.checkpoint()
            return
        if self._ended_event is None:
            self._ended_event = trio.Event()
        await self._ended_event.wait()

    def finish(self) -> None:
        """All tasks of the connection have ended."""
        if self._round_trip is not None:
            self._round_trip.set()
        self.closing = True
        self._finished = True
        if self._ended_event is not None:
            self._ended_event.set()

    # Control frames ------------------------------------------------------------------------------------------------

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """See dataplane.Owner."""
        if kind == frames.PING:
            self._ping(flags, stream_id, frame)
        elif kind == frames.PRIORITY:
            self._priority(stream_id, frame)
        elif kind == frames.GOAWAY:
            self._goaway(stream_id, frame)
        elif kind > frames.CONTINUATION:
            self.plane.budgets.spend(flood_budgets.UNKNOWN_FRAME_FLOOD)
        elif kind == frames.SETTINGS:
            self._settings(flags, frame)
        elif kind == frames.RST_STREAM:
            self._reset(stream_id, frame)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "push", "a client cannot push")
        else:
            self._header_block(kind, flags, stream_id, frame)

    def _header_block(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        headers = self.control_plane.known_request(flags, stream_id, frame) if kind == frames.HEADERS else None
        if headers is not None:
            self._request(stream_id, headers)
            if flags & frames.END_STREAM:
                self._ended(stream_id)
            return
        for event in self.control_plane.receive(kind, flags, frame):
            if isinstance(event, h2.events.RequestReceived | h2.events.TrailersReceived):
                self.plane.charge(len(event.headers))
            if isinstance(event, h2.events.RequestReceived):
                self._request(event.stream_id, as_text(event.headers))
            elif isinstance(event, h2.events.StreamEnded):
                self._ended(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                # By h2, for headers on a stream that they cannot belong to.
                self.plane.budgets.spend(flood_budgets.RESET_FLOOD)
                self._broken(event.stream_id, f"stream reset ({event.error_code!r})")

    def _request(self, stream_id: int, headers: list[tuple[str, str]]) -> None:
        plane = self.plane
        plane.highest_stream_id = max(plane.highest_stream_id, stream_id)
        if self.draining and stream_id > self.goaway_limit:
            self._refuse(stream_id, "draining")
        elif len(plane.streams) >= self.limits.max_concurrent_streams:
            self._refuse(stream_id, "too_many_streams")
        else:
            self._take(stream_id, headers)

    def _take(self, stream_id: int, headers: list[tuple[str, str]]) -> None:
        size = size_of(headers)
        if not self.plane.accepted and self.header_bytes + size > self.limits.max_stranger_header_bytes:
            self._refuse(stream_id, "too_many_headers")
            return
        self._accept(self, stream_id, headers)
        stream = self.plane.streams.get(stream_id)
        if stream is not None:
            stream.header_bytes = size
            self.header_bytes += size

    def _refuse(self, stream_id: int, reason: str) -> None:
        self.counters.reject(reason)
        self.plane.budgets.spend(flood_budgets.RESET_FLOOD)
        self.refuse(stream_id, ErrorCode.REFUSED_STREAM)

    def _ended(self, stream_id: int) -> None:
        stream = self.plane.streams.get(stream_id)
        if stream is not None and not stream.ended:
            stream.ended = True
            self.plane.touched.append(stream)

    def _reset(self, stream_id: int, frame: bytes) -> None:
        code = parse_reset(stream_id, frame)
        if self.plane.is_idle(stream_id):
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "idle_stream", f"RST_STREAM on idle {stream_id}")
        stream = self.plane.streams.get(stream_id)
        assert stream is None or isinstance(stream, PumpedStream)
        if stream is None or not stream.answered:
            # Floods reset before they are answered (CVE-2023-44487). Who closes many clients resets as many streams that
            # were served, on the one connection that they share in a process; some of these resets cross our trailers.
            self.plane.budgets.spend(flood_budgets.RESET_FLOOD, self.plane.data_frames_sent)
        self._broken(stream_id, f"stream reset by the peer (error {code})")

    def _broken(self, stream_id: int, reason: str) -> None:
        stream = self.plane.streams.get(stream_id)
        if stream is not None:
            assert isinstance(stream, PumpedStream)
            stream.ended = True
            stream.broken(reason)
            self.forget(stream)

    def _settings(self, flags: int, frame: bytes) -> None:
        if flags & frames.ACK:
            self.control_plane.acked(frame)
            # The handshake is done: from here on only idleness is bounded.
            self.arm_idle_deadline()
            return
        self.plane.budgets.spend(flood_budgets.SETTINGS_FLOOD)
        values = self.control_plane.settings(frame)
        frame_bytes = values.get(_MAX_FRAME_SIZE)
        self.plane.out.append(SETTINGS_ACK)
        self.plane.peer_settings(
            values.get(_INITIAL_WINDOW_SIZE), None if frame_bytes is None else min(frame_bytes, _LARGEST_FRAME_BYTES)
        )

    def _ping(self, flags: int, stream_id: int, frame: bytes) -> None:
        check_ping(stream_id, frame)
        plane, limits = self.plane, self.limits
        # grpc-go measures the path with a ping per batch of DATA that it gets, so those are earned.
        plane.budgets.spend(flood_budgets.PING_FLOOD, plane.data_frames_sent)
        if flags & frames.ACK:
            if self._ping_acked is not None:
                self._ping_acked.set()
            return
        self.pings.ping(
            trio.current_time(), plane.data_frames_sent, limits.min_ping_interval_s, limits.max_ping_strikes
        )
        plane.out.append(frames.ping(frame[frames.HEADER_BYTES :], ack=True))

    def _priority(self, stream_id: int, frame: bytes) -> None:
        """Checked and ignored: streams take turns here (RFC 9113 section 5.3 deprecates the scheme)."""
        self.plane.budgets.spend(flood_budgets.PRIORITY_FLOOD)
        check_priority(stream_id, frame)

    def _goaway(self, stream_id: int, frame: bytes) -> None:
        """The client opens no more streams; those that are open go on, and the connection ends with the last."""
        parse_goaway(stream_id, frame)
        self.draining = True
        self.goaway_limit = 0
        self.end_if_done()

    # Draining ------------------------------------------------------------------------------------------------------

    # Two GOAWAYs (RFC 9113 section 6.8): the first asks the client to stop, the second says where we stopped.

    def ask_to_leave(self) -> None:
        """The first GOAWAY, and a PING whose answer says that it has come. `drain` goes on from there."""
        if self._round_trip is not None or self.closing:
            return
        self._ping_acked = trio.Event()
        self._round_trip = trio.Event()
        if not self.draining:  # else the client has said so itself, and what it sent is on its way all the same
            self.draining = True
            self.plane.out.append(frames.goaway(STREAM_MASK, ErrorCode.NO_ERROR, "draining"))
        self.plane.out.append(frames.ping(b"draining"))
        self.pump()

    async def drain(self, round_trip_s: float) -> None:
        """Both GOAWAYs, with a round trip or `round_trip_s` between them."""
        self.ask_to_leave()
        if self._ping_acked is None:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(round_trip_s):
            await self._ping_acked.wait()
        self._ping_acked = None
        if self._round_trip is not None:
            self._round_trip.set()
        self._say_last_goaway()
        self.end_if_done()

    async def wait_round_trip(self) -> None:
        """Wait until the client has answered what asked it to leave, or has had the time for it; at once if it was not asked."""
        if self._round_trip is not None:
            await self._round_trip.wait()

    def _say_last_goaway(self) -> None:
        if self.goaway_limit == STREAM_MASK and not self.closing:
            self.draining = True
            self.goaway_limit = self.plane.highest_stream_id
            self.plane.out.append(frames.goaway(self.goaway_limit, ErrorCode.NO_ERROR, "draining"))
            self.pump()

    def _half_close(self) -> None:
        self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.linger_s
        super()._half_close()

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            streams_open=len(self.plane.streams),
            send_window_bytes=self.plane.send_window,
            streams_blocked=len(self.plane.blocked),
            backlog_bytes=0 if self._backlog is None else len(self._backlog),
            data_frames_sent=self.plane.data_frames_sent,
        )
