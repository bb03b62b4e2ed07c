"""Serves the operators' port: health, metrics, topic tails, dead letters.

It takes GET and HEAD (and POST for a dead letter), reads no bodies, and is bounded everywhere:
connections, header bytes, the time for a request to arrive and for each write to be taken. A
failure in one connection ends that connection and nothing else.

`/v1/tail` streams a topic's messages as JSON lines and shows payloads, so it is served only to a
loopback address in development mode, or to a client with `ops.tail_token`. `POST
/v1/dlq/TASK_ID/resolve?by=NAME&notes=TEXT` marks a dead letter as resolved. The same clients may do
that, and the request needs a header that a web page of another site cannot send.
"""

from __future__ import annotations

import hmac
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import structlog
import trio

from aether_trio.config import OpsSettings, is_loopback
from aether_trio.model.errors import RequestError
from aether_trio.model.topics import parse_topic
from aether_trio.storage.base import StorageUnavailable
from aether_trio.telemetry.health import GatewayHealth
from aether_trio.telemetry.metrics import Metrics
from aether_trio.telemetry.tail_line import tail_line
from aether_trio.transport.http1.connection import Headers, Http1Connection, Http1Limits, HttpStream, Request
from aether_trio.transport.http1.server import serve_requests
from aether_trio.transport.socket.accepted import Accepted, address_text
from aether_trio.transport.socket.byte_stream import ByteStream
from aether_trio.transport.socket.listener import Acceptor, TcpSettings, open_tcp_listeners
from aether_trio.wire.ops_port import ASKED_BY, OPS_SERVER

TailSource = Callable[[str, int | None, bool], AsyncGenerator[tuple[int, int, bytes], None]]
"""`tail(topic, from_offset, follow)` yields (offset, timestamp in Unix ms, encoded
DownstreamMessage), live, until closed.

`from_offset` is the first offset wanted; None means messages from now on. Without `follow` it ends
with the last message that is there.
"""

ResolveDeadLetter = Callable[[str, str, str], Awaitable[bool]]
"""`resolve(task_id, by, notes)`: whether that dead letter was open. Raises StorageUnavailable."""

_METHODS: Final = "method not allowed: the ops port takes GET and HEAD, and POST for /v1/dlq/TASK_ID/resolve"
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_log = structlog.get_logger("aether.ops")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    body: bytes

    @classmethod
    def text(cls, status: int, text: str) -> _Answer:
        return cls(status, _TEXT, text.encode() + b"\n")


@dataclass(frozen=True, slots=True)
class _ScrapeRequest:
    """A request for the metrics."""


@dataclass(frozen=True, slots=True)
class _TailRequest:
    """A request to stream a topic's messages, from an offset or (None) from now on."""

    topic: str
    from_offset: int | None
    follow: bool


@dataclass(frozen=True, slots=True)
class _ResolveRequest:
    """A request to mark a dead letter as resolved."""

    task_id: str
    by: str
    notes: str


class _RequestRefused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = _Answer.text(status, text)


