"""Response headers and trailers as HPACK blocks made without an encoder (RFC 7541), and the frames that carry them.

A gRPC server says almost the same few headers always, so they are bytes made once: one static-table entry, names from the
static table where it has them, and literals that enter no table. Nothing here keeps state, hence no connection has any.
The one thing that must be announced is that we use no dynamic table: a peer may offer less than the default of 4,096 bytes
and then has to hear, in front of the first block, a size that fits (section 4.2). NO_TABLE fits every offer.

Pure. Names are lower-case ASCII and values free of CR, LF and NUL: grpclib's `encode_metadata` and ourselves see to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aether_trio.transport.grpc import messages
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import FRAME_HEADER

NO_TABLE: Final = b"\x20"
"""Dynamic table size update to 0 (section 6.3)."""

_STATUS_200: Final = b"\x88"
_STATUS: Final = 8
_CONTENT_TYPE: Final = 31
"""Indexes into the static table (appendix A)."""


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """`value` in the low bits of an octet whose high bits are `first`, continued in further octets (section 5.1)."""
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


def _text(octets: bytes) -> bytes:
    return integer(len(octets), 7) + octets


def literal(name: bytes, value: bytes) -> bytes:
    """A field that enters no table (section 6.2.2)."""
    return b"\x00" + _text(name) + _text(value)


def _named(index: int, value: bytes) -> bytes:
    return integer(index, 4) + _text(value)


OK: Final = _STATUS_200 + _named(_CONTENT_TYPE, b"application/grpc+proto")
"""Of every response, and with a status behind it of one that has nothing else to say."""
RESPONSE: Final = OK + literal(b"grpc-accept-encoding", messages.ACCEPT_ENCODING.encode())


def metadata(fields: Iterable[tuple[str, str]]) -> bytes:
    """What `encode_metadata` returns."""
    return b"".join([literal(name.encode("ascii"), value.encode("ascii")) for name, value in fields])


_STATUSES: Final = tuple(literal(b"grpc-status", b"%d" % status) for status in range(17))


def trailers(status: int, message: str | None) -> bytes:
    """How an RPC ends."""
    block = _STATUSES[status]
    return block + literal(b"grpc-message", messages.status_message(message)) if message else block


def refusal(http_status: int, status: int, message: str) -> bytes:
    """The whole response to a request that cannot become an RPC."""
    first = _STATUS_200 if http_status == 200 else _named(_STATUS, b"%d" % http_status)
    accepts = literal(b"grpc-accept-encoding", messages.ACCEPT_ENCODING.encode())
    return first + _named(_CONTENT_TYPE, b"application/grpc") + accepts + trailers(status, message)


def plain_refusal(http_status: int, status: int, message: str) -> bytes:
    """The headers of the answer to a request that is no gRPC; a text follows."""
    return _named(_STATUS, b"%d" % http_status) + _named(_CONTENT_TYPE, b"text/plain") + trailers(status, message)


def block_frames(stream_id: int, block: bytes, frame_bytes: int, *, end_stream: bool) -> bytes:
    """HEADERS, and CONTINUATION where one frame of the peer's size does not hold it (RFC 9113 section 4.3)."""
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
