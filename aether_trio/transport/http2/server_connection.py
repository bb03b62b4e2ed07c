"""The server's side of an HTTP/2 connection: streams, control frames, and drain.

`serve` reads in the caller's task; `nursery` holds the tasks of the RPCs and the writer. When
reading ends, open streams break: tasks whose stream has a scope are cancelled, link tasks see
LinkBroken, and the nursery's deadline, `close_timeout_s` later, cancels the rest. The same deadline
bounds handshake and idleness.

Invariants: a stream is open in the plane, and counted, from `open` to `forget`; headers, trailers
and resets leave without h2; a drained connection ends with its last stream.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

import h2.events
import trio

from aether_trio.model.containment import DEFECT, report
from aether_trio.model.errors import Status
from aether_trio.transport.http2 import flood_budgets, frames, header_blocks
from aether_trio.transport.http2.connection_io import ConnectionIo
from aether_trio.transport.http2.flood_budgets import FloodBudgets
from aether_trio.transport.http2.frame_checks import check_ping, check_priority, parse_goaway, parse_reset
from aether_trio.transport.http2.frames import STREAM_MASK, Http2ErrorCode, protocol_error
from aether_trio.transport.http2.h2_engine import SharedH2State
from aether_trio.transport.http2.ping_strikes import PingStrikes
from aether_trio.transport.http2.server_settings_and_headers import (
    SETTINGS_ACK,
    ServerSettingsAndHeaders,
    as_text,
    size_of,
)
from aether_trio.transport.http2.statistics import Http2ConnectionStatistics, Http2Counters
from aether_trio.transport.http2.stream import Http2Stream
from aether_trio.transport.socket.accepted import Accepted, address_text

if TYPE_CHECKING:
    from aether_trio.transport.http2.limits import Allowance, Http2Limits

_INITIAL_WINDOW_SIZE: Final = 4
_MAX_FRAME_SIZE: Final = 5
_LARGEST_FRAME_BYTES: Final = 64 * 1024
"""Ours, whatever more the peer allows: one stream's frame is what the others wait for."""

AcceptStream = Callable[["ServerConnection", int, list[tuple[str, str]]], None]
"""`accept(connection, stream_id, headers)` starts or refuses an RPC, while a read is scanned."""


