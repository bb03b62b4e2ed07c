"""The data plane of an HTTP/2 connection: DATA and WINDOW_UPDATE as pure arithmetic, without h2.

h2 spends about 30 µs on a DATA event and a routed message may cost little more than that altogether. So the received
bytes are scanned here: DATA becomes batches of gRPC messages under our own windows, WINDOW_UPDATE opens the peer's, and
every other frame goes to `Owner.control` untouched, in its place, which drives h2. h2 hears of DATA only when it ends a
stream, because its state machine must move.

Sans-I/O, and the same for both sides: bytes in by `receive`, bytes out by `out`. Invariants:
* a length prefix is compared with its limit before anything of what it announces is kept;
* bytes count against a window until they were *read*; a reader that waits reads a message's parts as they come;
* a ProtocolViolation ends the connection, `Owner.stream_error` ends one stream, and nothing else is ever raised;
* frames leave in the order they were put into `out`, and DATA never exceeds a window or the peer's frame size.
"""

from __future__ import annotations

from typing import Protocol

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc import budgets, frames, messages
from aether_trio.transport.grpc.budgets import Budgets
from aether_trio.transport.grpc.frames import (
    FRAME_HEADER,
    HEADER_BYTES,
    LARGEST_WINDOW_BYTES,
    STREAM_MASK,
    UINT32,
    ErrorCode,
    ProtocolViolation,
)
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.messages import PREFIX, PREFIX_BYTES


class DataStream:
    """What the data plane keeps of one open stream. Its owner subclasses it and adds the rest."""

    __slots__ = (
        "credit",
        "encoding",
        "ended",
        "failure",
        "inbox",
        "partial",
        "partial_need",
        "pending",
        "reading",
        "recv_window",
        "send_window",
        "stream_id",
        "unread",
    )

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.inbox: list[bytes] = []
        """Complete messages that nobody has taken yet."""
        self.partial: bytearray | None = None
        """The beginning of a message, prefix included."""
        self.partial_need = 0
        """Prefix and message together, once the prefix is complete."""
        self.encoding = "identity"
        self.recv_window = 0
        self.send_window = 0
        self.unread = 0
        """Bytes that count against our window and are not read."""
        self.credit = 0
        """Bytes read whose room the peer has not been given back."""
        self.pending: memoryview | None = None
        """Bytes to send that found no window."""
        self.reading = False
        """A reader waits: what arrives counts as read."""
        self.ended = False
        """The peer has ended its side."""
        self.failure: StatusError | None = None
        """Raised to the reader after what is in the inbox; further DATA is dropped."""


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


