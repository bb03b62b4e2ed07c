"""The server's side of one HTTP/1.1 connection; h11 does the protocol.

    request = await http.next_request()             # None: the client has gone
    body = await http.read_body()
    await http.respond(HTTPStatus.OK, [("Content-Type", "text/plain")], b"hello")

Invariants: what a client sends is bounded before it is kept, in bytes and time, the head also in
lines and the body in parts; each write of ours is bounded in time. A request whose body was not
read is the last of its connection. What cannot be served is BadRequest, whose status and text are
the answer.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

import h11
import trio

Headers = list[tuple[str, str]]

KIB: Final = 1024
MAX_HEAD_BYTES: Final = 16 * KIB
"""Request line and headers: browsers may send long cookies of other services on the host."""
MAX_HEAD_LINES: Final = 128
"""Browsers send twenty; h11 takes some microseconds for each."""
PARTS: Final = 4096
PART_BYTES: Final = 64
"""Bytes of a body for each further part: h11 takes as long for a chunk of a single byte."""
_AT_ONCE: Final = 1024
"""Bytes of a head that h11 is given at once: a read may bring thousands of lines."""

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

TEXT: Final[Headers] = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
]
"""Headers of an answer in plain text."""


@dataclass(frozen=True, slots=True)
class Http1Limits:
    """Limits on what an HTTP/1.1 client may send, and how slowly; bytes and seconds."""

    max_head_bytes: int = MAX_HEAD_BYTES
    max_head_lines: int = MAX_HEAD_LINES
    max_body_bytes: int = 0
    """0: requests with a body are refused."""
    head_timeout_s: float = 10.0
    """For the head of a connection's first request to arrive."""
    idle_timeout_s: float = 75.0
    """For the head of each further request to arrive."""
    body_timeout_s: float = 30.0
    """For a whole body to arrive, counted from its first read."""
    write_timeout_s: float = 10.0
    """For the client to take each write."""


class HttpStream(Protocol):
    """Protocol: the byte stream under an HTTP/1.1 connection (socket/byte_stream.py)."""

    async def receive(self) -> bytes:
        """Return received bytes, at least one; b"" at the end. Raises OSError."""

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""

    async def linger(self, seconds: float) -> None:
        """Shut down sending, then read and drop until the client ends or `seconds` passed."""


class BadRequest(Exception):
    """Raised for an HTTP request that cannot be served; status and text say why."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request's head; `headers` has lower-case names, repeated ones joined."""

    method: str
    target: str
    headers: dict[str, str]
    version: str = "1.1"
    fields: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)
    """The headers as they came, with names in lower case."""

    @property
    def path(self) -> str:
        """The request target up to its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str | None:
        """The request target's query, behind the first `?`; None when it has none."""
        _, mark, query = self.target.partition("?")
        return query if mark else None


