"""Handles DATA and WINDOW_UPDATE frames of an HTTP/2 connection without h2.

h2 spends about 30 µs on a DATA event, as much as a routed message may cost altogether. So DATA goes
to the stream's PayloadReader under our own windows, WINDOW_UPDATE opens the peer's, and every other
frame goes to `FrameOwner.control` in its place, which drives h2. h2 hears of DATA only when it ends
a stream. Without I/O, and the same for both sides: bytes in by `receive`, bytes out by `out`.
Invariants:
* bytes count against a window until they were *read*; a waiting reader reads parts as they come;
* a Http2Violation ends the connection, `FrameOwner.stream_error` a stream; nothing else is raised;
* frames leave in the order they were put into `out`, DATA within windows and the peer's frame size;
* a stream that wants to send and cannot is in `blocked`, and moves to `ready` only when the room
  that it lacks appears (RFC 9113 section 6.9);
* one call of `receive` costs a millisecond or two: with `more` left, the next one takes b"".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from aether_trio.model.errors import StatusError
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.flood_budgets import FloodBudgets
from aether_trio.transport.http2.frames import (
    FRAME_HEADER,
    HEADER_BYTES,
    LARGEST_WINDOW_BYTES,
    STREAM_MASK,
    UINT32,
    Http2ErrorCode,
    Http2Violation,
    frame_size_error,
    protocol_error,
)
from aether_trio.transport.http2.limits import Http2Limits
from aether_trio.transport.http2.stream import MESSAGE_BYTES, MESSAGES_AT_ONCE, Http2Stream

CONTROL_AT_ONCE: Final = 4096
"""Bytes of control frames in one turn, CONTROL_FRAME_BYTES added for each: about 1 ms."""
CONTROL_FRAME_BYTES: Final = 192
CONTROL_FIELD_BYTES: Final = 16
"""Added for each header field, which may have one byte in HPACK's table."""
DATA_AT_ONCE: Final = 256
"""DATA frames; 64 KiB may hold five thousand."""
UPDATES_PER_FRAME: Final = 4
"""WINDOW_UPDATEs that a DATA frame earns; grpc-core sends two or more for each message."""


class FrameOwner(Protocol):
    """Protocol: handles the frames and stream errors that a DataPlane passes on."""

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """Handle one frame that is neither DATA nor WINDOW_UPDATE; may open streams."""

    def end_of_stream(self, stream: Http2Stream) -> None:
        """Handle that the peer ended `stream` with a DATA frame."""

    def stream_error(self, stream_id: int, code: Http2ErrorCode, text: str) -> None:
        """Reset a stream, which may be closed already, because of an HTTP/2 error."""


