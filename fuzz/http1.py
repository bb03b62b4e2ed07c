"""Fuzz HTTP/1.1 requests in front of a WebSocket, and its upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from aether_trio.transport.http1.connection import MAX_HEAD_BYTES, BadRequest, Http1Connection, Http1Limits
from aether_trio.transport.socket.byte_stream import RECEIVE_BYTES
from aether_trio.transport.websocket.handshake import UpgradeRefused, negotiate
from aether_trio.transport.websocket.origins import OriginPolicy
from fuzz.feeding import choices, run, split

_ORIGINS: Final = OriginPolicy(("https://app.example.com",))
_REQUESTS: Final = 50
"""Answered in one input."""


class Stream:
    """A byte stream with prepared reads and an end, which takes all writes."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    async def receive(self) -> bytes:
        return next(self._parts, b"")

    async def send_all(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 ")

    async def linger(self, seconds: float) -> None:
        """See ByteStream."""


async def serve(parts: Iterator[bytes]) -> list[Any]:
    """Serve the stream; return each request's kind and how the connection ended."""
    stream: Any = Stream(parts)
    http = Http1Connection(stream, Http1Limits())
    seen: list[Any] = []
    for _ in range(_REQUESTS):
        try:
            request = await http.next_request()
        except BadRequest as error:
            assert 400 <= error.status < 600
            await http.respond(error.status, [], str(error).encode(), close=True)
            return [*seen, error.status]
        # h11 keeps what was read behind a request: the rest of one read, and a head that is not
        # whole.
        assert len(http._h11._receive_buffer) <= RECEIVE_BYTES + MAX_HEAD_BYTES
        if request is None:
            return [*seen, None]
        size = (
            len(request.method)
            + len(request.path)
            + sum(len(key) + len(value) for key, value in request.headers.items())
        )
        assert size <= MAX_HEAD_BYTES
        seen.append(request)
        try:
            upgrade = negotiate(request, _ORIGINS, secure=False, loopback=True)
        except UpgradeRefused as refused:
            await http.respond(refused.status, refused.headers, str(refused).encode())
        else:
            assert upgrade.response.startswith(b"HTTP/1.1 101 ")
            assert upgrade.response.count(b"\r\n\r\n") == 1
            return [*seen, upgrade.codec.subprotocol, http.leftover()[:0]]
    return seen


def check(data: bytes) -> None:
    """Check an input: a byte of choices, and the stream."""
    (step,), stream = choices(data, 1)
    found = run(serve(split(stream, step)))
    if step:
        whole = run(serve(split(stream, 0)))
        # A head that is too long is seen earlier when it comes in pieces.
        if HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE not in (*found, *whole):
            assert whole == found, f"split into {step}"


def seeds() -> Iterator[bytes]:
    upgrade = (
        b"GET /v1/connect HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Protocol: aether.v1.json\r\nOrigin: https://app.example.com\r\n\r\n"
    )
    streams = [
        upgrade + b"\x82\x80\0\0\0\0",
        b'GET / HTTP/1.1\r\nHost: x\r\n\r\nHEAD /client/aether.js HTTP/1.1\r\nHost: x\r\nIf-None-Match: "a"\r\n\r\n',
        upgrade.replace(b"/v1/connect", b"/v1/connect?key=1"),
        upgrade.replace(b"app.", b"evil."),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: \xff\r\nX: \t folded\r\n more\r\n\r\n",
        b"GET /" + b"a" * 500 + b" HTTP/1.1\r\nHost: x\r\n" + b"Cookie: a=b\r\n" * 50 + b"\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n",
    ]
    for stream in streams:
        yield b"\0" + stream
        yield b"\7" + stream
