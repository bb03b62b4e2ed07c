"""Parses the frames of a WebSocket client (RFC 6455 section 5), without I/O.

    reader.feed(data)
    while (event := reader.next()) is not None: ...    # FrameError: say its code, and read no more

Extensions are never agreed upon, so reserved bits are errors. Invariants: `next` returns events or
raises FrameError, and then does so for ever; how a stream is split changes no event; a message that
gets too long is refused by a frame's header; held are at most one message, and the bytes fed and
not taken yet; one call of `next` takes one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

MAX_CONTROL_BYTES: Final = 125
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _RESERVED, _MASKED, _CONTROL = 0x80, 0x70, 0x80, 0x08
_MASK_BYTES: Final = 4


class CloseCode(IntEnum):
    """WebSocket close codes for a client's mistakes in its frames (section 7.4.1)."""

    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    TOO_BIG = 1009


class FrameError(Exception):
    """Raised when a client breaks the WebSocket protocol; `code` is the close code."""

    def __init__(self, message: str, code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class DataFrame:
    """A complete WebSocket message."""

    text: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Fragment:
    """A data frame of a WebSocket message that is not complete yet."""


@dataclass(frozen=True, slots=True)
class PingFrame:
    """A WebSocket ping, which is to be answered with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class PongFrame:
    """A WebSocket pong, the answer to a ping."""


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """A client's WebSocket close frame; `code` is None when it gave none."""

    code: int | None
    reason: str


Event: TypeAlias = DataFrame | Fragment | PingFrame | PongFrame | CloseFrame

_FRAGMENT: Final = Fragment()
_PONG_EVENT: Final = PongFrame()


class FrameReader:
    """Parses the bytes of one WebSocket client into frames, without I/O."""

    __slots__ = (
        "_at", "_buffer", "_closed", "_due", "_failed", "_final", "_mask", "_part", "_text", "max_message_bytes",
    )  # fmt: skip

    def __init__(self, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self._buffer = b""
        self._at = 0
        self._part: bytearray | None = None
        """The message that has begun."""
        self._due = 0
        """Of the data frame under way: payload that has not come."""
        self._mask = b""
        """...and its mask, turned so that it begins with the next byte."""
        self._final = False
        self._text = False
        self._closed = False
        self._failed: FrameError | None = None

    @property
    def held_bytes(self) -> int:
        """The bytes held of an unfinished message; at least 1 if there is one."""
        return 0 if self._part is None else len(self._part) or 1

    @property
    def unread_bytes(self) -> int:
        """The bytes that were fed and not parsed yet."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Add received bytes, which `next` parses."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def next(self) -> Event | None:
        """Parse the next frame; None when no whole frame is left. Raises FrameError."""
        if self._failed is not None:
            raise self._failed
        if self._closed:
            return None
        try:
            return self._go_on() if self._due else self._frame()
        except FrameError as error:
            self.give_up()
            self._failed = error
            raise

    def give_up(self) -> None:
        """Drop the unfinished message and all bytes that were not parsed yet."""
        self._part = None
        self._buffer = b""
        self._at = self._due = 0

    # -- one frame ---------------------------------------------------------------------------------

    def _frame(self) -> Event | None:
        buffer, at = self._buffer, self._at
        have = len(buffer) - at
        if have < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        opcode = first & 0x0F
        self._check_first(first, opcode)
        if not second & _MASKED:
            raise FrameError("a client sent a WebSocket frame without a mask")
        size = second & 0x7F
        if opcode & _CONTROL:
            if size > MAX_CONTROL_BYTES:
                raise FrameError("a WebSocket control frame has more than 125 bytes")
            header = 2
        elif size == 126:
            header = 4
            if have < header:
                return None
            size = int.from_bytes(buffer[at + 2 : at + 4], "big")
            if size < 126:
                raise FrameError("a WebSocket frame states its length in more bytes than it needs")
        elif size == 127:
            header = 10
            if have < header:
                return None
            size = int.from_bytes(buffer[at + 2 : at + 10], "big")
            if size < 1 << 16 or size >> 63:
                raise FrameError("a WebSocket frame states its length in more bytes than it needs")
        else:
            header = 2
        if opcode & _CONTROL:
            end = at + header + _MASK_BYTES + size
            if len(buffer) < end:
                return None
            self._at = end
            return self._control(opcode, _unmasked(buffer[end - size : end], buffer[at + 2 : at + 6]))
        held = 0 if self._part is None else len(self._part)
        if held + size > self.max_message_bytes:
            raise FrameError(f"a WebSocket message is longer than {self.max_message_bytes} bytes", CloseCode.TOO_BIG)
        if have < header + _MASK_BYTES:
            return None
        body = at + header + _MASK_BYTES
        mask = buffer[body - _MASK_BYTES : body]
        end = body + size
        if opcode:
            self._text = opcode == _TEXT
        if end <= len(buffer):
            self._at = end
            payload = _unmasked(buffer[body:end], mask)
            if self._part is None:
                if first & _FIN:
                    return DataFrame(self._text, payload)
                self._part = bytearray(payload)
                return _FRAGMENT
            self._part += payload
            return self._finish() if first & _FIN else _FRAGMENT
        if self._part is None:
            self._part = bytearray()
        self._at, self._due = body, size
        self._mask, self._final = mask, bool(first & _FIN)
        return self._go_on()

    def _go_on(self) -> Event | None:
        """Add the next payload bytes of an incomplete data frame to its message."""
        part = self._part
        assert part is not None
        piece = self._buffer[self._at : self._at + self._due]
        part += _unmasked(piece, self._mask)
        self._at += len(piece)
        self._due -= len(piece)
        if self._due:
            turn = len(piece) % _MASK_BYTES
            self._mask = self._mask[turn:] + self._mask[:turn]
            return None
        return self._finish() if self._final else _FRAGMENT

    def _finish(self) -> DataFrame:
        part = self._part
        assert part is not None
        self._part = None
        return DataFrame(self._text, bytes(part))

    def _control(self, opcode: int, payload: bytes) -> Event:
        if opcode == _PING:
            return PingFrame(payload)
        if opcode == _PONG:
            return _PONG_EVENT
        event = _close(payload)
        self._closed = True
        self._part = None
        return event

    def _check_first(self, first: int, opcode: int) -> None:
        if first & _RESERVED:
            raise FrameError("a WebSocket frame has reserved bits set, but no extension was agreed upon")
        if opcode & _CONTROL:
            if opcode > _PONG:
                raise FrameError(f"a WebSocket frame has the unknown opcode {opcode:#x}")
            if not first & _FIN:
                raise FrameError("a WebSocket control frame is fragmented")
        elif opcode > _BINARY:
            raise FrameError(f"a WebSocket frame has the unknown opcode {opcode:#x}")
        elif opcode == _CONTINUATION:
            if self._part is None:
                raise FrameError("a WebSocket continuation frame came without a message that it continues")
        elif self._part is not None:
            raise FrameError("a new WebSocket message began before the end of the last one")


def _unmasked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    if not size or mask == b"\0\0\0\0":
        return data
    pad = (mask * (size // _MASK_BYTES + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def _close(payload: bytes) -> CloseFrame:
    if not payload:
        return CloseFrame(None, "")
    if len(payload) == 1:
        raise FrameError("a WebSocket close frame has half a close code")
    code = int.from_bytes(payload[:2], "big")
    if not (1000 <= code <= 4999) or code in (1004, 1005, 1006, 1015) or 1016 <= code < 3000:
        raise FrameError(f"a WebSocket close frame has the invalid code {code}")
    try:
        return CloseFrame(code, payload[2:].decode())
    except UnicodeDecodeError:
        raise FrameError("the reason in a WebSocket close frame is not UTF-8", CloseCode.INVALID_TEXT) from None


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Build a server's close frame; the reason has at most 123 bytes of UTF-8."""
    payload = b"" if code is None else code.to_bytes(2, "big") + reason.encode()
    return bytes((_FIN | _CLOSE, len(payload))) + payload


def pong_frame(payload: bytes) -> bytes:
    """Build a server's pong frame with a ping's payload."""
    return bytes((_FIN | _PONG, len(payload))) + payload
