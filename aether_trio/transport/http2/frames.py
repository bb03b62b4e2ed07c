"""Builds HTTP/2 frames as bytes and names their constants (RFC 9113).

Pure: builders check nothing. hyperframe's object per frame would cost more than the send.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
DEFAULT_WINDOW_BYTES: Final = 65_535
"""Every window's size before any SETTINGS (RFC 9113 section 6.9.2)."""
DEFAULT_FRAME_BYTES: Final = 16_384
LARGEST_WINDOW_BYTES: Final = 2**31 - 1
STREAM_MASK: Final = 2**31 - 1

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8


class Http2ErrorCode(enum.IntEnum):
    """HTTP/2's error codes in RST_STREAM and GOAWAY (RFC 9113 section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Http2Violation(Exception):
    """Raised when the peer breaks an HTTP/2 rule or limit; `debug` goes into GOAWAY."""

    def __init__(self, code: Http2ErrorCode, reason: str, debug: str = "") -> None:
        super().__init__(f"{code.name}: {debug or reason}")
        self.code = code
        self.reason = reason
        self.debug = debug or reason


def protocol_error(reason: str, debug: str) -> Http2Violation:
    return Http2Violation(Http2ErrorCode.PROTOCOL_ERROR, reason, debug)


def frame_size_error(debug: str) -> Http2Violation:
    return Http2Violation(Http2ErrorCode.FRAME_SIZE_ERROR, "frame_size", debug)


FRAME_HEADER: Final = struct.Struct(">IBI")
"""(length << 8 | type), flags, stream id with its reserved bit: one unpack instead of five."""

UINT32: Final = struct.Struct(">I")
_GOAWAY = struct.Struct(">IBIII")
_SETTING = struct.Struct(">HI")
_ONE_UINT32 = struct.Struct(">IBII")


def empty_end_of_stream(stream_id: int) -> bytes:
    """Build an empty DATA frame with END_STREAM."""
    return FRAME_HEADER.pack(0, END_STREAM, stream_id)


def window_update(stream_id: int, increment_bytes: int) -> bytes:
    """Build a WINDOW_UPDATE frame; stream 0 is the whole connection."""
    return _ONE_UINT32.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment_bytes)


def rst_stream(stream_id: int, code: Http2ErrorCode) -> bytes:
    return _ONE_UINT32.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def ping(opaque: bytes, *, ack: bool = False) -> bytes:
    return FRAME_HEADER.pack(8 << 8 | PING, ACK if ack else 0, 0) + opaque


def goaway(last_stream_id: int, code: Http2ErrorCode, debug: str = "") -> bytes:
    text = debug.encode("utf-8", "replace")[:256]
    return _GOAWAY.pack((8 + len(text)) << 8 | GOAWAY, 0, 0, last_stream_id, code) + text


def settings(values: Mapping[int, int]) -> bytes:
    body = b"".join(_SETTING.pack(identifier, value) for identifier, value in values.items())
    return FRAME_HEADER.pack(len(body) << 8 | SETTINGS, 0, 0) + body


def with_body(frame: bytes, body: bytes) -> bytes:
    """Return a frame with the header of `frame` and another body."""
    word, flags, stream_id = FRAME_HEADER.unpack_from(frame)
    return FRAME_HEADER.pack(len(body) << 8 | word & 0xFF, flags, stream_id) + body