class ServerConnection:
    """The server's side of an HTTP/2 connection: decides what frames of a client mean."""

    __slots__ = (
        "_accept", "_defective", "_ended_event", "_finished", "_header_bytes", "_ping_acked", "_pings", "_round_trip",
        "_said_no_table", "_settings_frame", "_waits_for_room", "address", "certificate", "counters", "draining",
        "goaway_limit", "limits", "lingering", "nursery", "plane", "settings_and_headers", "started", "wire",
    )  # fmt: skip

    def __init__(
        self,
        accepted: Accepted,
        limits: Http2Limits,
        allowances: tuple[Allowance, ...],
        shared: SharedH2State,
        counters: Http2Counters,
        nursery: trio.Nursery,
        accept: AcceptStream,
    ) -> None:
        self.limits = limits
        self.counters = counters
        self.nursery = nursery
        budgets = FloodBudgets(allowances, trio.current_time)
        self.wire = ConnectionIo(
            self, accepted.sock, accepted.tls, limits, budgets, counters, nursery, client_side=False
        )
        self.plane = self.wire.plane
        self.settings_and_headers = ServerSettingsAndHeaders(shared, self.plane)
        self.address = accepted.address
        """The peer's, as `accept` returned it."""
        self.certificate = accepted.certificate
        self.started = trio.current_time()
        self.draining = False
        self.goaway_limit = STREAM_MASK
        """Streams above it are refused: the last id of our final GOAWAY."""
        self.lingering = False
        """Whether the end came from us: the socket must not be closed before the peer has read why.
        """
        self._accept = accept
        self._settings_frame = shared.settings_frame
        self._pings: PingStrikes | None = None
        """Made when the client pings."""
        self._header_bytes = 0
        """Bytes in the requests of open streams."""
        self._said_no_table = False
        self._waits_for_room: trio.lowlevel.ParkingLot | None = None
        """Handlers whose next request waits until the peer has read earlier answers."""
        self._ended_event: trio.Event | None = None
        self._finished = self._defective = False
        self._ping_acked: trio.Event | None = None
        self._round_trip: trio.Event | None = None

    # The task -------------------------------------------------------------------------------------

    async def serve(self, accepted: Accepted) -> str:
        """Serve the client's requests until the connection ends, and return why it ended.

        Takes what was read already from `accepted`.
        """
        # These leave with the answer to the client's first bytes, which it sends without waiting
        # (RFC 9113 section 3.4).
        self.plane.out.append(self._settings_frame)
        self.plane.out.append(self.plane.opening_window_update())
        try:
            reason = await self._serve_first(accepted) or await self.wire.read_until_end()
        except trio.Cancelled:
            self._cut_off()
            raise
        self.lingering = self.wire.closing
        self.wire.stop()
        if self.nursery.child_tasks:
            self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.close_timeout_s
            if not self.lingering:
                self.wire.writer.abort()
        self.break_streams(reason)
        return reason

    async def _serve_first(self, accepted: Accepted) -> str | None:
        """Process the first bytes; return why the connection ended, None if it goes on."""
        head, accepted.head = accepted.head, b""  # in no frame that lasts
        self.counters.bytes_received += len(head)
        if head and not await self.wire.received(head):
            return "closed"
        if not self.plane.streams:
            self.nursery.cancel_scope.deadline = self.started + self.limits.handshake_timeout_s
        return None

    def _cut_off(self) -> None:
        """End the connection at a deadline or the server's stop, without waiting."""
        self.lingering = True
        if self.plane.streams:
            self.evict(Status.UNAVAILABLE, "the server stops")
        elif not self.wire.closing:
            settled = self.plane.settings_seen
            self.counters.reject("idle_timeout" if settled else "handshake_timeout")
            code = Http2ErrorCode.NO_ERROR if settled else Http2ErrorCode.SETTINGS_TIMEOUT
            self.plane.out.append(frames.goaway(self.plane.highest_stream_id, code, "timeout"))
        self.wire.stop()
        self.wire.writer.kick()

    def break_streams(self, reason: str) -> None:
        """Tell every open stream that the connection has ended."""
        for stream in list(self.plane.streams.values()):
            stream.broken(reason)
            self.forget(stream)

    def evict_public(self, status: Status, message: str) -> None:
        """End the calls that need no credential (health, reflection), without waiting."""
        for stream in self._public():
            stream.handler.evict(status, message)
        self.end_if_done()

    @property
    def has_public(self) -> bool:
        """Whether a call is open that needs no credential (health, reflection)."""
        return bool(self._public())

    def _public(self) -> list[Http2Stream]:
        streams = self.plane.streams.values()
        return [stream for stream in streams if stream.handler.is_public]

    def evict(self, status: Status, message: str) -> None:
        """End every stream with trailers, then the connection, without waiting."""
        self._say_last_goaway()
        for stream in list(self.plane.streams.values()):
            stream.handler.evict(status, message)
        self.end_if_done()

    def cut(self) -> None:
        """Abort the connection at once, without sending the bytes that wait."""
        self.wire.writer.abort()

    @property
    def who(self) -> str:
        """The connection's name in logs."""
        return f"grpc with {address_text(self.address)}"

    def on_defect(self, error: Exception) -> None:
        """Report an internal error and end all calls with UNKNOWN; cut the second time."""
        report(error, self.who)
        if self._defective:
            self.wire.writer.abort()
            return
        self._defective = True
        self.evict(Status.UNKNOWN, DEFECT)

    async def wait_ended(self) -> None:
        if self._finished:
            await trio.lowlevel.checkpoint()
            return
        if self._ended_event is None:
            self._ended_event = trio.Event()
        await self._ended_event.wait()

    def finish(self) -> None:
        """Wake the tasks that wait for this connection's end: its last task has ended."""
        if self._round_trip is not None:
            self._round_trip.set()
        self.wire.stop()
        self._finished = True
        if self._ended_event is not None:
            self._ended_event.set()

    # Streams --------------------------------------------------------------------------------------

    async def wait_answers_room(self) -> None:
        """Wait while the client leaves too many answers of health or reflection unread."""
        while self._unread_answers_bytes() > self.limits.max_unread_answers_bytes:
            if self._waits_for_room is None:
                self._waits_for_room = trio.lowlevel.ParkingLot()
            await self._waits_for_room.park()
        self.answers_moved()  # one after the other, as each may fill the room

    def _unread_answers_bytes(self) -> int:
        return sum(
            len(stream.pending)
            for stream in self.wire.dirty
            if stream.pending is not None and not stream.handler.has_source
        )

    def answers_moved(self) -> None:
        """Resume one handler that waits for the client to read answers."""
        if self._waits_for_room is not None:
            self._waits_for_room.unpark()

    def open(self, stream: Http2Stream) -> None:
        self.plane.open(stream)
        self.wire.note_opened()
        self.counters.streams_open += 1
        self.counters.streams_total += 1
        if self.nursery.cancel_scope.deadline != inf:
            self.nursery.cancel_scope.deadline = inf

    def forget(self, stream: Http2Stream) -> None:
        """Remove a stream that is over on both sides."""
        if stream.stream_id in self.plane.streams:
            self.plane.close(stream)
            self._header_bytes -= stream.header_bytes
            self.wire.dirty.pop(stream, None)
            self.answers_moved()
            self.settings_and_headers.forget(stream.stream_id)
            self.counters.streams_open -= 1
            self.arm_idle_deadline()
            self.end_if_done()

    def send_block(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        """Queue a response's headers or trailers, which leave with the next send."""
        if not self._said_no_table:
            self._said_no_table = True
            block = header_blocks.NO_TABLE + block
        plane = self.plane
        plane.out.append(header_blocks.block_frames(stream_id, block, plane.peer_frame_bytes, end_stream=end_stream))
        if self._pings is not None:
            self._pings.forgive()

    def refuse(self, stream_id: int, code: Http2ErrorCode) -> None:
        """Reset a requested stream that does not become an RPC."""
        self.plane.out.append(frames.rst_stream(stream_id, code))
        self.settings_and_headers.forget(stream_id, reset_by_us=True)

    def closed_locally(self, stream: Http2Stream) -> None:
        """Remove a stream whose trailers or reset are queued, and send these."""
        self.forget(stream)
        self.wire.writer.kick()

    def reset(self, stream: Http2Stream, code: Http2ErrorCode) -> None:
        """Queue an RST_STREAM; the caller is about to forget the stream."""
        self.plane.out.append(frames.rst_stream(stream.stream_id, code))
        self.settings_and_headers.forget(stream.stream_id, reset_by_us=True)

    def end_of_stream(self, stream: Http2Stream) -> None:
        """Tell h2 that the client ended a stream with a DATA frame."""
        self.settings_and_headers.end_of_stream(stream.stream_id)

    def stream_error(self, stream_id: int, code: Http2ErrorCode, text: str) -> None:
        """Reset a stream after the client's error and charge it to the client's allowance."""
        stream = self.plane.streams.get(stream_id)
        if stream is None:
            # What was on its way when we reset a stream needs no second word.
            if not self.settings_and_headers.reset_by_us(stream_id):
                self.plane.budgets.spend(flood_budgets.STRAY_DATA_FLOOD)
                self.plane.out.append(frames.rst_stream(stream_id, code))
            return
        self.plane.budgets.spend(flood_budgets.RESET_FLOOD)
        self.counters.reject("stream_error")
        self.reset(stream, code)
        stream.ended = True
        stream.broken(text)
        self.forget(stream)

    def arm_idle_deadline(self) -> None:
        if not self.plane.streams and not self.wire.closing:
            self.nursery.cancel_scope.deadline = trio.current_time() + (self.limits.idle_timeout_s or inf)

    def end_if_done(self) -> None:
        """End our side of a drained connection whose last stream is over."""
        if self.goaway_limit != STREAM_MASK and not self.plane.streams and not self.wire.closing:
            self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.close_timeout_s
            self.wire.end_when_flushed()

    # Control frames -------------------------------------------------------------------------------

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """Handle one HTTP/2 control frame of the client (PING, SETTINGS, HEADERS, ...)."""
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
            raise protocol_error("push", "a client sent PUSH_PROMISE, which only servers may")
        else:
            self._header_block(kind, flags, stream_id, frame)

    def _header_block(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        headers = self.settings_and_headers.known_request(flags, stream_id, frame) if kind == frames.HEADERS else None
        if headers is not None:
            self._request(stream_id, headers)
            if flags & frames.END_STREAM:
                self._ended(stream_id)
            return
        for event in self.settings_and_headers.receive(kind, flags, frame):
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
        if not self.plane.accepted and self._header_bytes + size > self.limits.max_unauthenticated_header_bytes:
            self._refuse(stream_id, "too_many_headers")
            return
        self._accept(self, stream_id, headers)
        stream = self.plane.streams.get(stream_id)
        if stream is not None:
            stream.header_bytes = size
            self._header_bytes += size

    def _refuse(self, stream_id: int, reason: str) -> None:
        self.counters.reject(reason)
        self.plane.budgets.spend(flood_budgets.RESET_FLOOD)
        self.refuse(stream_id, Http2ErrorCode.REFUSED_STREAM)

    def _ended(self, stream_id: int) -> None:
        stream = self.plane.streams.get(stream_id)
        if stream is not None and not stream.ended:
            stream.ended = True
            self.plane.touched.append(stream)

    def _reset(self, stream_id: int, frame: bytes) -> None:
        code = parse_reset(stream_id, frame)
        self.plane.check_opened("RST_STREAM", stream_id)
        stream = self.plane.streams.get(stream_id)
        if stream is None or not stream.handler.answered:
            # Floods reset before they are answered (CVE-2023-44487). Who closes many clients resets
            # as many streams that were served, on the one connection that they share in a process;
            # some of these resets cross our trailers.
            self.plane.budgets.spend(flood_budgets.RESET_FLOOD, self.plane.data_frames_sent)
        self._broken(stream_id, f"stream reset by the peer (error {code})")

    def _broken(self, stream_id: int, reason: str) -> None:
        stream = self.plane.streams.get(stream_id)
        if stream is not None:
            stream.ended = True
            stream.broken(reason)
            self.forget(stream)

    def _settings(self, flags: int, frame: bytes) -> None:
        if flags & frames.ACK:
            self.settings_and_headers.acked(frame)
            # The handshake is done: from here on only idleness is bounded.
            self.arm_idle_deadline()
            return
        self.plane.budgets.spend(flood_budgets.SETTINGS_FLOOD)
        values = self.settings_and_headers.settings(frame)
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
        if self._pings is None:
            self._pings = PingStrikes()
        self._pings.ping(
            trio.current_time(), plane.data_frames_sent, limits.min_ping_interval_s, limits.max_ping_strikes
        )
        plane.out.append(frames.ping(frame[frames.HEADER_BYTES :], ack=True))

    def _priority(self, stream_id: int, frame: bytes) -> None:
        """Check a PRIORITY frame and ignore it: deprecated by RFC 9113 section 5.3."""
        self.plane.budgets.spend(flood_budgets.PRIORITY_FLOOD)
        check_priority(stream_id, frame)

    def _goaway(self, stream_id: int, frame: bytes) -> None:
        """Handle the client's GOAWAY: it opens no more streams, and open ones go on."""
        parse_goaway(stream_id, frame)
        self.draining = True
        self.goaway_limit = 0
        self.end_if_done()

    # Draining -------------------------------------------------------------------------------------

    # Two GOAWAYs (RFC 9113 section 6.8): the first asks the client to stop, the second says where
    # we stopped.

    def ask_to_leave(self) -> None:
        """Send the first GOAWAY, and a PING whose answer shows that it has arrived."""
        if self._round_trip is not None or self.wire.closing:
            return
        self._ping_acked = trio.Event()
        self._round_trip = trio.Event()
        # Else the client has said so itself, and what it sent is on its way all the same.
        if not self.draining:
            self.draining = True
            self.plane.out.append(frames.goaway(STREAM_MASK, Http2ErrorCode.NO_ERROR, "draining"))
        self.plane.out.append(frames.ping(b"draining"))
        self.wire.writer.kick()

    async def drain(self, round_trip_s: float) -> None:
        """Send both GOAWAYs, with a round trip or `round_trip_s` between them."""
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
        """Wait for the client's answer to the PING behind GOAWAY, if one was sent."""
        if self._round_trip is not None:
            await self._round_trip.wait()

    def _say_last_goaway(self) -> None:
        if self.goaway_limit == STREAM_MASK and not self.wire.closing:
            self.draining = True
            self.goaway_limit = self.plane.highest_stream_id
            self.plane.out.append(frames.goaway(self.goaway_limit, Http2ErrorCode.NO_ERROR, "draining"))
            self.wire.writer.kick()

    def on_half_close(self) -> None:
        """Set the deadline for the client to end its side."""
        self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.linger_s

    def statistics(self) -> Http2ConnectionStatistics:
        return Http2ConnectionStatistics(
            streams_open=len(self.plane.streams),
            send_window_bytes=self.plane.send_window,
            streams_blocked=len(self.plane.blocked),
            backlog_bytes=self.wire.writer.backlog_bytes,
            data_frames_sent=self.plane.data_frames_sent,
        )
