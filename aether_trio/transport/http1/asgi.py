"""Serves an ASGI 3 application over HTTP/1.1: the `http` and `lifespan` scopes.

    host = AsgiHost(app)
    async with host.running():                      # the application's lifespan
        await serve_requests(http, host.answer_on(client=("192.0.2.7", 1234)))

The application must run on trio (or through anyio or sniffio choose it). Invariants: a request is
read only as fast as the application asks for it; an exception of the application is logged and
answered with 500, or ends the connection when the response has begun.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import trio

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Request
from aether_trio.transport.http1.server import Answer

log = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}
_LIFESPAN_VERSIONS: Final = {"version": "3.0", "spec_version": "2.0"}
_DISCONNECT: Final = {"type": "http.disconnect"}


class LifespanFailed(Exception):
    """Raised with the ASGI application's own text when its startup or shutdown failed."""


class AsgiHost:
    """Runs one ASGI application under the path `root_path`: lifespan and requests."""

    def __init__(self, app: AsgiApplication, *, root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path
        self._state: dict[str, Any] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the ASGI application's lifespan around the block. Raises LifespanFailed."""
        lifespan = _Lifespan(self._app, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.run)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await lifespan.stop()
                nursery.cancel_scope.cancel()

    def answer_on(
        self, *, client: tuple[str, int] | None = None, server: tuple[str, int] | None = None, scheme: str = "http"
    ) -> Answer:
        """Return the request handler (an Answer) for a connection between these addresses."""

        async def answer(http: Http1Connection, request: Request) -> bool:
            scope = self._scope(request, client, server, scheme)
            return await _Exchange(http, request).run(self._app, scope)

        return answer

    def _scope(
        self, request: Request, client: tuple[str, int] | None, server: tuple[str, int] | None, scheme: str
    ) -> Scope:
        return {
            "type": "http",
            "asgi": dict(_VERSIONS),
            "http_version": request.version,
            "method": request.method,
            "scheme": scheme,
            "path": unquote(request.path),
            "raw_path": request.path.encode("ascii", "replace"),
            "query_string": (request.query or "").encode("ascii", "replace"),
            "root_path": self._root_path,
            "headers": list(request.fields),
            "client": client,
            "server": server,
            "state": dict(self._state),
        }


class _Exchange:
    """One HTTP request and the ASGI application's response to it."""

    def __init__(self, http: Http1Connection, request: Request) -> None:
        self._http = http
        self._head: tuple[int, list[tuple[str, str]]] | None = None
        self._begun = self._body_told = self._gone = False
        self._complete = trio.Event()
        self._refused: BadRequest | None = None
        self._is_head = request.method == "HEAD"

    async def run(self, app: AsgiApplication, scope: Scope) -> bool:
        """Call the ASGI application; return whether the connection can go on afterwards."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self._refused is not None and not self._begun:
                # The application may have let it through, or have stumbled over it.
                raise self._refused from None
            if not self._gone:
                log.error("the ASGI application failed at %s %s", scope["method"], scope["path"], exc_info=error)
        else:
            if not self._complete.is_set() and not self._gone:
                text = "the ASGI application ended without a complete response to %s %s"
                log.error(text, scope["method"], scope["path"])
        if self._complete.is_set():
            return True
        if not self._begun and not self._gone:
            await self._http.respond_text(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error", close=True)
        return False

    async def receive(self) -> Message:
        """Return the request body's parts as `http.request`, then `http.disconnect`."""
        if self._gone or self._complete.is_set():
            await trio.lowlevel.checkpoint()
            return dict(_DISCONNECT)
        if self._body_told:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_client, nursery.cancel_scope)
                await self._complete.wait()
                nursery.cancel_scope.cancel()
            return dict(_DISCONNECT)
        try:
            body = await self._http.receive_body()
        except BadRequest as error:
            self._refused = error
            raise
        except OSError:
            self._gone = True
            return dict(_DISCONNECT)
        self._body_told = self._http.body_is_read
        return {"type": "http.request", "body": body, "more_body": not self._body_told}

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        await self._http.wait_for_end()
        self._gone = True
        scope.cancel()

    async def send(self, message: Message) -> None:
        """Send the application's response event. Raises OSError when the client has gone."""
        if self._gone:
            await trio.lowlevel.checkpoint()
            raise ConnectionAbortedError("cannot send the response: the client has gone")
        kind = message["type"]
        if kind == "http.response.start" and self._head is None:
            headers = [(_text(name), _text(value)) for name, value in message.get("headers", ())]
            self._head = int(message["status"]), headers
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.body" and self._head is not None and not self._complete.is_set():
            try:
                await self._send_body(message.get("body", b""), more=message.get("more_body", False))
            except (OSError, trio.TooSlowError) as error:
                self._gone = True
                raise ConnectionAbortedError(
                    "cannot send the response: the client has gone, or does not read"
                ) from error
        else:
            raise RuntimeError(f"the ASGI application sent {kind!r} at the wrong time")

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        assert self._head is not None
        status, headers = self._head
        if not self._begun:
            self._begun = True
            if not more and not self._is_head and not any(name.lower() == "content-length" for name, _ in headers):
                await self._http.respond(status, headers, body)  # in one write, with its length
                self._complete.set()
                return
            await self._http.start_response(status, headers)
        await self._http.send_body(body)
        if not more:
            await self._http.end_response()
            self._complete.set()


class _Lifespan:
    """Runs the ASGI application's `lifespan` scope in a task."""

    def __init__(self, app: AsgiApplication, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._stopping = trio.Event()
        self._stopped = trio.Event()
        self._started = trio.Event()
        self._asked_to_start = self._asked_to_stop = False
        self._failure: str | None = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the ASGI application's lifespan; report started after its startup."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._call)
            await self._started.wait()
            if self._failure is not None:
                raise LifespanFailed(self._failure)
            task_status.started()

    async def _call(self) -> None:
        scope = {"type": "lifespan", "asgi": dict(_LIFESPAN_VERSIONS), "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            if self._started.is_set():
                log.error("the ASGI application failed in its lifespan", exc_info=error)
            else:
                log.info("the ASGI application has no lifespan: %r", error)
        finally:
            self._started.set()
            self._stopped.set()

    async def stop(self) -> None:
        """Ask the ASGI application to shut down, and wait for it. Raises LifespanFailed."""
        self._stopping.set()
        await self._stopped.wait()
        if self._failure is not None:
            raise LifespanFailed(self._failure)

    async def _receive(self) -> Message:
        if not self._asked_to_start:
            self._asked_to_start = True
            await trio.lowlevel.checkpoint()
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        if self._asked_to_stop:
            await trio.sleep_forever()
        self._asked_to_stop = True
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        kind = message["type"]
        if kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failure = message.get("message", "") or kind
        if kind.startswith("lifespan.startup."):
            self._started.set()
        else:
            self._stopped.set()


def _text(value: bytes) -> str:
    return value.decode("latin-1")
