"""Decode received bytes of the binary framing to events.

Invariants: whatever the bytes, `receive` returns events or raises RemoteProtocolError; the same
stream gives the same events, however it is split; a declared length beyond the limit is refused
when its header is read, and nothing is allocated for a declared length. Between two calls at most
one incomplete frame is kept, and with `at_once` what came behind so many events. So a connection
holds at most `max_frame_bytes` and one read here, and twice that while a frame becomes events.

Which frame may come when is the business of FramedConnection.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from itertools import repeat
from typing import Final, NoReturn

from aether_trio.model.topics import MAX_TOPIC_BYTES
from aether_trio.wire.framing import events
from aether_trio.wire.framing.bodies import CHANNEL_OFFSET, malformed, reader_of, text_of
from aether_trio.wire.framing.constants import (
    DEFAULT_MAX_FRAME_BYTES,
    HEADER_BYTES,
    MAGIC,
    MAJOR,
    PREFACE,
    ErrorCode,
    FrameType,
)
from aether_trio.wire.framing.errors import RemoteProtocolError

__all__ = ["DecoderStatistics", "FrameDecoder"]

# Type and flags are read as one u16: the hot frames have no flags, so one comparison finds them.
_HEADER: Final = struct.Struct(">IH").unpack_from
_SEND: Final = struct.Struct(">qHHI").unpack_from

_PLAIN_SEND: Final = FrameType.SEND << 8
_PLAIN_DELIVER: Final = FrameType.DELIVER << 8
_PREFACE_BYTES: Final = len(PREFACE)


_KNOWN_TOPICS: Final = 64
"""Topics whose text is kept; with more topics each message costs 0.1 µs for decoding its topic."""


@dataclass(frozen=True, slots=True)
class DecoderStatistics:
    """What a decoder received since the connection began, and its incomplete frame."""

    frames: int
    bytes: int
    buffered_bytes: int


_NO_TOPICS: Final[dict[bytes, str]] = {}
"""Of all decoders that have met no topic; never written to."""


class FrameDecoder:
    """Decodes the frames of one direction of one framed connection.

    `max_frame_bytes` may be changed between two calls. `at_once`: the most events of one call. With
    `more` left, the next call takes b"".
    """

    __slots__ = (
        "_at_once",
        "_bytes",
        "_failed",
        "_frames",
        "_needed",
        "_partial",
        "_prefaced",
        "_topics",
        "max_frame_bytes",
        "more",
    )

    def __init__(
        self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES, *, preface: bool = True, at_once: int = sys.maxsize
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._at_once = at_once
        self.more = False
        """Bytes are kept that were not looked at."""
        self._partial = bytearray()
        self._needed = 0  # bytes of `_partial` before which nothing new can be said
        self._prefaced = not preface
        self._topics = _NO_TOPICS
        # Not the exception, which would keep its events.
        self._failed: tuple[ErrorCode, str] | None = None
        self._frames = 0
        self._bytes = 0

    def statistics(self) -> DecoderStatistics:
        return DecoderStatistics(self._frames, self._bytes, len(self._partial))

    @property
    def held_bytes(self) -> int:
        """Bytes kept of an incomplete frame."""
        return len(self._partial)

    def receive(self, data: bytes | bytearray | memoryview) -> list[events.Event]:
        """Return the events that the next bytes complete, in order.

        Raises RemoteProtocolError, with the events before the mistake; from then on every call
        does, without events.
        """
        if self._failed is not None:
            raise RemoteProtocolError(*self._failed)
        found: list[events.Event] = []
        partial = self._partial
        if partial:
            self._bytes -= len(partial)
            partial += data
            self._bytes += len(partial)
            if len(partial) < self._needed:
                return found
            whole = bytes(partial)
            partial.clear()
        else:
            # One copy pays: slices of bytes are three times cheaper than those of a memoryview.
            whole = bytes(data)
            self._bytes += len(whole)
        try:
            used = self._read(whole, found)
        except RemoteProtocolError as error:
            error.events = tuple(found)
            self._frames += len(found)
            self.fail(error.code, error.message)
            raise
        self._frames += len(found)
        if used < len(whole):
            partial += whole[used:] if used else whole
        return found

    def fail(self, code: ErrorCode, message: str) -> None:
        """Make every later call fail: the caller found a mistake of the peer."""
        self._failed = code, message
        self.more = False
        self._partial.clear()

    def finish(self) -> None:
        """Note the end of the stream. Raises RemoteProtocolError inside of a frame."""
        if self._partial or not self._prefaced:
            raise RemoteProtocolError(ErrorCode.TRUNCATED, f"the stream ended {len(self._partial)} bytes into a frame")

    def _preface(self, data: bytes) -> int:
        head = data[:_PREFACE_BYTES]
        if not head.startswith(MAGIC[: len(head)]):
            # At the first wrong byte: a client of another protocol may wait for an answer.
            raise RemoteProtocolError(ErrorCode.BAD_PREFACE, f"not the Aether framing: the stream begins with {head!r}")
        if len(head) < _PREFACE_BYTES:
            self._needed = len(head) + 1
            return 0
        if head[-1] != MAJOR:
            raise RemoteProtocolError(
                ErrorCode.UNSUPPORTED_VERSION, f"unsupported version {head[-1]} of the framing; this end speaks {MAJOR}"
            )
        self._prefaced = True
        return _PREFACE_BYTES

    def _read(self, data: bytes, found: list[events.Event]) -> int:
        """Append the events of all whole frames; return how many bytes they took."""
        at = 0
        self.more = False
        if not self._prefaced:
            at = self._preface(data)
            if not at:
                return 0
        size = len(data)
        limit = self.max_frame_bytes
        topics = self._topics
        append = found.append
        end = at + HEADER_BYTES
        for _ in repeat(None, self._at_once):
            if size - at < HEADER_BYTES:
                end = at + HEADER_BYTES
                break
            length, kind = _HEADER(data, at)
            if length > limit:
                self._too_large(length, kind >> 8)
            body = at + 6
            end = body + length
            if kind == _PLAIN_SEND:
                if length < 16:
                    malformed(f"SEND of {length} bytes")
                if end > size:
                    break
                seq, message_type, topic_size, extra_size = _SEND(data, body)
                body += 16
                extra = body + topic_size
                payload = extra + extra_size
                if seq < 1 or payload > end:
                    if seq < 1:
                        malformed(f"SEND: seq is {seq}; it must be at least 1")
                    malformed(f"SEND {seq}: {topic_size} + {extra_size} bytes of topic and extra in {length - 16}")
                raw = data[body:extra]
                topic = topics.get(raw)
                if topic is None:
                    topic = self._new_topic(raw)
                    topics = self._topics
                append(events.Send(seq, topic, data[payload:end], message_type, data[extra:payload]))
            elif kind == _PLAIN_DELIVER:
                if length < 12:
                    malformed(f"DELIVER of {length} bytes")
                if end > size:
                    break
                channel, offset = CHANNEL_OFFSET(data, body)
                if offset < 1:
                    malformed(f"DELIVER: offset is {offset}; it must be at least 1")
                append(events.Deliver(channel, offset, data[body + 12 : end]))
            else:
                reader = reader_of(length, kind)
                if end > size:
                    break
                append(reader(data[body:end], kind & 0xFF) if reader else events.Skipped(kind >> 8, length))
            at = end
        else:
            self.more = at < size
            end = at
        self._needed = end - at
        return at

    def _new_topic(self, raw: bytes) -> str:
        # Longer topics are well-formed here; the gateway NACKs them.
        topic = text_of(raw, 0xFFFF, "a topic")
        if len(raw) <= MAX_TOPIC_BYTES:
            if not 0 < len(self._topics) < _KNOWN_TOPICS:
                self._topics = {}
            self._topics[raw] = topic
        return topic

    def _too_large(self, length: int, kind: int) -> NoReturn:
        raise RemoteProtocolError(
            ErrorCode.FRAME_TOO_LARGE,
            f"a frame of type {kind:#04x} with {length} bytes; {self.max_frame_bytes} are allowed",
        )
