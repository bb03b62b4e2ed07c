"""The sending half of the data plane: the peer's windows, and DATA frames cut to fit them (RFC 9113 section 6.9).

Pure. Invariants: no DATA frame exceeds a window or the peer's frame size; a stream that wants to send and cannot is in
`blocked`, and moves to `ready` when the room that it lacks appears, never otherwise.
"""

from __future__ import annotations

from typing import Final, Protocol

from aether_trio.transport.grpc.messages import PREFIX, PREFIX_BYTES
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.data_stream import DataStream
from aether_trio.transport.http2.flood_budgets import Budgets
from aether_trio.transport.http2.frames import FRAME_HEADER, LARGEST_WINDOW_BYTES, ErrorCode, ProtocolViolation

UPDATES_PER_FRAME: Final = 4
"""WINDOW_UPDATEs that one DATA frame earns. grpc-core answers each small message with two, for the stream and for the
connection, and a large frame that is read in pieces with some more. A flood earns nothing, for it sends without reading."""


class Owner(Protocol):
    """What the data plane asks of the connection around it."""

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """One whole frame that is neither DATA nor WINDOW_UPDATE. May open and close streams; may raise ProtocolViolation."""
        ...

    def end_of_stream(self, stream: DataStream) -> None:
        """The peer ended `stream` with a DATA frame."""
        ...

    def stream_error(self, stream_id: int, code: ErrorCode, text: str) -> None:
        """Reset this stream, which may be closed already."""
        ...


class SendSide:
    """The peer's windows over one connection, its streams, and what is to be written."""

    __slots__ = (
        "blocked",
        "budgets",
        "data_frames_sent",
        "highest_stream_id",
        "out",
        "owner",
        "peer_frame_bytes",
        "peer_initial_window",
        "ready",
        "send_window",
        "streams",
    )

    def __init__(self, owner: Owner, budgets: Budgets) -> None:
        self.owner = owner
        self.budgets = budgets
        self.streams: dict[int, DataStream] = {}
        self.highest_stream_id = 0
        """Of the streams that were ever opened: above it a stream is idle, below it one that is not known is closed."""
        self.out: list[bytes | memoryview] = []
        """Whole frames, in the order in which they must leave."""
        self.ready: dict[DataStream, None] = {}
        """Streams that want to send and may try; in order of their turn."""
        self.blocked: dict[DataStream, None] = {}
        """Streams that want to send and lack window."""
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_initial_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.data_frames_sent = 0

    def room(self, stream: DataStream) -> int:
        """Bytes of DATA that both windows allow now; may be negative (RFC 9113 section 6.9.2)."""
        return min(self.send_window, stream.send_window)

    def send(self, stream: DataStream, batch: list[bytes]) -> None:
        """Frame messages into `out` as far as the windows reach; the rest waits in `stream.pending`."""
        size = PREFIX_BYTES * len(batch) + sum(map(len, batch))
        if (
            stream.pending is None
            and size <= self.peer_frame_bytes
            and size <= self.send_window
            and size <= stream.send_window
        ):
            self.out.append(FRAME_HEADER.pack(size << 8, 0, stream.stream_id))
            self.out += _with_prefixes(batch)
            self.send_window -= size
            stream.send_window -= size
            self.data_frames_sent += 1
        else:
            self.hold(stream, batch)
            self.send_pending(stream)

    def hold(self, stream: DataStream, batch: list[bytes]) -> None:
        """Put messages behind what waits in `stream.pending` already, and frame nothing."""
        pieces = _with_prefixes(batch)
        if stream.pending is not None:
            pieces.insert(0, stream.pending)
        stream.pending = memoryview(b"".join(pieces))

    def send_pending(self, stream: DataStream) -> bool:
        """Frame more of what waits. True when nothing waits any more."""
        pending = stream.pending
        if pending is None:
            return True
        room, position, size = self.room(stream), 0, len(pending)
        while position < size and room > 0:
            length = min(self.peer_frame_bytes, room, size - position)
            self.out.append(FRAME_HEADER.pack(length << 8, 0, stream.stream_id))
            self.out.append(pending[position : position + length])
            position += length
            room -= length
            self.data_frames_sent += 1
        self.send_window -= position
        stream.send_window -= position
        if position == size:
            stream.pending = None
            return True
        if position:
            stream.pending = pending[position:]
        self.blocked[stream] = None
        return False

    def window_update(self, stream_id: int, increment: int) -> None:
        """The peer has made room. DATA frames that we sent earn it the right to say so."""
        self.budgets.spend(flood_budgets.WINDOW_UPDATE_FLOOD, UPDATES_PER_FRAME * self.data_frames_sent)
        if not stream_id:
            was_shut = self.send_window <= 0
            self.send_window += increment
            if not increment:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "window_update", "WINDOW_UPDATE of 0")
            if self.send_window > LARGEST_WINDOW_BYTES:
                raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "window_overflow")
            if was_shut:  # otherwise each that is blocked lacks its own
                self._unblock(list(self.blocked))
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle(stream_id):
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "idle_stream", f"WINDOW_UPDATE on idle {stream_id}")
            return
        stream.send_window += increment
        if not increment:
            self.owner.stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        elif stream.send_window > LARGEST_WINDOW_BYTES:
            self.owner.stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "window beyond 2^31-1")
        elif stream in self.blocked:
            self._unblock([stream])

    def peer_settings(self, initial_window: int | None, frame_bytes: int | None) -> None:
        """Apply what the peer's SETTINGS say of DATA. A smaller window may turn open ones negative."""
        if frame_bytes is not None:
            self.peer_frame_bytes = frame_bytes
        if initial_window is None:
            return
        delta = initial_window - self.peer_initial_window
        self.peer_initial_window = initial_window
        for stream in self.streams.values():
            stream.send_window += delta
            if stream.send_window > LARGEST_WINDOW_BYTES:
                raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "window_overflow")
        self._unblock(list(self.blocked))

    def _unblock(self, streams: list[DataStream]) -> None:
        for stream in streams:
            if self.room(stream) > 0:
                del self.blocked[stream]
                self.ready[stream] = None

    def is_idle(self, stream_id: int) -> bool:
        """Never opened. We accept only the client's odd ids, and a client's own streams are odd as well."""
        return stream_id > self.highest_stream_id or stream_id % 2 == 0


def _with_prefixes(batch: list[bytes]) -> list[bytes | memoryview]:
    pack = PREFIX.pack
    pieces: list[bytes | memoryview] = []
    for message in batch:
        pieces.append(pack(0, len(message)))
        pieces.append(message)
    return pieces
