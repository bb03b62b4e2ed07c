"""Checks PING, PRIORITY, RST_STREAM and GOAWAY frames of HTTP/2 without h2."""

from __future__ import annotations

from aether_trio.transport.http2.frames import HEADER_BYTES, STREAM_MASK, UINT32, frame_size_error, protocol_error


def check_ping(stream_id: int, frame: bytes) -> None:
    if len(frame) != HEADER_BYTES + 8:
        raise frame_size_error("a PING frame does not have 8 bytes")
    if stream_id:
        raise protocol_error("ping", "a PING frame is not on stream 0")


def check_priority(stream_id: int, frame: bytes) -> None:
    if not stream_id:
        raise protocol_error("priority", "a PRIORITY frame is on stream 0")
    if len(frame) != HEADER_BYTES + 5:
        raise frame_size_error("a PRIORITY frame does not have 5 bytes")
    if UINT32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_MASK == stream_id:
        raise protocol_error("priority", "a PRIORITY frame makes its stream depend on itself")


def parse_reset(stream_id: int, frame: bytes) -> int:
    """Return the error code of an RST_STREAM frame. Raises Http2Violation."""
    if len(frame) != HEADER_BYTES + 4:
        raise frame_size_error("a RST_STREAM frame does not have 4 bytes")
    if not stream_id:
        raise protocol_error("reset", "a RST_STREAM frame is on stream 0")
    code: int = UINT32.unpack_from(frame, HEADER_BYTES)[0]
    return code


def parse_goaway(stream_id: int, frame: bytes) -> tuple[int, int, str]:
    """Return (last stream id, error code, debug text) of a GOAWAY frame."""
    if stream_id or len(frame) < HEADER_BYTES + 8:
        raise frame_size_error("a GOAWAY frame is shorter than 8 bytes or not on stream 0")
    last = UINT32.unpack_from(frame, HEADER_BYTES)[0] & STREAM_MASK
    code = UINT32.unpack_from(frame, HEADER_BYTES + 4)[0]
    return last, code, frame[HEADER_BYTES + 8 :].decode("utf-8", "replace")
