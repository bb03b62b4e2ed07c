"""Detects a connection's protocol by its first bytes, and refuses in its language.

The clients of every transport speak first: HTTP/2's preface (RFC 9113 section 3.4), our framing's
magic (docs/wire.md), an HTTP/1.1 method. Until such a word is whole, what has come must be the
beginning of one, so MAX_WORD_BYTES bound what is waited for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aether_trio.model.errors import Status
from aether_trio.transport.http2 import frames
from aether_trio.wire.framing import encode_error
from aether_trio.wire.framing.constants import MAGIC, PREFACE

GRPC: Final = "grpc"
FRAMED: Final = "framed"
WEBSOCKET: Final = "websocket"

ALPN: Final = {FRAMED: "aether/1", WEBSOCKET: "http/1.1", GRPC: "h2"}
"""By our preference: browsers offer h2 too, but get http/1.1, as HTTP/2 here is only gRPC."""

_HTTP2: Final = b"PRI * HTTP/2.0"
_METHODS: Final = tuple(
    method + b" "
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE")
)
_WORDS: Final = (_HTTP2, MAGIC, *_METHODS)
MAX_WORD_BYTES: Final = max(map(len, _WORDS))

_TRANSPORT: Final = re.compile(
    b"(?P<%s>%s)|(?P<%s>%s)|(?P<%s>%s)"
    % (
        *(GRPC.encode(), re.escape(_HTTP2)),
        *(FRAMED.encode(), re.escape(MAGIC)),
        *(WEBSOCKET.encode(), b"|".join(_METHODS)),
    )
).match
_LIKE_HTTP: Final = re.compile(rb"[A-Z]{1,20} [^\r\n]* HTTP/1\.[01]").match

TLS_HANDSHAKE: Final = 0x16
"""The type of the record that a TLS client begins with (RFC 8446 section 5.1)."""

_NAMES: Final = {
    GRPC: "gRPC (HTTP/2 with prior knowledge)",
    FRAMED: "the aether binary framing",
    WEBSOCKET: "HTTP/1.1 with WebSocket",
}


def transport_of(head: bytes) -> str | None:
    """Return the transport that first bytes ask for; None if unknown or too few yet."""
    found = _TRANSPORT(head)
    return None if found is None else found.lastgroup


def may_become_one(head: bytes) -> bool:
    """Return whether more bytes can still make `head` a transport's first word."""
    return any(word.startswith(head) for word in _WORDS)


def speaks(transports: Sequence[str], *, tls: bool) -> str:
    """Say in a sentence which protocols a port with these transports speaks."""
    names = [_NAMES[transport] for transport in transports]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"this port speaks {listed}{', all over TLS' if tls and len(names) > 1 else ', over TLS' if tls else ''}"


def refusal(head: bytes, text: str) -> bytes:
    """Encode the refusal `text` in the protocol of a client's first bytes."""
    transport = transport_of(head)
    if transport == GRPC:
        # Without the SETTINGS that ought to come first: grpcio takes those for "connected", and a
        # GOAWAY behind them for a connection that has served its time. It then tries again without
        # a pause, 3,000 times a second; like this it waits.
        return frames.goaway(0, frames.Http2ErrorCode.HTTP_1_1_REQUIRED, text)
    if transport == FRAMED:
        return PREFACE + encode_error(Status.UNIMPLEMENTED, text)
    body = text.encode() + b"\n"
    if transport is None and not _LIKE_HTTP(head):
        return body
    return (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n" % len(body)
    ) + (b"" if head.startswith(b"HEAD ") else body)
