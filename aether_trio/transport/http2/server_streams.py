"""The streams of a server's connection: how they open, answer, and are forgotten.

Invariants: a stream is open in the plane from `open` to `forget`, and counted as long; headers, trailers and resets leave
without h2, which is told only that a stream is over; a drained connection ends with its last stream.
"""

from __future__ import annotations

import socket
from math import inf
from typing import TYPE_CHECKING

import trio

from aether_trio.transport.http2 import flood_budgets, frames, response_headers
from aether_trio.transport.http2.connection import Connection
from aether_trio.transport.http2.control import SharedControl
from aether_trio.transport.http2.data_stream import DataStream
from aether_trio.transport.http2.flood_budgets import Budgets
from aether_trio.transport.http2.frames import STREAM_MASK, ErrorCode
from aether_trio.transport.http2.output import Sealer
from aether_trio.transport.http2.ping_strikes import PingStrikes
from aether_trio.transport.http2.pumped import PumpedStream
from aether_trio.transport.http2.server_control import ServerControl
from aether_trio.transport.http2.statistics import Counters

if TYPE_CHECKING:
    from aether_trio.transport.grpc.inflation import InflationTurns
    from aether_trio.transport.http2.limits import Allowance, GrpcLimits
    from aether_trio.transport.socket.unfinished_input import Account


class ServerStreams(Connection):
    """A connection that serves streams; ServerConnection adds what frames mean and how it ends."""

    __slots__ = (
        "_said_no_table",
        "_waits_for_room",
        "control_plane",
        "draining",
        "goaway_limit",
        "header_bytes",
        "pings",
    )

    def __init__(
        self,
        sock: socket.socket,
        sealer: Sealer | None,
        limits: GrpcLimits,
        allowances: tuple[Allowance, ...],
        shared: SharedControl,
        counters: Counters,
        nursery: trio.Nursery,
        account: Account,
        turns: InflationTurns,
    ) -> None:
        super().__init__(
            sock,
            sealer,
            limits,
            Budgets(allowances, trio.current_time),
            counters,
            nursery,
            client_side=False,
            account=account,
            turns=turns,
        )
        self.control_plane = ServerControl(shared, self.plane)
        self.pings = PingStrikes()
        self.draining = False
        self.goaway_limit = STREAM_MASK
        """Streams above it are refused: the last id of our final GOAWAY."""
        self.header_bytes = 0
        """Of the requests of open streams."""
        self._said_no_table = False
        self._waits_for_room: trio.lowlevel.ParkingLot | None = None
        """Handlers whose next request waits until the peer has read earlier answers."""

    async def wait_answers_room(self) -> None:
        """Wait until the peer has read of its answers what is over the bound; those of links have their own. A checkpoint only then."""
        while self._unread_answers_bytes() > self.limits.max_unread_answers_bytes:
            if self._waits_for_room is None:
                self._waits_for_room = trio.lowlevel.ParkingLot()
            await self._waits_for_room.park()
        self.answers_moved()  # one after the other, as each may fill the room

    def _unread_answers_bytes(self) -> int:
        return sum(len(stream.pending) for stream in self.dirty if stream.pending is not None and not stream.has_source)

    def answers_moved(self) -> None:
        """An answer has left, or is not wanted any more."""
        if self._waits_for_room is not None:
            self._waits_for_room.unpark()

    def open(self, stream: PumpedStream) -> None:
        self.plane.open(stream)
        self.opened = True
        self.counters.streams_open += 1
        self.counters.streams_total += 1
        if self.nursery.cancel_scope.deadline != inf:
            self.nursery.cancel_scope.deadline = inf

    def forget(self, stream: PumpedStream) -> None:
        """The stream is over on both sides."""
        if stream.stream_id in self.plane.streams:
            self.plane.close(stream)
            self.header_bytes -= stream.header_bytes
            self.dirty.pop(stream, None)
            self.answers_moved()
            self.control_plane.forget(stream.stream_id)
            self.counters.streams_open -= 1
            self.arm_idle_deadline()
            self.end_if_done()

    def send_block(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        """Put a response's headers or trailers (response_headers.py) into the output; they leave with the next pump."""
        if not self._said_no_table:
            self._said_no_table = True
            block = response_headers.NO_TABLE + block
        plane = self.plane
        plane.out.append(response_headers.block_frames(stream_id, block, plane.peer_frame_bytes, end_stream=end_stream))
        self.pings.forgive()

    def refuse(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream that never became an RPC."""
        self.plane.out.append(frames.rst_stream(stream_id, code))
        self.control_plane.forget(stream_id, reset_by_us=True)

    def closed_locally(self, stream: PumpedStream) -> None:
        """Our trailers or reset are in the output."""
        self.forget(stream)
        self.pump()

    def reset(self, stream: DataStream, code: ErrorCode) -> None:
        """Put RST_STREAM into the output; the caller is about to forget the stream."""
        self.plane.out.append(frames.rst_stream(stream.stream_id, code))
        self.control_plane.forget(stream.stream_id, reset_by_us=True)

    def end_of_stream(self, stream: DataStream) -> None:
        """See dataplane.Owner."""
        self.control_plane.end_of_stream(stream.stream_id)

    def stream_error(self, stream_id: int, code: ErrorCode, text: str) -> None:
        """See dataplane.Owner. Every reset that the peer provokes is charged to it."""
        stream = self.plane.streams.get(stream_id)
        if stream is None:
            # What was on its way when we reset a stream needs no second word.
            if not self.control_plane.reset_by_us(stream_id):
                self.plane.budgets.spend(flood_budgets.STRAY_DATA_FLOOD)
                self.plane.out.append(frames.rst_stream(stream_id, code))
            return
        self.plane.budgets.spend(flood_budgets.RESET_FLOOD)
        assert isinstance(stream, PumpedStream)
        self.counters.reject("stream_error")
        self.reset(stream, code)
        stream.ended = True
        stream.broken(text)
        self.forget(stream)

    def arm_idle_deadline(self) -> None:
        if not self.plane.streams and not self.closing:
            self.nursery.cancel_scope.deadline = trio.current_time() + (self.limits.idle_timeout_s or inf)

    def end_if_done(self) -> None:
        """Nothing more can come on a drained connection: end our side, and the peer will end its own."""
        if self.goaway_limit != STREAM_MASK and not self.plane.streams and not self.closing:
            self.nursery.cancel_scope.deadline = trio.current_time() + self.limits.close_timeout_s
            self.end_when_flushed()