class DataPlane:
    """The windows, streams and buffers of one connection."""

    __slots__ = (
        "_assembling",
        "_block_bytes",
        "_block_frames",
        "_block_stream",
        "_credit",
        "_preface",
        "_recv_window",
        "_tail",
        "_unread",
        "blocked",
        "budgets",
        "data_frames_sent",
        "highest_stream_id",
        "limits",
        "out",
        "owner",
        "peer_frame_bytes",
        "peer_initial_window",
        "ready",
        "send_window",
        "settings_seen",
        "streams",
        "touched",
    )

    def __init__(self, owner: Owner, limits: GrpcLimits, budgets: Budgets, *, expect_preface: bool) -> None:
        self.owner = owner
        self.limits = limits
        self.budgets = budgets
        self.streams: dict[int, DataStream] = {}
        self.highest_stream_id = 0
        """Of the streams that were ever opened: above it a stream is idle, below it one that is not known is closed."""
        self.out: list[bytes | memoryview] = []
        self.touched: list[DataStream] = []
        """Streams with news for their reader since the owner last emptied this list; may hold one twice."""
        self.ready: dict[DataStream, None] = {}
        """Streams that want to send and may try; in order of their turn."""
        self.blocked: dict[DataStream, None] = {}
        """Streams that want to send and lack window."""
        self.send_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_initial_window = frames.DEFAULT_WINDOW_BYTES
        self.peer_frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.data_frames_sent = 0
        self.settings_seen = False
        self._preface = len(frames.PREFACE) if expect_preface else 0
        self._tail = b""
        self._recv_window = limits.connection_window_bytes
        self._credit = 0
        self._unread = 0
        self._assembling = 0
        self._block_stream = 0
        self._block_bytes = 0
        self._block_frames = 0

    # Streams -----------------------------------------------------------------------------------------------------

    def opening_window_update(self) -> bytes:
        """What raises the connection window from HTTP/2's default to ours; to be sent right behind our SETTINGS."""
        extra = self.limits.connection_window_bytes - frames.DEFAULT_WINDOW_BYTES
        return frames.window_update(0, extra) if extra else b""

    def open(self, stream: DataStream) -> None:
        stream.recv_window = self.limits.stream_window_bytes
        stream.send_window = self.peer_initial_window
        self.streams[stream.stream_id] = stream
        self.highest_stream_id = max(self.highest_stream_id, stream.stream_id)

    def close(self, stream: DataStream) -> None:
        """Forget a stream. What its reader has not taken is given back to the connection."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.ready.pop(stream, None)
        self.blocked.pop(stream, None)
        self._drop_partial(stream)
        self._unread -= stream.unread
        stream.unread = 0
        stream.pending = None
        self._give_connection_credit()

    # Receiving ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes as they came from the socket. Raises ProtocolViolation; then the connection is of no more use."""
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
        while end - position >= HEADER_BYTES:
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
                self._window_update(stream_id, UINT32.unpack_from(data, position + HEADER_BYTES)[0] & STREAM_MASK)
            else:
                if kind in (frames.HEADERS, frames.CONTINUATION):
                    self._header_block(kind, flags, stream_id, length)
                self.owner.control(kind, flags, stream_id, data[position:stop])
            position = stop
        if position < end:
            self._tail = data[position:]
        for stream in self.touched:
            if stream.reading and stream.unread and not stream.inbox:
                self._credit_stream(stream)

    def _take_preface(self, data: bytes) -> int:
        want = frames.PREFACE
        have = data[: len(want)]
        if have != want[: len(have)]:
            raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "bad_preface", "this port speaks gRPC over HTTP/2")
        if len(have) < len(want):
            return 0
        self._preface = 0
        return len(want)

    def _check_sequence(self, kind: int, stream_id: int) -> None:
        if not self.settings_seen:
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
            self._unwanted_data(stream, stream_id, size, flags)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._connection_credit(size)
            self.owner.stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "stream window overrun")
            return
        if flags & frames.PADDED:
            if position == stop or position + 1 + data[position] > stop:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "padding", "padding is longer than its frame")
            position, stop = position + 1, stop - data[position]
        if position < stop:
            self._assemble(stream, data, position, stop)
        elif not flags & frames.END_STREAM:
            self.budgets.spend(budgets.EMPTY_DATA_FLOOD)
        stream.unread += size
        self._unread += size
        self._connection_credit(size)
        if flags & frames.END_STREAM:
            if stream.partial is not None and stream.failure is None:
                self.fail(stream, StatusError(Status.INTERNAL, "stream ended inside a message"))
            stream.ended = True
            self.owner.end_of_stream(stream)
        self.touched.append(stream)

    def _unwanted_data(self, stream: DataStream | None, stream_id: int, size: int, flags: int) -> None:
        if stream is None:
            if self.is_idle(stream_id):
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "idle_stream", f"DATA on idle stream {stream_id}")
            self.budgets.spend(budgets.STRAY_DATA_FLOOD)
            self._connection_credit(size)
            self.owner.stream_error(stream_id, ErrorCode.STREAM_CLOSED, "")
            return
        self._connection_credit(size)
        if stream.ended:
            self.owner.stream_error(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
            return
        self.budgets.spend(budgets.STRAY_DATA_FLOOD)
        if flags & frames.END_STREAM:
            stream.ended = True
            self.owner.end_of_stream(stream)

    def _assemble(self, stream: DataStream, data: bytes, position: int, stop: int) -> None:
        if stream.partial is not None:
            position = self._continue_partial(stream, stream.partial, data, position, stop)
        inbox, largest = stream.inbox, self.limits.max_receive_message_bytes
        while position < stop and stream.failure is None:
            body = position + PREFIX_BYTES
            if body > stop:
                stream.partial, stream.partial_need = bytearray(data[position:stop]), 0
                return
            flag, length = PREFIX.unpack_from(data, position)
            end = body + length
            if end > stop or flag or length > largest:
                if not self._admit(stream, length):
                    return
                if end > stop:
                    stream.partial, stream.partial_need = bytearray(data[position:stop]), PREFIX_BYTES + length
                    return
                self._assembling -= length
                self._deliver(stream, flag, data[body:end])
            else:
                inbox.append(data[body:end])
            position = end

    def _continue_partial(self, stream: DataStream, partial: bytearray, data: bytes, position: int, stop: int) -> int:
        if not stream.partial_need:
            upto = min(position + PREFIX_BYTES - len(partial), stop)
            partial += data[position:upto]
            position = upto
            if len(partial) < PREFIX_BYTES:
                return position
            length = PREFIX.unpack_from(partial)[1]
            if not self._admit(stream, length):
                return position
            stream.partial_need = PREFIX_BYTES + length
        upto = min(position + stream.partial_need - len(partial), stop)
        partial += data[position:upto]
        if len(partial) == stream.partial_need:
            self._drop_partial(stream)
            self._deliver(stream, partial[0], bytes(memoryview(partial)[PREFIX_BYTES:]))
        return upto

    def _admit(self, stream: DataStream, length: int) -> bool:
        """Reserve room for a message that a prefix announces, or fail the stream."""
        if length > self.limits.max_receive_message_bytes:
            self.fail(stream, messages.too_large(length, self.limits.max_receive_message_bytes))
            return False
        if self._assembling + length > self.limits.max_assembling_bytes:
            self.fail(
                stream, StatusError(Status.RESOURCE_EXHAUSTED, "too many large messages at once on one connection")
            )
            return False
        self._assembling += length
        return True

    def _drop_partial(self, stream: DataStream) -> None:
        if stream.partial_need:
            self._assembling -= stream.partial_need - PREFIX_BYTES
        stream.partial, stream.partial_need = None, 0

    def _deliver(self, stream: DataStream, flag: int, message: bytes) -> None:
        if flag:
            try:
                if flag != 1:
                    raise StatusError(Status.INTERNAL, f"unknown message flags {flag:#x}")
                message = messages.decompress(message, stream.encoding, self.limits.max_receive_message_bytes)
            except StatusError as error:
                self.fail(stream, error)
                return
        stream.inbox.append(message)

    def fail(self, stream: DataStream, failure: StatusError) -> None:
        """Let the reader have what came before, then `failure`; drop whatever else arrives."""
        self._drop_partial(stream)
        stream.failure = failure
        self.touched.append(stream)

    # Giving room back --------------------------------------------------------------------------------------------

    def take(self, stream: DataStream) -> list[bytes]:
        """All complete messages of a stream; its reader has read them, so their room goes back to the peer."""
        batch = stream.inbox
        if batch:
            stream.inbox = []
        if stream.unread:
            self._credit_stream(stream)
        return batch

    def _credit_stream(self, stream: DataStream) -> None:
        stream.credit += stream.unread
        self._unread -= stream.unread
        stream.unread = 0
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
        if self._credit * 2 >= self.limits.connection_window_bytes and self._unread <= self.limits.max_unread_bytes:
            self.out.append(frames.window_update(0, self._credit))
            self._recv_window += self._credit
            self._credit = 0

    # Sending -----------------------------------------------------------------------------------------------------

    def room(self, stream: DataStream) -> int:
        """Bytes of DATA that both windows allow now; may be negative (RFC 9113 section 6.9.2)."""
        return min(self.send_window, stream.send_window)

    def send(self, stream: DataStream, batch: list[bytes]) -> None:
        """Frame messages into `out` as far as the windows reach; the rest waits in `stream.pending`."""
        pack = PREFIX.pack
        pieces: list[bytes | memoryview] = []
        size = PREFIX_BYTES * len(batch)
        for message in batch:
            length = len(message)
            size += length
            pieces.append(pack(0, length))
            pieces.append(message)
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
            return
        if stream.pending is not None:
            pieces.insert(0, stream.pending)
        stream.pending = memoryview(b"".join(pieces))
        self.send_pending(stream)

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

    def _window_update(self, stream_id: int, increment: int) -> None:
        self.budgets.spend(budgets.WINDOW_UPDATE_FLOOD, self.data_frames_sent)
        if not stream_id:
            self.send_window += increment
            if not increment:
                raise ProtocolViolation(ErrorCode.PROTOCOL_ERROR, "window_update", "WINDOW_UPDATE of 0")
            if self.send_window > LARGEST_WINDOW_BYTES:
                raise ProtocolViolation(ErrorCode.FLOW_CONTROL_ERROR, "window_overflow")
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
