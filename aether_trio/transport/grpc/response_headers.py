"""Encodes a gRPC server's response headers and trailers as HPACK bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aether_trio.transport.grpc import message_encoding
from aether_trio.transport.http2.header_blocks import literal, named

_STATUS_200: Final = b"\x88"
_STATUS: Final = 8
_CONTENT_TYPE: Final = 31
"""Indexes into the static table (RFC 7541 appendix A)."""

OK: Final = _STATUS_200 + named(_CONTENT_TYPE, b"application/grpc+proto")
"""Of every response, and with a status behind it of one that has nothing else to say."""
RESPONSE: Final = OK + literal(b"grpc-accept-encoding", message_encoding.ACCEPT_ENCODING.encode())


def metadata(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode metadata (as `encode_metadata` returns it) as an HPACK block."""
    return b"".join([literal(name.encode("ascii"), value.encode("ascii")) for name, value in fields])


_STATUSES: Final = tuple(literal(b"grpc-status", b"%d" % status) for status in range(17))


def trailers(status: int, message: str | None) -> bytes:
    """Encode the trailers that end an RPC: its status and message."""
    block = _STATUSES[status]
    return block + literal(b"grpc-message", message_encoding.status_message(message)) if message else block


def refusal(http_status: int, status: int, message: str) -> bytes:
    """Encode the whole response to a gRPC request that is refused."""
    first = _STATUS_200 if http_status == 200 else named(_STATUS, b"%d" % http_status)
    accepts = literal(b"grpc-accept-encoding", message_encoding.ACCEPT_ENCODING.encode())
    return first + named(_CONTENT_TYPE, b"application/grpc") + accepts + trailers(status, message)


def plain_refusal(http_status: int, status: int, message: str) -> bytes:
    """Encode the response headers for a request that is not gRPC; a text follows."""
    return named(_STATUS, b"%d" % http_status) + named(_CONTENT_TYPE, b"text/plain") + trailers(status, message)
