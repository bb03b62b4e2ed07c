"""The data plane of an HTTP/2 connection: DATA and WINDOW_UPDATE as pure arithmetic, without h2.

h2 spends about 30 µs on a DATA event and a routed message may cost little more than that altogether. So the received
bytes are scanned here: DATA becomes batches of gRPC messages under our own windows, WINDOW_UPDATE opens the peer's, and
every other frame goes to `Owner.control` untouched, in its place, which drives h2. h2 hears of DATA only when it ends a
stream, because its state machine must move.

Sans-I/O, and the same for both sides: bytes in by `receive`, bytes out by `out`. Invariants:
* a length prefix is compared with its limit before anything of what it announces is kept;
* bytes count against a window until they were *read*; a reader that waits reads a message's parts as they come;
* a ProtocolViolation ends the connection, `Owner.stream_error` ends one stream, and nothing else is ever raised;
* frames leave in the order they were put into `out`, and DATA never exceeds a window or the peer's frame size;
* one call of `receive` costs a millisecond or two, however small the frames and messages are: with `more` left, the next one takes b"".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.assembly import Assembler
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.data_stream import MESSAGE_BYTES, MESSAGES_AT_ONCE, DataStream
from aether_trio.transport.http2.flood_budgets import Budgets
from aether_trio.transport.http2.frames import (
    FRAME_HEADER,
    HEADER_BYTES,
    STREAM_MASK,
    UINT32,
    ErrorCode,
    ProtocolViolation,
)
from aether_trio.transport.http2.limits import GrpcLimits
from aether_trio.transport.http2.sending import Owner, SendSide

if TYPE_CHECKING:
    from aether_trio.transport.socket.unfinished_input import Account

CONTROL_AT_ONCE: Final = 4096
"""Bytes of control frames, each of which counts for CONTROL_FRAME_BYTES more: a request costs 0.2 ms when h2 has to look at its
headers, and one with 150 headers 1 ms."""
CONTROL_FRAME_BYTES: Final = 192
CONTROL_FIELD_BYTES: Final = 16
"""What each header field counts for beside: one that is in HPACK's table has one byte, and costs what others cost."""
DATA_AT_ONCE: Final = 256
"""DATA frames; 64 KiB may hold five thousand."""


