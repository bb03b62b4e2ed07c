"""The ops port: `/healthz`, `/readyz`, `/metrics`, `/v1/tail` and what is done to a dead letter,
over h11 on trio.

A small HTTP/1.1 server on purpose. It takes GET and HEAD (and POST for a dead letter), reads no
bodies, and is bounded everywhere: connections, header bytes, the time for a request to arrive and
for each write to be taken. An answer is never worth a gateway, so whatever goes wrong in one
connection ends that connection and nothing else.

`/v1/tail` streams a topic's messages as JSON lines and shows payloads, so it is served only to a
loopback address in development mode, or to whoever brings `ops.tail_token`. `POST
/v1/dlq/TASK_ID/resolve?by=NAME&notes=TEXT` says that a dead letter has been seen to; it is taken
from the same people, and needs a header of its own, which a web page of somebody else cannot send.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import structlog
import trio

from aether_trio.config import OpsSettings, is_loopback
from aether_trio.model.errors import AetherError
from aether_trio.model.topics import parse_topic
from aether_trio.storage.base import StorageUnavailable
from aether_trio.telemetry.health import GatewayHealth
from aether_trio.telemetry.metrics import Metrics
from aether_trio.telemetry.tail import tail_line

TailSource = Callable[[str, int | None], AsyncGenerator[tuple[int, int, bytes], None]]
"""`tail(topic, from_offset)` yields (offset, timestamp in Unix ms, encoded DownstreamMessage),
live, until closed.

`from_offset` is the first offset wanted; None means only what comes from now on.
"""

ResolveLetter = Callable[[str, str, str], Awaitable[bool]]
"""`resolve(task_id, by, notes)`: whether there was such an open letter. Raises StorageUnavailable.
"""

OPS_SERVER: Final = b"aether-trio-ops"
"""The Server header, by which `aether tail` knows an ops port."""
ASKED_BY: Final = "x-aether-asked-by"
"""The header of a request that changes something."""
_READ_BYTES: Final = 16 * 1024
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
class _Stream:
    """A tail to be streamed: (topic, first offset or None)."""

    topic: str
    from_offset: int | None


@dataclass(frozen=True, slots=True)
class _Resolve:
    """A dead letter that somebody has seen to."""

    task_id: str
    by: str
    notes: str


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = _Answer.text(status, text)


class OpsServer:
    """Answers requests about one gateway.

    `tail` and `resolve` are None where there is nothing of the kind.
    """

    def __init__(
        self,
        settings: OpsSettings,
        *,
        health: GatewayHealth,
        metrics: Metrics,
        tail: TailSource | None = None,
        resolve: ResolveLetter | None = None,
        dev: bool = False,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._health = health
        self._metrics = metrics
        self._tail = tail
        self._dev = dev
        self._connections = 0

    # -- what is answered

    def answer(self, target: str, headers: dict[str, str]) -> _Answer | _Stream:
        """The answer to a GET. Raises _Refused."""
        url = urlsplit(target)
        match url.path:
            case "/healthz":
                return _Answer.text(200, "ok")
            case "/readyz":
                return self._readyz()
            case "/metrics":
                content_type, body = self._metrics.render()
                return _Answer(200, content_type, body)
            case "/v1/tail":
                return self._tail_request(parse_qs(url.query), headers)
            case _:
                raise _Refused(404, "nothing here; there are /healthz, /readyz, /metrics and /v1/tail?topic=TOPIC")

    def _readyz(self) -> _Answer:
        readiness = self._health.readiness()
        body = json.dumps({"ready": readiness.ready, "phase": readiness.phase, "problems": dict(readiness.problems)})
        return _Answer(200 if readiness.ready else 503, _JSON, body.encode() + b"\n")

    def _tail_request(self, query: dict[str, list[str]], headers: dict[str, str]) -> _Stream:
        if self._tail is None or not self._settings.tail:
            raise _Refused(404, "this gateway does not serve tails (ops.tail is off)")
        self._may("tail", "tail shows payloads", headers)
        try:
            topic = str(parse_topic(query["topic"][-1]).text)
        except KeyError:
            raise _Refused(400, "say which topic: /v1/tail?topic=ag::default::echo::1") from None
        except AetherError as exc:
            raise _Refused(400, exc.message) from None
        start = query.get("from", ["now"])[-1]
        if start == "now":
            return _Stream(topic, None)
        if not (start.isascii() and start.isdigit()) or len(start) > 18:
            raise _Refused(400, "from must be an offset (0 is the oldest message) or now")
        return _Stream(topic, int(start))

    def change(self, target: str, headers: dict[str, str]) -> _Resolve:
        """What a POST wants. Raises _Refused."""
        url = urlsplit(target)
        match url.path.split("/"):
            case ["", "v1", "dlq", task_id, "resolve"] if task_id and self._resolve is not None:
                self._may("dlq", "a dead letter is not everybody's", headers)
                if not headers.get(ASKED_BY):
                    raise _Refused(403, f"a request that changes something needs the header {ASKED_BY}")
                query = parse_qs(url.query)
                by = query.get("by", [""])[-1]
                if not by:
                    raise _Refused(400, "say who has seen to it: ?by=NAME")
                return _Resolve(unquote(task_id), by, query.get("notes", [""])[-1])
            case _:
                raise _Refused(405, "only GET and HEAD, and POST for /v1/dlq/TASK_ID/resolve")

    async def resolve(self, request: _Resolve) -> _Answer:
        """Carry it out."""
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
                raise _Refused(401, f"{what} needs the header Authorization: Bearer with the value of ops.tail_token")
            return
        if not (self._dev and is_loopback(self._settings.host)):
            raise _Refused(403, f"{why}: set ops.tail_token, or run in development mode on loopback")
        # A web page may make the browser of this machine ask, under a name that it has pointed at
        # 127.0.0.1.
        host = urlsplit("//" + headers.get("host", "localhost")).hostname or ""
        if not is_loopback(host):
            raise _Refused(403, "ask by a loopback address")

    # -- how it is served

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends. Does not raise."""
        if self._connections >= self._settings.max_connections:
            await stream.aclose()
            return
        self._connections += 1
        try:
            async with stream:
                await _Connection(self, self._settings, stream).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, h11.RemoteProtocolError):
            pass  # the peer's doing, and nobody is left to tell
        except Exception:
            _log.exception("an ops request failed")
        finally:
            self._connections -= 1

    def open_tail(self, request: _Stream) -> AsyncGenerator[tuple[int, int, bytes], None]:
        assert self._tail is not None
        return self._tail(request.topic, request.from_offset)