class DataPlane:
    """One HTTP/2 connection's flow-control windows and the frames it is to send."""

    __slots__ = (
        "_block_bytes", "_block_frames", "_block_stream", "_client", "_control", "_credit", "_preface", "_recv_window",
        "_tail", "_unread", "_unread_most", "accepted", "blocked", "budgets", "data_frames_sent", "highest_stream_id",
        "limits", "more", "out", "owner", "peer_frame_bytes", "peer_initial_window", "ready", "send_window",
        "settings_seen", "streams", "touched",
    )  # fmt: skip

    def __init__(self, owner: FrameOwner, limits: Http2Limits, budgets: FloodBudgets, *, expect_preface: bool) -> None:
        self.owner = owner
        self.budgets = budgets
        self.streams: dict[int, Http2Stream] = {}
        self.highest_stream_id = 0
        """Of the streams ever opened: above it a stream is idle, below it known or closed."""
        self.out: list[bytes | memoryview] = []
        """Whole frames, in the order in which they must leave."""
        self.ready: dict[Http2Stream, None] = {}
        """Streams that want to send and may try; in order of their turn."""
        self.blocked: dict[Http2Stream, None] = {}
        """Streams that want to send and lack window."""
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_initial_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.data_frames_sent = 0
        self.limits = limits
        self.touched: list[Http2Stream] = []
        """Streams with news for their reader since this was emptied; may hold one twice."""
        self.settings_seen = False
        self.more = False
        """Bytes are kept that were not looked at."""
        self._preface = expect_preface
        self._client = not expect_preface
        self._tail = b""
        """The beginning of a frame, at most one of them."""
        self._recv_window = limits.connection_window_bytes
        self._credit = 0
        """Bytes received whose room the peer has not been given back."""
        self._unread = 0
        """What is not read, in bytes of memory."""
        self._unread_most = limits.max_unread_bytes
        self.accepted = False
        """Whether a client's session on this connection is accepted."""
        if expect_preface:
            self._unread_most = min(self._unread_most, limits.max_unauthenticated_unread_bytes)
        self._block_stream = 0
        """While a header block is open, its stream; no other frame may come between."""
        self._block_bytes = 0
        self._block_frames = 0
        self._control = 0
        """What control frames may still cost before the others have their turn."""

    # Streams --------------------------------------------------------------------------------------

    def opening_window_update(self) -> bytes:
        """Return the WINDOW_UPDATE that widens the connection window, to follow SETTINGS."""
        extra = self.limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES
        return frames.window_update(0, extra) if extra else b""

    def open(self, stream: Http2Stream) -> None:
        stream.recv_window = self.limits.stream_window_bytes
        stream.send_window = self.peer_initial_window
        self.streams[stream.stream_id] = stream
        self.highest_stream_id = max(self.highest_stream_id, stream.stream_id)

    def close(self, stream: Http2Stream) -> None:
        """Forget a stream; its unread bytes no longer count against the connection."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.ready.pop(stream, None)
        self.blocked.pop(stream, None)
        stream.payload.drop()
        self._unread -= stream.held
        stream.unread = stream.held = 0
        stream.pending = None
        self._give_connection_credit()

    # Receiving ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Parse bytes from the socket and handle their frames. Raises Http2Violation."""
        self.more = False
        if self._tail:
            data = self._tail + data
            self._tail = b""
        position, end = 0, len(data)
        if self._preface:
            position = self._take_preface(data)
            if self._preface:
                self._tail = data  # to be compared again from its start
                return
        largest = frames.DEFAULT_FRAME_BYTES
        unpack = FRAME_HEADER.unpack_from
        self._control = CONTROL_AT_ONCE
        while end - position >= HEADER_BYTES:
            if self.more:
                break
            word, flags, stream_id = unpack(data, position)
            length = word >> 8
            if length > largest:
                raise frame_size_error(f"an HTTP/2 frame has {length} bytes; at most {largest} are allowed")
            stop = position + HEADER_BYTES + length
            if stop > end:
                break
            kind = word & 0xFF
            stream_id &= STREAM_MASK
            if self._block_stream or not self.settings_seen:
                self._check_sequence(kind, stream_id)
            if kind == frames.DATA:
                self._data(data, position + HEADER_BYTES, stop, flags, stream_id)
            elif kind == frames.WINDOW_UPDATE:
                if length != 4:
                    raise frame_size_error("a WINDOW_UPDATE frame does not have 4 bytes")
                self.window_update(stream_id, UINT32.unpack_from(data, position + HEADER_BYTES)[0] & STREAM_MASK)
            else:
                if kind in (frames.HEADERS, frames.CONTINUATION):
                    self._header_block(kind, flags, stream_id, length)
                self.owner.control(kind, flags, stream_id, data[position:stop])
                self._control -= CONTROL_FRAME_BYTES + length
                self.more = self._control <= 0
            position = stop
        if position < end:
            self._tail = data[position:]
        else:
            self.more = False
        for stream in self.touched:
            stream.payload.after_read()
            if stream.reading and stream.unread and not stream.inbox:
                self._credit_stream(stream)

    def charge(self, fields: int) -> None:
        """Charge header fields to the control frames' work that one `receive` may do."""
        self._control -= CONTROL_FIELD_BYTES * fields

    def _take_preface(self, data: bytes) -> int:
        want = frames.PREFACE
        have = data[: len(want)]
        if have != want[: len(have)]:
            raise protocol_error(
                "bad_preface", "the connection begins without HTTP/2's preface; this port speaks HTTP/2"
            )
        if len(have) < len(want):
            return 0
        self._preface = False
        return len(want)

    def _check_sequence(self, kind: int, stream_id: int) -> None:
        if not self.settings_seen:
            if kind == frames.GOAWAY and self._client:
                # A port that speaks something else says so (transport/socket/first_bytes.py).
                return
            if kind != frames.SETTINGS:
                raise protocol_error("bad_preface", "the first frame is not SETTINGS")
            self.settings_seen = True
        if self._block_stream and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise protocol_error("header_block", "a frame other than CONTINUATION is inside a header block")

    def _header_block(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if kind == frames.HEADERS:
            self._block_bytes = self._block_frames = 0
        elif not self._block_stream:
            raise protocol_error("header_block", "a CONTINUATION frame without HEADERS before it")
        self._block_bytes += length
        self._block_frames += 1
        if self._block_bytes > self.limits.max_header_block_bytes:
            raise Http2Violation(Http2ErrorCode.ENHANCE_YOUR_CALM, "header_block_size")
        if self._block_frames > 1 + self.limits.max_continuation_frames:
            raise Http2Violation(Http2ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood")
        self._block_stream = 0 if flags & frames.END_HEADERS else stream_id
        if not stream_id:
            raise protocol_error("header_block", "a HEADERS frame is on stream 0")

    def _data(self, data: bytes, position: int, stop: int, flags: int, stream_id: int) -> None:
        size = stop - position
        self._recv_window -= size
        if self._recv_window < 0:
            raise Http2Violation(Http2ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overrun")
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended or stream.failure is not None:
            self._unwanted_data(stream, stream_id, data, position, stop, flags)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._connection_credit(size)
            self.owner.stream_error(stream_id, Http2ErrorCode.FLOW_CONTROL_ERROR, "stream window overrun")
            return
        if flags & frames.PADDED:
            position, stop = _without_padding(data, position, stop)
        held = size - MESSAGE_BYTES * len(stream.inbox)
        if position < stop:
            stream.payload.read(data, position, stop)
        elif not flags & frames.END_STREAM:
            self.budgets.spend(flood_budgets.EMPTY_DATA_FLOOD)
        held += MESSAGE_BYTES * len(stream.inbox)
        stream.unread += size
        stream.held += held
        self._unread += held
        self._connection_credit(size)
        if flags & frames.END_STREAM:
            if stream.failure is None:
                stream.payload.end()
            stream.ended = True
            self.owner.end_of_stream(stream)
        self.touched.append(stream)
        if len(stream.inbox) > MESSAGES_AT_ONCE or len(self.touched) > DATA_AT_ONCE:
            self.more = True

    def _unwanted_data(
        self, stream: Http2Stream | None, stream_id: int, data: bytes, position: int, stop: int, flags: int
    ) -> None:
        size = stop - position
        if stream is None:
            self.check_opened("DATA", stream_id)
            self._connection_credit(size)
            self.owner.stream_error(stream_id, Http2ErrorCode.STREAM_CLOSED, "")
            return
        self._connection_credit(size)
        if stream.ended:
            self.owner.stream_error(stream_id, Http2ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
            return
        # Otherwise it failed, and is about to be told so; what is on its way until then is dropped.
        if flags & frames.PADDED:
            position, stop = _without_padding(data, position, stop)
        if position == stop and not flags & frames.END_STREAM:
            self.budgets.spend(flood_budgets.EMPTY_DATA_FLOOD)
        stream.credit += stop - position
        if flags & frames.END_STREAM:
            stream.ended = True
            self.owner.end_of_stream(stream)
            self.touched.append(stream)

    def fail(self, stream: Http2Stream, failure: StatusError) -> None:
        """Fail a stream: its reader gets earlier messages, then `failure`; drop the rest."""
        stream.payload.drop()
        stream.failure = failure
        self.touched.append(stream)

    def accepts(self) -> None:
        """Raise the limit of unread bytes: a client's session has been accepted."""
        self.accepted = True
        self._unread_most = self.limits.max_unread_bytes
        self._give_connection_credit()

    @property
    def has_room(self) -> bool:
        """Whether the connection's receive window lets the peer send at all."""
        return self._recv_window > 0

    # Giving room back -----------------------------------------------------------------------------

    def take(self, stream: Http2Stream) -> list[bytes]:
        """Take at most MESSAGES_AT_ONCE messages of a stream; then reopen its window."""
        batch = stream.inbox
        if len(batch) > MESSAGES_AT_ONCE:
            stream.inbox = batch[MESSAGES_AT_ONCE:]
            return batch[:MESSAGES_AT_ONCE]
        if batch:
            stream.inbox = []
        if stream.unread:
            self._credit_stream(stream)
        return batch

    def _credit_stream(self, stream: Http2Stream) -> None:
        stream.credit += stream.unread
        self._unread -= stream.held
        stream.unread = stream.held = 0
        if stream.credit * 2 >= self.limits.stream_window_bytes and not stream.ended and stream.failure is None:
            # Half a window: one update for many messages, and the peer never runs dry while we
            # read.
            self.out.append(frames.window_update(stream.stream_id, stream.credit))
            stream.recv_window += stream.credit
            stream.credit = 0
        self._give_connection_credit()

    def _connection_credit(self, size: int) -> None:
        """Reopen the connection window by `size` received bytes, even if unread."""
        self._credit += size
        self._give_connection_credit()

    def _give_connection_credit(self) -> None:
        """Send WINDOW_UPDATE for the connection, unless its streams leave too much unread."""
        if self._credit * 2 >= self.limits.connection_window_bytes and self._unread <= self._unread_most:
            self.out.append(frames.window_update(0, self._credit))
            self._recv_window += self._credit
            self._credit = 0

    # Sending --------------------------------------------------------------------------------------

    def room(self, stream: Http2Stream) -> int:
        """Return the DATA bytes that both send windows allow; negative when they shrank."""
        return min(self.send_window, stream.send_window)

    def send(self, stream: Http2Stream, pieces: Sequence[bytes]) -> None:
        """Put bytes as DATA into `out`; what lacks window waits in `stream.pending`."""
        size = sum(map(len, pieces))
        if (
            stream.pending is None
            and size <= self.peer_frame_bytes
            and size <= self.send_window
            and size <= stream.send_window
        ):
            self.out.append(FRAME_HEADER.pack(size << 8, 0, stream.stream_id))
            self.out += pieces
            self.send_window -= size
            stream.send_window -= size
            self.data_frames_sent += 1
        else:
            self.hold(stream, pieces)
            self.send_pending(stream)

    def hold(self, stream: Http2Stream, pieces: Sequence[bytes]) -> None:
        """Append bytes to those that wait in `stream.pending`, without framing them."""
        waiting = b"" if stream.pending is None else stream.pending
        stream.pending = memoryview(b"".join((waiting, *pieces)))

    def send_pending(self, stream: Http2Stream) -> bool:
        """Frame waiting bytes of a stream as DATA; return True when none wait any more."""
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
        """Apply the peer's WINDOW_UPDATE and let blocked streams send."""
        self.budgets.spend(flood_budgets.WINDOW_UPDATE_FLOOD, UPDATES_PER_FRAME * self.data_frames_sent)
        if not stream_id:
            was_shut = self.send_window <= 0
            self.send_window += increment
            if not increment:
                raise protocol_error("window_update", "a WINDOW_UPDATE frame adds 0 bytes")
            if self.send_window > LARGEST_WINDOW_BYTES:
                raise Http2Violation(Http2ErrorCode.FLOW_CONTROL_ERROR, "window_overflow")
            if was_shut:  # otherwise each that is blocked lacks its own
                self._unblock(list(self.blocked))
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self.check_opened("WINDOW_UPDATE", stream_id)
            return
        stream.send_window += increment
        if not increment:
            self.owner.stream_error(stream_id, Http2ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE frame adds 0 bytes")
        elif stream.send_window > LARGEST_WINDOW_BYTES:
            self.owner.stream_error(stream_id, Http2ErrorCode.FLOW_CONTROL_ERROR, "window beyond 2^31-1")
        elif stream in self.blocked:
            self._unblock([stream])

    def peer_settings(self, initial_window: int | None, frame_bytes: int | None) -> None:
        """Apply window and frame size of the peer's SETTINGS; windows may turn negative."""
        if frame_bytes is not None:
            self.peer_frame_bytes = frame_bytes
        if initial_window is None:
            return
        delta = initial_window - self.peer_initial_window
        self.peer_initial_window = initial_window
        for stream in self.streams.values():
            stream.send_window += delta
            if stream.send_window > LARGEST_WINDOW_BYTES:
                raise Http2Violation(Http2ErrorCode.FLOW_CONTROL_ERROR, "window_overflow")
        self._unblock(list(self.blocked))

    def _unblock(self, streams: list[Http2Stream]) -> None:
        for stream in streams:
            if self.room(stream) > 0:
                del self.blocked[stream]
                self.ready[stream] = None

    def check_opened(self, kind: str, stream_id: int) -> None:
        """Raise Http2Violation if a frame is on a stream that was never opened."""
        if self.is_idle(stream_id):
            raise protocol_error("idle_stream", f"a {kind} frame is on stream {stream_id}, which was never opened")

    def is_idle(self, stream_id: int) -> bool:
        """Return whether no client has opened a stream of this id; even ids are idle."""
        return stream_id > self.highest_stream_id or stream_id % 2 == 0


def _without_padding(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """Return the content's range in a padded DATA frame. Raises Http2Violation."""
    if position == stop or position + 1 + data[position] > stop:
        raise protocol_error("padding", "the padding of a DATA frame is longer than the frame")
    return position + 1, stop - data[position]