class DataPlane(SendSide):
    """Both halves: our windows and what arrives under them here, the peer's in SendSide."""

    __slots__ = (
        "_assembler",
        "_block_bytes",
        "_block_frames",
        "_block_stream",
        "_client",
        "_control",
        "_credit",
        "_preface",
        "_recv_window",
        "_tail",
        "_unread",
        "_unread_most",
        "accepted",
        "limits",
        "more",
        "settings_seen",
        "touched",
    )

    def __init__(
        self,
        owner: Owner,
        limits: GrpcLimits,
        budgets: Budgets,
        *,
        expect_preface: bool,
        account: Account | None = None,
    ) -> None:
        super().__init__(owner, budgets)
        self.limits = limits
        self.touched: list[DataStream] = []
        """Streams with news for their reader since the owner last emptied this list; may hold one twice."""
        self.settings_seen = False
        self.more = False
        """Bytes are kept that were not looked at."""
        self._assembler = Assembler(limits.max_receive_message_bytes, limits.max_assembling_bytes, account)
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
        """Some client of the connection has shown who it is."""
        if expect_preface:
            self._unread_most = min(self._unread_most, limits.max_stranger_unread_bytes)
        self._block_stream = 0
        """While a header block is open, its stream; no other frame may come between."""
        self._block_bytes = 0
        self._block_frames = 0
        self._control = 0
        """What control frames may still cost before the others have their turn."""

    # Streams -----------------------------------------------------------------------------------------------------

    def opening_window_update(self) -> bytes:
        """What raises the connection window from HTTP/2's default to ours; to be sent right behind our SETTINGS."""
        extra = self.limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES
        return frames.window_update(0, extra) if extra else b""

    def open(self, stream: DataStream) -> None:
        stream.recv_window = self.limits.stream_window_bytes
        stream.largest = self.limits.opening_bytes
        stream.send_window = self.peer_initial_window
        self.streams[stream.stream_id] = stream
        self.highest_stream_id = max(self.highest_stream_id, stream.stream_id)

    def close(self, stream: DataStream) -> None:
        """Forget a stream. What its reader has not taken is given back to the connection."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.ready.pop(stream, None)
        self.blocked.pop(stream, None)
        self._assembler.drop(stream)
        self._unread -= stream.held
        stream.unread = stream.held = 0
        stream.pending = None
        self._give_connection_credit()

    # Receiving ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes as they came from the socket. Raises ProtocolViolation; then the connection is of no more use."""
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
                raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "frame_size", f"frame of {length} bytes")
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
                    raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "frame_size", "WINDOW_UPDATE is not 4 bytes")
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
            if stream.partial is not None or stream.begun:
                self._assembler.note(stream)
            if stream.reading and stream.unread and not stream.inbox:
                self._credit_stream(stream)

    def charge(self, fields: int) -> None:
        """The control frame at hand has brought so many header fields."""
        self._control -= CONTROL_FIELD_BYTES * fields

    def _take_preface(self, data: bytes) -> int:
        want = frames.PREFACE
        have = data[: len(want)]
        if have != want[: len(have)]:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "bad_preface", "this port speaks gRPC over HTTP/2")
        if len(have) < len(want):
            return 0
        self._preface = False
        return len(want)

    def _check_sequence(self, kind: int, stream_id: int) -> None:
        if not self.settings_seen:
            if kind == frames.GOAWAY and self._client:
                return  # a port that speaks something else says so (transport/socket/first_bytes.py)
            if kind != frames.SETTINGS:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "bad_preface", "the first frame must be SETTINGS")
            self.settings_seen = True
        if self._block_stream and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "header_block", "frame inside a header block")

    def _header_block(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if kind == frames.HEADERS:
            self._block_bytes = self._block_frames = 0
        elif not self._block_stream:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "header_block", "CONTINUATION without HEADERS")
        self._block_bytes += length
        self._block_frames += 1
        if self._block_bytes > self.limits.max_header_block_bytes:
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "header_block_size")
        if self._block_frames > 1 + self.limits.max_continuation_frames:
            raise ProtocolViolation(ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood")
        self._block_stream = 0 if flags & frames.END_HEADERS else stream_id
        if not stream_id:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "header_block", "HEADERS on stream 0")

    def _data(self, data: bytes, position: int, stop: int, flags: int, stream_id: int) -> None:
        size = stop - position
        self._recv_window -= size
        if self._recv_window < 0:
            raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "connection_window_overrun")
        stream = self.streams.get(stream_id)
        if stream is None or stream.ended or stream.failure is not None:
            self._unwanted_data(stream, stream_id, data, position, stop, flags)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._connection_credit(size)
            self.owner.stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window overrun")
            return
        if flags & frames.PADDED:
            position, stop = _without_padding(data, position, stop)
        held = size - MESSAGE_BYTES * len(stream.inbox)
        if position < stop:
            self._assembler.assemble(stream, data, position, stop)
        elif not flags & frames.END_STREAM:
            self.budgets.spend(flood_budgets.EMPTY_DATA_FLOOD)
        held += MESSAGE_BYTES * len(stream.inbox)
        stream.unread += size
        stream.held += held
        self._unread += held
        self._connection_credit(size)
        if flags & frames.END_STREAM:
            if stream.partial is not None and stream.failure is None:
                self.fail(stream, StatusError(Status.INTERNAL, "stream ended inside a message"))
            stream.ended = True
            self.owner.end_of_stream(stream)
        self.touched.append(stream)
        if len(stream.inbox) > MESSAGES_AT_ONCE or len(self.touched) > DATA_AT_ONCE:
            self.more = True

    def _unwanted_data(
        self, stream: DataStream | None, stream_id: int, data: bytes, position: int, stop: int, flags: int
    ) -> None:
        size = stop - position
        if stream is None:
            if self.is_idle(stream_id):
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "idle_stream", f"DATA on idle stream {stream_id}")
            self._connection_credit(size)
            self.owner.stream_error(stream_id, ErrorCode.STREAM_CLOSED, "")
            return
        self._connection_credit(size)
        if stream.ended:
            self.owner.stream_error(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
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

    def fail(self, stream: DataStream, failure: StatusError) -> None:
        """Let the reader have what came before, then `failure`; drop whatever else arrives."""
        self._assembler.drop(stream)
        stream.failure = failure
        self.touched.append(stream)

    def check_rest(self, stream: DataStream) -> None:
        """A reader is about to wait for the rest of a message: fail it when that is longer than the peer may send now."""
        failure = self._assembler.too_long_to_wait_for(stream)
        if failure is not None:
            self.fail(stream, failure)

    def accepts(self) -> None:
        """A client of this connection has shown who it is."""
        self.accepted = True
        self._unread_most = self.limits.max_unread_bytes
        self._give_connection_credit()

    @property
    def has_room(self) -> bool:
        """Whether the peer may send at all."""
        return self._recv_window > 0

    # Giving room back --------------------------------------------------------------------------------------------

    def take(self, stream: DataStream) -> list[bytes]:
        """Complete messages of a stream, MESSAGES_AT_ONCE at most; when its reader has read them all, their room goes back to the peer."""
        batch = stream.inbox
        if len(batch) > MESSAGES_AT_ONCE:
            stream.inbox = batch[MESSAGES_AT_ONCE:]
            return batch[:MESSAGES_AT_ONCE]
        if batch:
            stream.inbox = []
        if stream.unread:
            self._credit_stream(stream)
        return batch

    def _credit_stream(self, stream: DataStream) -> None:
        stream.credit += stream.unread
        self._unread -= stream.held
        stream.unread = stream.held = 0
        if stream.credit * 2 >= self.limits.stream_window_bytes and not stream.ended and stream.failure is None:
            # Half a window: one update for many messages, and the peer never runs dry while we read.
            self.out.append(frames.window_update(stream.stream_id, stream.credit))
            stream.recv_window += stream.credit
            stream.credit = 0
        self._give_connection_credit()

    def _connection_credit(self, size: int) -> None:
        """The connection's room is given back on receipt, so that one stream's reader cannot stall the others..."""
        self._credit += size
        self._give_connection_credit()

    def _give_connection_credit(self) -> None:
        """...unless all of them together leave too much unread."""
        if self._credit * 2 >= self.limits.connection_window_bytes and self._unread <= self._unread_most:
            self.out.append(frames.window_update(0, self._credit))
            self._recv_window += self._credit
            self._credit = 0


def _without_padding(data: bytes, position: int, stop: int) -> tuple[int, int]:
    """Where the content of a padded DATA frame is. Raises ProtocolViolation."""
    if position == stop or position + 1 + data[position] > stop:
        raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding", "padding is longer than its frame")
    return position + 1, stop - data[position]
