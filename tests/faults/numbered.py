"""Numbered, timed payloads of 1 KiB that are found without decoding protobuf."""

from __future__ import annotations

import struct
import time

MARK = b"\xf0SEQ\xf1"
SIZE_BYTES = 1024
_HEAD = struct.Struct(">QQ")
_PADDING = b"." * (SIZE_BYTES - len(MARK) - _HEAD.size)


def payload(number: int) -> bytes:
    return MARK + _HEAD.pack(number, time.monotonic_ns()) + _PADDING


def find(downstream: bytes) -> tuple[int, int] | None:
    """Find number and sending time (CLOCK_MONOTONIC, ns) in a DownstreamMessage."""
    at = downstream.find(MARK)
    return _HEAD.unpack_from(downstream, at + len(MARK)) if at >= 0 else None