class OpsServer:
    """Answers operators' HTTP requests; `tail` and `resolve` may be None."""

    def __init__(
        self,
        settings: OpsSettings,
        *,
        health: GatewayHealth,
        metrics: Metrics,
        tail: TailSource | None = None,
        resolve: ResolveDeadLetter | None = None,
        dev: bool = False,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._health = health
        self._metrics = metrics
        self._tail = tail
        self._dev = dev
        self._connections = 0
        self._limits = Http1Limits(
            max_head_bytes=settings.max_header_bytes,
            head_timeout_s=settings.request_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            write_timeout_s=settings.request_timeout_s,
        )

    # -- what is answered

    def answer(self, target: str, headers: dict[str, str]) -> _Answer | _TailRequest | _ScrapeRequest:
        """Answer a GET request by its path. Raises _RequestRefused."""
        url = _split(target)
        match url.path:
            case "/healthz":
                return _Answer.text(200, "ok")
            case "/readyz":
                return self._readyz()
            case "/metrics":
                return _ScrapeRequest()
            case "/v1/tail":
                return self._tail_request(parse_qs(url.query), headers)
            case _:
                raise _RequestRefused(
                    404, "unknown path; this port serves /healthz, /readyz, /metrics and /v1/tail?topic=TOPIC"
                )

    def _readyz(self) -> _Answer:
        readiness = self._health.readiness()
        body = json.dumps({"ready": readiness.ready, "phase": readiness.phase, "problems": dict(readiness.problems)})
        return _Answer(200 if readiness.ready else 503, _JSON, body.encode() + b"\n")

    def _tail_request(self, query: dict[str, list[str]], headers: dict[str, str]) -> _TailRequest:
        if self._tail is None or not self._settings.tail:
            raise _RequestRefused(404, "this gateway serves no topic tails (ops.tail is off)")
        self._may("tail", "tail shows payloads", headers)
        try:
            topic = str(parse_topic(query["topic"][-1]).text)
        except KeyError:
            raise _RequestRefused(400, "the topic is missing; ask for /v1/tail?topic=ag::default::echo::1") from None
        except RequestError as exc:
            raise _RequestRefused(400, exc.message) from None
        follow = query.get("follow", ["1"])[-1]
        if follow not in ("0", "1"):
            raise _RequestRefused(400, "the parameter follow is neither 0 nor 1")
        start = query.get("from", ["now"])[-1]
        if start == "now":
            return _TailRequest(topic, None, follow == "1")
        if not (start.isascii() and start.isdigit()) or len(start) > 18:
            raise _RequestRefused(400, "the parameter from is neither an offset (0 is the oldest message) nor now")
        return _TailRequest(topic, int(start), follow == "1")

    def change(self, target: str, headers: dict[str, str]) -> _ResolveRequest:
        """Read a POST request, which resolves a dead letter. Raises _RequestRefused."""
        url = _split(target)
        match url.path.split("/"):
            case ["", "v1", "dlq", task_id, "resolve"] if task_id and self._resolve is not None:
                self._may("dlq", "resolving a dead letter needs permission", headers)
                if not headers.get(ASKED_BY):
                    raise _RequestRefused(
                        403, f"the header {ASKED_BY} is missing; a request that changes something needs it"
                    )
                query = parse_qs(url.query)
                by = query.get("by", [""])[-1]
                if not by:
                    raise _RequestRefused(
                        400, "the name of the person who resolves the dead letter is missing; add ?by=NAME"
                    )
                notes = query.get("notes", [""])[-1]
                if "\0" in unquote(task_id) + by + notes:  # PostgreSQL's text has none
                    raise _RequestRefused(400, "the task id, the name and the notes may have no zero byte")
                return _ResolveRequest(unquote(task_id), by, notes)
            case _:
                raise _RequestRefused(405, _METHODS)

    async def resolve(self, request: _ResolveRequest) -> _Answer:
        """Mark the requested dead letter as resolved and return the HTTP answer."""
        assert self._resolve is not None
        try:
            found = await self._resolve(request.task_id, request.by, request.notes)
        except StorageUnavailable as exc:
            return _Answer.text(503, f"the storage does not answer: {exc}")
        return (
            _Answer.text(200, "resolved") if found else _Answer.text(404, f"{request.task_id} is no open dead letter")
        )

    def _may(self, what: str, why: str, headers: dict[str, str]) -> None:
        token = self._settings.tail_token
        if token is not None:
            offered = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(offered.encode(), token.encode()):
                raise _RequestRefused(
                    401, f"{what} needs the header Authorization: Bearer with the value of ops.tail_token"
                )
            return
        if not (self._dev and is_loopback(self._settings.host)):
            raise _RequestRefused(403, f"{why}: set ops.tail_token, or run in development mode on loopback")
        # A web page may make this machine's browser ask, by a name that it points at 127.0.0.1.
        host = _split("//" + headers.get("host", "localhost")).hostname or ""
        if not is_loopback(host):
            raise _RequestRefused(403, "the header Host is no loopback address; ask for 127.0.0.1 or localhost")

    # -- how it is served

    async def handle(self, stream: HttpStream) -> None:
        """Serve one connection to its end; close it if there are too many. Never raises."""
        if self._connections >= self._settings.max_connections:
            await trio.lowlevel.checkpoint()
            return
        self._connections += 1
        try:
            await serve_requests(Http1Connection(stream, self._limits, server=OPS_SERVER), self._respond)
        except* (OSError, trio.TooSlowError):
            pass  # the client has gone, or does not read
        except* Exception:
            _log.exception("a request to the ops port failed unexpectedly")
        finally:
            self._connections -= 1

    async def serve(self, sock: socket.socket, address: Any) -> None:
        """Serve one accepted socket, as a handler of an Acceptor."""
        await self.handle(ByteStream(Accepted(sock, address)))

    async def _respond(self, http: Http1Connection, request: Request) -> bool:
        try:
            answer: _Answer | _TailRequest | _ScrapeRequest
            if request.method in ("GET", "HEAD"):
                answer = self.answer(request.target, request.headers)
            elif request.method == "POST":
                answer = await self.resolve(self.change(request.target, request.headers))
            else:
                raise _RequestRefused(405, _METHODS)
        except _RequestRefused as refused:
            answer = refused.answer
        if isinstance(answer, _ScrapeRequest):
            content_type, body = await self._metrics.scrape()
            answer = _Answer(200, content_type, body)
        if isinstance(answer, _TailRequest):
            await self._send_tail(http, request, answer)
            return False
        await http.respond(answer.status, _headers(answer.content_type), answer.body)
        return True

    async def _send_tail(self, http: Http1Connection, request: Request, tail: _TailRequest) -> None:
        """Stream a topic's messages as JSON lines until the client leaves or is too slow."""
        assert self._tail is not None
        await http.start_response(HTTPStatus.OK, _headers("application/x-ndjson"), close=True)
        if request.method == "HEAD":
            await http.end_response()
            return
        async with (
            aclosing(self._tail(tail.topic, tail.from_offset, tail.follow)) as source,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_until_client_leaves, http, nursery.cancel_scope)
            async for offset, timestamp_ms, message in source:
                await http.send_body(tail_line(tail.topic, offset, timestamp_ms, message))
            await http.end_response()
            nursery.cancel_scope.cancel()


def _split(url: str) -> SplitResult:
    """Return the parts of a URL. Raises _RequestRefused."""
    try:
        return urlsplit(url)
    except ValueError as exc:
        raise _RequestRefused(400, f"the address or the header Host cannot be read: {exc}") from None


def _headers(content_type: str) -> Headers:
    return [("Content-Type", content_type), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]


async def _until_client_leaves(http: Http1Connection, scope: trio.CancelScope) -> None:
    await http.wait_for_end(drop_input=True)  # the tail is the last answer
    scope.cancel()


async def serve_ops(
    settings: OpsSettings,
    *,
    health: GatewayHealth,
    metrics: Metrics,
    tail: TailSource | None = None,
    resolve: ResolveDeadLetter | None = None,
    dev: bool = False,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the ops port until cancelled; start with its "HOST:PORT". Raises OSError."""
    server = OpsServer(settings, health=health, metrics=metrics, tail=tail, resolve=resolve, dev=dev)
    listeners = open_tcp_listeners(settings.host, settings.port)
    address = address_text(listeners[0].getsockname())
    async with trio.open_nursery() as nursery:
        task_status.started(address)
        await Acceptor(nursery, TcpSettings()).serve(listeners, server.serve)