class _Connection:
    """One HTTP/1.1 connection: requests in turn, each with its answer."""

    def __init__(self, server: OpsServer, settings: OpsSettings, stream: trio.abc.Stream) -> None:
        self._server = server
        self._settings = settings
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=settings.max_header_bytes)

    async def run(self) -> None:
        first = True
        while True:
            wait_s = self._settings.request_timeout_s if first else self._settings.idle_timeout_s
            first = False
            with trio.move_on_after(wait_s) as waited:
                try:
                    request = await self._next_event()
                except h11.RemoteProtocolError as exc:
                    await self._send_answer(
                        _Answer.text(exc.error_status_hint, "that is not an HTTP/1.1 request"), close=True
                    )
                    return
            if waited.cancelled_caught or not isinstance(request, h11.Request):
                return
            await self._respond(request)
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def _respond(self, request: h11.Request) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        if not isinstance(await self._next_event_in_time(), h11.EndOfMessage):
            await self._send_answer(_Answer.text(413, "requests have no body here"), close=True)
            return
        if request.http_version not in {b"1.0", b"1.1"}:
            await self._send_answer(
                _Answer.text(505, "this port speaks HTTP/1.1; gRPC is on the other one"), close=True
            )
            return
        head = request.method == b"HEAD"
        try:
            target = request.target.decode("latin-1")
            answer: _Answer | _Stream
            if head or request.method == b"GET":
                answer = self._server.answer(target, headers)
            elif request.method == b"POST":
                answer = await self._server.resolve(self._server.change(target, headers))
            else:
                raise _Refused(405, "only GET and HEAD")
        except _Refused as refused:
            answer = refused.answer
        if isinstance(answer, _Answer):
            await self._send_answer(answer, head=head)
        elif head:
            await self._send_answer(_Answer(200, "application/x-ndjson", b""), head=True)
        else:
            await self._send_tail(answer)

    async def _next_event(self) -> Any:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))

    async def _next_event_in_time(self) -> Any:
        with trio.fail_after(self._settings.request_timeout_s):
            return await self._next_event()

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._h11.send(event) or b"" for event in events)
        with trio.fail_after(self._settings.request_timeout_s):
            await self._stream.send_all(data)

    async def _send_answer(self, answer: _Answer, *, head: bool = False, close: bool = False) -> None:
        headers = [
            (b"server", OPS_SERVER),
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if close:
            headers.append((b"connection", b"close"))
        events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers)]
        if not head:
            events.append(h11.Data(data=answer.body))
        await self._send(*events, h11.EndOfMessage())

    async def _send_tail(self, request: _Stream) -> None:
        """Stream messages until the reader leaves.

        A reader too slow to take one write in time is cut off.
        """
        headers = [
            (b"server", OPS_SERVER),
            (b"content-type", b"application/x-ndjson"),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        async with aclosing(self._server.open_tail(request)) as source:
            await self._send(h11.Response(status_code=200, headers=headers))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_reader_leaves, nursery.cancel_scope)
                async for offset, timestamp_ms, message in source:
                    await self._send(h11.Data(data=tail_line(request.topic, offset, timestamp_ms, message)))
                await self._send(h11.EndOfMessage())
                nursery.cancel_scope.cancel()

    async def _until_reader_leaves(self, scope: trio.CancelScope) -> None:
        try:
            while await self._stream.receive_some(_READ_BYTES):
                # Pipelined requests after a tail are not answered: the answer says connection:
                # close.
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


async def serve_ops(
    settings: OpsSettings,
    *,
    health: GatewayHealth,
    metrics: Metrics,
    tail: TailSource | None = None,
    resolve: ResolveLetter | None = None,
    dev: bool = False,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the ops port until cancelled; `task_status.started` gets its "HOST:PORT".

    Raises OSError when it is taken.
    """
    server = OpsServer(settings, health=health, metrics=metrics, tail=tail, resolve=resolve, dev=dev)
    listeners = await trio.open_tcp_listeners(settings.port, host=settings.host)
    if settings.port == 0:
        # Several address families would each get another free port; one address is what the ready
        # line can say.
        for extra in listeners[1:]:
            await extra.aclose()
        listeners = listeners[:1]
    host, port = listeners[0].socket.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.handle, listeners)
        task_status.started(address)
