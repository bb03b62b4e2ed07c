"""Builds HPACK header blocks without an encoder (RFC 7541), and their frames.

A server's few headers are entries and names of the static table, and literals that enter no table,
so no connection has any state. That must be announced in front of the first block, in a size that
the peer's offer allows (section 4.2); NO_TABLE fits every offer. Names are lower-case ASCII and
values free of CR, LF and NUL, which the caller sees to.
"""

from __future__ import annotations

from typing import Final

from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import FRAME_HEADER

NO_TABLE: Final = b"\x20"
"""Dynamic table size update to 0 (section 6.3)."""


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """Encode an HPACK integer behind the high bits `first` of an octet (section 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    octets = bytearray((first | limit,))
    value -= limit
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def text(octets: bytes) -> bytes:
    """Encode an HPACK string literal (section 5.2)."""
    return integer(len(octets), 7) + octets


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header field that enters no HPACK table (section 6.2.2)."""
    return b"\x00" + text(name) + text(value)


def named(index: int, value: bytes) -> bytes:
    """Encode a header field whose name is entry `index` of HPACK's static table."""
    return integer(index, 4) + text(value)


def block_frames(stream_id: int, block: bytes, frame_bytes: int, *, end_stream: bool) -> bytes:
    """Put a header block into HEADERS, and CONTINUATION if it is longer than a frame."""
    flags = frames.END_STREAM if end_stream else 0
    if len(block) <= frame_bytes:
        return FRAME_HEADER.pack(len(block) << 8 | frames.HEADERS, flags | frames.END_HEADERS, stream_id) + block
    pieces, kind = [], frames.HEADERS
    for start in range(0, len(block), frame_bytes):
        piece = block[start : start + frame_bytes]
        if start + frame_bytes >= len(block):
            flags |= frames.END_HEADERS
        pieces += [FRAME_HEADER.pack(len(piece) << 8 | kind, flags, stream_id), piece]
        kind, flags = frames.CONTINUATION, 0
    return b"".join(pieces)