class Http1Connection:
    """The server's side of one HTTP/1.1 connection, used by one task."""

    __slots__ = (
        "_before", "_body_bytes", "_ended", "_h11", "_left", "_limits", "_lines", "_most", "_no_body", "_parts", "_rest", "_server", "_stream",
        "_until",
        "served",
    )  # fmt: skip

    def __init__(
        self,
        stream: HttpStream,
        limits: Http1Limits,
        *,
        server: str | None = None,
        body_bytes: Callable[[Request], int] | None = None,
    ) -> None:
        """Wrap `stream`; `server` becomes the Server header of responses.

        `body_bytes` says of a request how long its body may be, instead of the limits.
        """
        self._body_bytes = body_bytes
        self._stream = stream
        self._limits = limits
        self._server = server
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_head_bytes)
        self._rest = b""
        """Read, and not given to h11 yet."""
        self._ended = False
        """Whether the client has ended its side, which h11 may not have been told yet."""
        self._lines = 0
        """Given to h11 since the last request."""
        self._before = b""
        """The last bytes of the head that were given to h11."""
        self._left = limits.max_body_bytes
        """Bytes that the body may still have."""
        self._most = limits.max_body_bytes
        self._parts = 0
        """The body's parts so far."""
        self._until: float | None = None
        """trio time at which the body must have come."""
        self._no_body = False
        """Whether the response to the request at hand has no body (HEAD; or by its status)."""
        self.served = 0

    # -- requests ----------------------------------------------------------------------------------

    async def next_request(self) -> Request | None:
        """Return the next request's head; None if none comes. Raises BadRequest, OSError."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        if self._h11.our_state is not h11.IDLE:
            return None
        limits = self._limits
        self._left, self._until, self._no_body = limits.max_body_bytes, None, False
        request: Request | None = None
        with trio.move_on_after(limits.idle_timeout_s if self.served else limits.head_timeout_s):
            try:
                request = await self._next_head()
            except h11.RemoteProtocolError as error:
                raise BadRequest(HTTPStatus(error.error_status_hint), str(error)) from None
        if request is not None:
            self.served += 1
        return request

    async def _next_head(self) -> Request | None:
        event = self._h11.next_event()
        while event is h11.NEED_DATA:
            await self._feed_head()
            event = self._h11.next_event()
        self._lines, self._before = 0, b""
        if not isinstance(event, h11.Request):
            return None
        self._check_length(event)
        request = _read(event)
        self._no_body = request.method == "HEAD"
        if request.version not in {"1.0", "1.1"}:
            text = f"HTTP/{request.version} is not supported; use HTTP/1.1"
            raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, text)
        if request.method == "CONNECT":  # h11 would end HTTP behind a response of success
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is not served: this server is no proxy")
        self._check_body(request)
        return request

    def _check_length(self, event: h11.Request) -> None:
        """Refuse a request head above `max_head_bytes`. Raises BadRequest."""
        # h11 bounds only incomplete heads; one read may bring a longer one that is complete.
        lines = [(event.method, event.target), *event.headers]
        if sum(len(left) + len(right) + len(b": \r\n") for left, right in lines) > self._limits.max_head_bytes:
            raise _head_too_long(f"request line and headers have more than {self._limits.max_head_bytes} bytes")

    def _check_body(self, request: Request) -> None:
        """Refuse a request whose head announces a too long body. Raises BadRequest."""
        if self._body_bytes is not None:
            self._left = self._body_bytes(request)
        self._most, self._parts = self._left, 0
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" not in request.headers and length.strip("0") == "":
            self._h11.next_event()  # its EndOfMessage
        elif not self._most:
            raise BadRequest(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requests with a body are not served; send this one without"
            )
        elif int(length) > self._most:
            raise self._body_too_long()

    async def _feed_head(self) -> None:
        """Give h11 received bytes of a request head. Raises BadRequest and OSError."""
        data = self._rest or await self._receive()
        piece, self._rest = data[:_AT_ONCE], data[_AT_ONCE:]
        self._lines += self._lines_of_head(piece)
        if self._lines > self._limits.max_head_lines:
            raise _head_too_long(f"request line and headers have more than {self._limits.max_head_lines} lines")
        self._h11.receive_data(piece)

    def _lines_of_head(self, piece: bytes) -> int:
        """Count the lines in a piece of a request head, up to its empty line."""
        known = len(self._before)
        seen = self._before + piece
        end = _END_OF_HEAD.search(seen)
        self._before = seen[-3:]
        return piece.count(b"\n", 0, len(piece) if end is None else end.end() - known)

    async def _receive(self) -> bytes:
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        data = await self._stream.receive()
        self._ended = not data
        return data

    # -- the body ----------------------------------------------------------------------------------

    @property
    def body_is_read(self) -> bool:
        """Whether the request's body, if it has one, has been read to its end."""
        return self._h11.their_state is not h11.SEND_BODY

    async def receive_body(self) -> bytes:
        """Return the next part of the request's body; b"" at its end. Raises BadRequest."""
        await trio.lowlevel.checkpoint()
        if self.body_is_read:
            return b""
        if self._until is None:
            self._until = trio.current_time() + self._limits.body_timeout_s
        try:
            with trio.fail_at(self._until):
                if self._h11.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                event = self._h11.next_event()
                while event is h11.NEED_DATA:
                    data, self._rest = self._rest or await self._receive(), b""
                    self._h11.receive_data(data)
                    event = self._h11.next_event()
        except trio.TooSlowError:
            text = f"the body did not arrive within {self._limits.body_timeout_s:g} seconds"
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, text) from None
        except h11.RemoteProtocolError as error:
            raise BadRequest(HTTPStatus(error.error_status_hint), str(error)) from None
        if not isinstance(event, h11.Data):
            return b""
        self._left -= len(event.data)
        if self._left < 0:
            raise self._body_too_long()
        self._parts += 1
        if self._parts > PARTS + (self._most - self._left) // PART_BYTES:
            text = f"the body comes in parts that are too small: send {PART_BYTES} bytes or more in each"
            raise BadRequest(HTTPStatus.BAD_REQUEST, text)
        return bytes(event.data)

    async def read_body(self) -> bytes:
        """Return the request's whole body. Raises BadRequest (too long) and OSError."""
        return b"".join([part async for part in self.body_parts()])

    async def body_parts(self) -> AsyncIterator[bytes]:
        """Yield the request body's parts as they arrive. Raises BadRequest and OSError."""
        while part := await self.receive_body():
            yield part

    def _body_too_long(self) -> BadRequest:
        text = f"the body has more than {self._most} bytes"
        return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)

    def drop_received_body(self) -> None:
        """Drop the request's body if it has come whole, so that the connection goes on.

        Nothing is waited for: behind the response to another request the connection ends.
        """
        try:
            while not self.body_is_read:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    if not self._rest:
                        return
                    self._h11.receive_data(self._rest)
                    self._rest = b""
        except h11.RemoteProtocolError:
            return

    async def wait_for_end(self, *, drop_input: bool = False) -> None:
        """Wait until the client ends; forever once it sent the next request ahead.

        With `drop_input` a request that was sent ahead is dropped, and the end is noticed.
        """
        while drop_input or not self._rest:
            try:
                data = await self._receive()
            except OSError:
                self._ended, data = True, b""
            if self._ended:
                return
            if not drop_input:
                self._rest = data
        await trio.sleep_forever()

    def leftover(self) -> bytes:
        """Return the bytes that the client sent behind its upgrade request."""
        return self._h11.trailing_data[0] + self._rest

    # -- the response ------------------------------------------------------------------------------

    @property
    def can_respond(self) -> bool:
        """Whether the response to the current request has not begun."""
        return self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    async def respond(self, status: int, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """Send a whole response, a body only if HTTP allows. Raises OSError, TooSlowError."""
        if not self.can_respond:
            return
        fields = [*headers]
        if status not in _WITHOUT_BODY:
            fields.append(("Content-Length", str(len(body))))
        events: list[h11.Event] = [self._head(status, fields, close=close or not self.body_is_read)]
        if body and not self._no_body:
            events.append(h11.Data(data=body))
        await self._send(*events, h11.EndOfMessage())

    async def respond_text(
        self, status: int, text: str, headers: Headers | None = None, *, close: bool = False
    ) -> None:
        """Send a response with a line of plain text. Raises OSError and TooSlowError."""
        await self.respond(status, [*TEXT, *(headers or [])], f"{text}\n".encode(), close=close)

    async def start_response(self, status: int, headers: Headers, *, close: bool = False) -> None:
        """Send a response's head; without a Content-Length its body is chunked."""
        await self._send(self._head(status, headers, close=close))

    async def send_body(self, data: bytes) -> None:
        """Send a part of the response's body. Raises OSError and TooSlowError."""
        if data and not self._no_body:
            await self._send(h11.Data(data=data))
        else:
            await trio.lowlevel.checkpoint()

    async def end_response(self) -> None:
        """End the response: its body is complete. Raises OSError and TooSlowError."""
        await self._send(h11.EndOfMessage())

    def _head(self, status: int, headers: Headers, *, close: bool) -> h11.Response:
        self._no_body = self._no_body or status in _WITHOUT_BODY
        fields = [*headers]
        if self._server is not None:
            fields.append(("Server", self._server))
        if close:
            fields.append(("Connection", "close"))
        reason = _PHRASES.get(status, "").encode()
        return h11.Response(status_code=int(status), headers=fields, reason=reason)

    async def _send(self, *events: h11.Event) -> None:
        try:
            data = b"".join(part for event in events if (part := self._h11.send(event)))
        except h11.LocalProtocolError as error:
            raise ValueError(f"cannot send this HTTP response: {error}") from error
        with trio.fail_after(self._limits.write_timeout_s):
            await self._stream.send_all(data)

    async def linger(self, seconds: float) -> None:
        """Give the client time to read the response before the socket is closed."""
        await self._stream.linger(seconds)


def _head_too_long(text: str) -> BadRequest:
    return BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)


def _read(event: h11.Request) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    method, target = event.method.decode("ascii"), event.target.decode("ascii", "replace")
    return Request(method, target, headers, event.http_version.decode("ascii"), tuple(event.headers))
