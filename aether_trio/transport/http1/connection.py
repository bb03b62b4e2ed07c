"""HTTP/1.1 requests, one after another, on one connection; h11 does the protocol.

Only what a browser needs to load a few files and to ask for an upgrade: requests have no bodies, responses have a length.
Limits: MAX_HEAD_BYTES and MAX_HEAD_LINES for a request's head, and deadlines, which are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from aether_trio.transport.http1.static_files import Headers
from aether_trio.transport.socket.byte_stream import ByteStream

MAX_HEAD_BYTES: Final = 16 * 1024
"""Request line and headers. Browsers stay far below it; cookies of other services on the same host are what is long."""
MAX_HEAD_LINES: Final = 128
"""Browsers send twenty. h11 takes some microseconds for each, as soon as the head is whole, however many there are."""
_AT_ONCE: Final = 1024
"""Bytes that h11 is given: a read may bring thousands of lines."""
_BODY: Final = frozenset(("content-length", "transfer-encoding"))


class BadRequest(Exception):
    """It cannot be served; `status` and the text say why. The connection is of no more use."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """Header names are in lower case; of repeated headers the values are joined with commas, as RFC 9110 has it."""

    method: str
    path: str
    query: str | None
    headers: dict[str, str]


class HttpConnection:
    """The server's side of one connection."""

    __slots__ = ("_h11", "_head_only", "_lines", "_rest", "_stream", "served")

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head_only = False
        self._rest = b""
        """Read, and not given to h11 yet."""
        self._lines = 0
        """Given to it since the last request."""
        self.served = 0

    async def next_request(self) -> Request | None:
        """The next request; None when the client has gone or is not to send another. Raises BadRequest and OSError."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._head_only = False
        if self._h11.our_state is not h11.IDLE:
            return None
        try:
            event = self._h11.next_event()
            while event is h11.NEED_DATA:
                await self._feed()
                event = self._h11.next_event()
            self._lines = 0
            if not isinstance(event, h11.Request):
                return None
            _check_length(event)
            request = _read(event)
            self._head_only = request.method == "HEAD"
            if not _BODY.isdisjoint(request.headers) and request.headers.get("content-length") != "0":
                raise BadRequest(HTTPStatus.BAD_REQUEST, "requests with a body are not served")
            self._h11.next_event()  # its EndOfMessage
        except h11.RemoteProtocolError as error:
            raise BadRequest(HTTPStatus(error.error_status_hint), str(error)) from None
        self.served += 1
        return request

    async def _feed(self) -> None:
        """Give h11 the next bytes. Raises BadRequest for a head of too many lines, and OSError."""
        data = self._rest or await self._stream.receive()
        piece, self._rest = data[:_AT_ONCE], data[_AT_ONCE:]
        self._lines += piece.count(b"\n")
        if self._lines > MAX_HEAD_LINES:
            raise _too_long(f"more than {MAX_HEAD_LINES} lines")
        self._h11.receive_data(piece)

    def leftover(self) -> bytes:
        """What the client sent behind its upgrade request."""
        return self._h11.trailing_data[0] + self._rest

    async def respond(self, status: HTTPStatus, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """Send a whole response, without the body when HEAD was asked. Raises OSError."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        fields = [*headers]
        if status is not HTTPStatus.NOT_MODIFIED:
            fields.append(("Content-Length", str(len(body))))
        if close:
            fields.append(("Connection", "close"))
        parts = [self._h11.send(h11.Response(status_code=status, headers=fields, reason=status.phrase.encode()))]
        if body and not self._head_only and status is not HTTPStatus.NOT_MODIFIED:
            parts.append(self._h11.send(h11.Data(data=body)))
        parts.append(self._h11.send(h11.EndOfMessage()))
        await self._stream.send_all(b"".join(part for part in parts if part))


def _check_length(event: h11.Request) -> None:
    """h11 bounds what is not whole yet; one read may bring a longer head that is. Raises BadRequest."""
    lines = [(event.method, event.target), *event.headers]
    if sum(len(left) + len(right) + len(b": \r\n") for left, right in lines) > MAX_HEAD_BYTES:
        raise _too_long(f"more than {MAX_HEAD_BYTES} bytes")


def _too_long(what: str) -> BadRequest:
    return BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"request line and headers have {what}")


def _read(event: h11.Request) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, mark, query = event.target.decode("ascii", "replace").partition("?")
    return Request(event.method.decode("ascii"), path, query if mark else None, headers)
