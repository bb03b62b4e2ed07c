"""The gateway's HTTP/1.1 server for browsers: static files and WebSockets.

GET /v1/connect is the upgrade, whose Link is given to `serve`; POST /hooks/... is a webhook
(http1/hooks.py); every other path is a file (http1/static_files.py), or 404. `nursery` outlives the
connections and holds their writers.

Limits: a connection's first request within `handshake_timeout_s`, each further one within
`idle_timeout_s`, responses likewise. A drain answers upgrades with 503, ends connections that only
fetch files, and waits for the WebSockets, whose sessions the core ends.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import trio

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.config.settings import WebSocketSettings, is_loopback
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Http1Limits, Request
from aether_trio.transport.http1.hooks import PATH as HOOKS
from aether_trio.transport.http1.hooks import HookReceiver, HookServer
from aether_trio.transport.http1.plain_request import plain_request
from aether_trio.transport.http1.server import LINGER_S, serve_requests
from aether_trio.transport.http1.static_files import load_files
from aether_trio.transport.link import Link, Peer
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.byte_stream import ByteStream
from aether_trio.transport.socket.unfinished_input import UnfinishedInput
from aether_trio.transport.websocket.deliveries import Deliveries
from aether_trio.transport.websocket.handshake import Upgrade, UpgradeRefused, negotiate
from aether_trio.transport.websocket.link import WebSocketLink
from aether_trio.transport.websocket.origins import OriginPolicy

CONNECT_PATH: Final = "/v1/connect"
BURST_S: Final = 10.0
"""A client may be this many seconds of its rate of messages ahead."""

_METADATA: Final[tuple[str, ...]] = ("user-agent", "origin", "aether-extensions")
"""Headers that a session may look at."""


@dataclass(frozen=True, slots=True)
class HttpStatistics:
    """Numbers of the WebSocket port now; `_total` and `rejects` count since its start."""

    fetching: int
    websockets: int
    requests_total: int
    upgrades_total: int
    rejects: Mapping[str, int]


class HttpServer:
    """Serves static files and WebSockets on the gateway's WebSocket port."""

    def __init__(
        self,
        serve: Callable[[Link], Awaitable[None]],
        settings: WebSocketSettings,
        nursery: trio.Nursery,
        *,
        log: str = "",
        unfinished: UnfinishedInput | None = None,
        hooks: HookReceiver | None = None,
    ) -> None:
        self._hooks = HookServer(hooks)
        self._serve_link = serve
        self._log = log
        self._settings = settings
        self._limits = Http1Limits(
            head_timeout_s=settings.handshake_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            write_timeout_s=settings.handshake_timeout_s,
        )
        self._nursery = nursery
        self._origins = OriginPolicy(settings.allowed_origins)
        self._files = load_files(page=settings.page)
        self._fetching: set[ByteStream] = set()
        self._websockets: dict[ByteStream, WebSocketLink] = {}
        self._draining = False
        self._empty = RepeatedEvent()
        self._requests = self._upgrades = 0
        self._rejects: Counter[str] = Counter()
        self._unfinished = unfinished or UnfinishedInput()

    def statistics(self) -> HttpStatistics:
        return HttpStatistics(
            len(self._fetching), len(self._websockets), self._requests, self._upgrades, dict(self._rejects)
        )

    async def serve(self, accepted: Accepted) -> None:
        """Serve one connection: HTTP requests first, then a WebSocket if it upgrades."""
        stream = ByteStream(accepted)
        accepted.head = b""
        try:
            link = await self._upgrade_at_once(accepted, stream) or await self._fetch(accepted, stream)
            if link is not None:
                await self._bridge(stream, link)
        except (OSError, trio.TooSlowError):
            pass  # the peer has gone, or does not read
        finally:
            if not self._fetching and not self._websockets:
                self._empty.set()

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End connections that fetch files, wait for WebSockets, then cut the rest."""
        self._draining = True
        for stream in self._fetching:
            stream.shutdown(socket.SHUT_RD)  # what was read is answered; then it is the end
        task_status.started()
        with trio.move_on_after(deadline_s):
            while self._fetching or self._websockets:
                await self._empty.wait()
        for stream in (*self._fetching, *self._websockets):
            stream.shutdown()

    async def keep_alive(self) -> None:
        """Ping WebSockets idle for `ping_interval_s`, so that proxies do not cut them."""
        interval_s = self._settings.ping_interval_s
        while interval_s:
            await trio.sleep(interval_s)
            for count, link in enumerate(list(self._websockets.values())):
                link.ping_if_quiet()
                if count % 64 == 63:
                    await trio.lowlevel.checkpoint()

    # -- files, and the request to upgrade ---------------------------------------------------------

    async def _upgrade_at_once(self, accepted: Accepted, stream: ByteStream) -> WebSocketLink | None:
        """Return the link of a valid upgrade that has come whole and plain; else None.

        None leaves all to `_fetch`, refusals too. Raises OSError and TooSlowError.
        """
        found = None if self._draining else plain_request(stream.head, self._limits)
        if found is None or found[0].path != CONNECT_PATH:
            return None
        request, rest = found
        try:
            upgrade = self._negotiate(request, accepted, stream)
        except UpgradeRefused:
            return None
        self._requests += 1
        self._fetching.add(stream)
        try:
            await stream.send_within(upgrade.response, self._settings.handshake_timeout_s)
        finally:
            self._fetching.discard(stream)
        stream.head = rest
        return self._link(upgrade, request, accepted, stream)

    def _negotiate(self, request: Request, accepted: Accepted, stream: ByteStream) -> Upgrade:
        # Only pages are asked where the gateway listens; other clients send no origin.
        loopback = "origin" in request.headers and is_loopback(stream.sock.getsockname()[0])
        return negotiate(request, self._origins, secure=accepted.tls is not None, loopback=loopback)

    async def _fetch(self, accepted: Accepted, stream: ByteStream) -> WebSocketLink | None:
        """Answer requests until the end or an upgrade. Raises OSError and TooSlowError."""
        link: WebSocketLink | None = None

        async def answer(http: Http1Connection, request: Request) -> bool:
            nonlocal link
            self._requests += 1
            if request.path != CONNECT_PATH or request.method != "GET":
                if request.path.startswith(HOOKS):
                    await self._hooks.answer(http, request, accepted.peer_address)
                else:
                    await self._answer(http, request)
                return True
            link = await self._upgrade(http, request, accepted, stream)
            return False

        self._fetching.add(stream)
        try:
            http = Http1Connection(stream, self._limits, body_bytes=self._hooks.body_bytes)
            await serve_requests(http, answer, on_refused=self._refused)
        finally:
            self._fetching.discard(stream)
        return link

    def _refused(self, _error: BadRequest) -> None:
        self._rejects["bad_request"] += 1

    async def _answer(self, http: Http1Connection, request: Request) -> None:
        methods = ("GET",) if request.path == CONNECT_PATH else ("GET", "HEAD")
        if request.method not in methods:
            allow = ", ".join(methods)
            text = f"this address takes {allow} only"
            await http.respond_text(HTTPStatus.METHOD_NOT_ALLOWED, text, [("Allow", allow)])
            return
        file = self._files.get(request.path)
        if file is None:
            await http.respond_text(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            return
        unchanged = file.unchanged(request.headers.get("if-none-match", ""))
        await http.respond(HTTPStatus.NOT_MODIFIED if unchanged else HTTPStatus.OK, file.headers, file.body)

    async def _upgrade(
        self, http: Http1Connection, request: Request, accepted: Accepted, stream: ByteStream
    ) -> WebSocketLink | None:
        """Return the link of a valid upgrade, else None. Raises OSError and TooSlowError."""
        try:
            if self._draining:
                raise UpgradeRefused(
                    "draining",
                    "the gateway is shutting down; connect again",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    [("Retry-After", "1")],
                )
            upgrade = self._negotiate(request, accepted, stream)
        except UpgradeRefused as refused:
            self._rejects[refused.reason] += 1
            await http.respond_text(refused.status, str(refused), refused.headers, close=True)
            await http.linger(LINGER_S)
            return None
        await stream.send_within(upgrade.response, self._settings.handshake_timeout_s)
        stream.unread(http.leftover())
        return self._link(upgrade, request, accepted, stream)

    # -- WebSockets --------------------------------------------------------------------------------

    def _link(self, upgrade: Upgrade, request: Request, accepted: Accepted, stream: ByteStream) -> WebSocketLink:
        settings = self._settings
        metadata = {name: request.headers[name] for name in _METADATA if name in request.headers}
        rate = settings.max_messages_per_s
        return WebSocketLink(
            stream,
            upgrade.codec,
            Peer(accepted.peer_address, "websocket", accepted.certificate, metadata),
            self._nursery,
            kinds=settings.principals,
            max_message_bytes=settings.max_message_bytes,
            rate=TokenBucket(rate, max(1.0, BURST_S * rate)),
            rejects=self._rejects,
            account=self._unfinished.account(accepted.address),
            deliveries=Deliveries(self._log) if upgrade.acknowledges else None,
        )

    async def _bridge(self, stream: ByteStream, link: WebSocketLink) -> None:
        self._upgrades += 1
        self._websockets[stream] = link
        try:
            await self._serve_link(link)
        finally:
            link.release()
            del self._websockets[stream]
