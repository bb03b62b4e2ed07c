"""`agent.proxy`: sends HTTP requests to services behind the gateway.

A target is "sv::billing::1", or "sv::billing" for any instance. An HTTP status of 400 or 500 is an
answer like any other; ProxyFailed says that there is none, and why.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio

from aether_trio.client.errors import AetherError, NotImplementedByGateway, RequestTimeout, UnexpectedAnswer, from_text
from aether_trio.client.feeds import Feed
from aether_trio.client.operations.access_checks import AccessRequest, access_message
from aether_trio.client.operations.bodies import PIECE_BYTES, BodyAssembly, pieces
from aether_trio.client.operations.enums import ProxyFailure
from aether_trio.client.operations.principals import Authorization, authorization_context
from aether_trio.client.operations.proxy_service import ProxyService
from aether_trio.client.operations.records import member
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_IDLE_S: Final = 30.0
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_CASES: Final = ("proxy_http_response", "proxy_http_body_chunk", "error")
_PIECES_WAITING: Final = 1024


class ProxyFailed(AetherError):
    """An HTTP request through the gateway got no response; `kind` says why."""

    def __init__(self, kind: ProxyFailure, message: str) -> None:
        retryable = kind in {ProxyFailure.TIMEOUT, ProxyFailure.SIDECAR_UNAVAILABLE}
        super().__init__(kind.name, message, retryable=retryable)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class ProxyResponse:
    """A whole HTTP response from a service behind the gateway."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamedResponse:
    """An HTTP response whose body is still coming. Iterate over its pieces, once."""

    def __init__(self, head: pb.ProxyHttpResponse, feed: Feed[Any], idle_s: float) -> None:
        self.status = head.status_code
        self.headers: Mapping[str, str] = dict(head.headers)
        self._feed = feed
        self._idle_s = idle_s
        self._inline = head.body
        self._expected = 0
        self._complete = not head.body_chunked

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Wait for the next piece of the body. Raises ProxyFailed, RequestTimeout."""
        await anyio.lowlevel.checkpoint()
        if self._inline:
            piece, self._inline = self._inline, b""
            return piece
        while not self._complete:
            chunk = await _next(self._feed, self._idle_s, "the next piece of the body")
            if isinstance(chunk, pb.ProxyHttpResponse):
                raise _failure(chunk)  # a second head is how a stream ends before its end
            if chunk.seq != self._expected:
                raise UnexpectedAnswer(f"piece {chunk.seq} of an HTTP body came, but piece {self._expected} was due")
            self._expected += 1
            self._complete = bool(chunk.fin)
            if chunk.data:
                return bytes(chunk.data)
        raise StopAsyncIteration


class Proxy(ProxyService):
    """Sends HTTP requests to services behind the gateway, and answers them."""

    async def request(
        self,
        target: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        backend: str = "",
        app_workspace: str = "",
        follow_redirects: bool = False,
        max_response_bytes: int = MAX_BODY_BYTES,
        checked_access: AccessRequest | None = None,
        authorization: Authorization | None = None,
    ) -> ProxyResponse:
        """Send an HTTP request and return the whole response, within `timeout_s`.

        `path` has the query. Raises ProxyFailed, RequestTimeout, and PayloadTooLarge for a body
        over `max_response_bytes`.
        """
        message = _message(
            target, method, path, headers, body, timeout_s, backend, app_workspace, checked_access, authorization
        )
        message.follow_redirects = follow_redirects
        message.max_response_body_bytes = max_response_bytes
        with anyio.move_on_after(timeout_s):
            async with self._exchange(message, body, timeout_s) as (head, feed):
                whole = BodyAssembly(max_response_bytes)
                done = not head.body_chunked
                while not done:
                    piece = await _next(feed, timeout_s, "the body")
                    if isinstance(piece, pb.ProxyHttpResponse):
                        raise _failure(piece)
                    done = whole.add(piece)
                return ProxyResponse(head.status_code, dict(head.headers), head.body + whole.body())
        raise RequestTimeout(f"{method} {path} of {target} was not answered within {timeout_s:g} s")

    @asynccontextmanager
    async def stream(
        self,
        target: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        idle_s: float = DEFAULT_IDLE_S,
        backend: str = "",
        app_workspace: str = "",
        max_response_bytes: int = 0,
        checked_access: AccessRequest | None = None,
        authorization: Authorization | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Yield an HTTP response whose body still comes; `idle_s` limits a piece's wait."""
        message = _message(
            target, method, path, headers, body, timeout_s, backend, app_workspace, checked_access, authorization
        )
        message.stream_response_indefinitely = True
        message.stream_idle_timeout_ms = int(idle_s * 1000)
        message.max_response_body_bytes = max_response_bytes
        async with self._exchange(message, body, timeout_s) as (head, feed):
            yield StreamedResponse(head, feed, idle_s)

    @asynccontextmanager
    async def _exchange(
        self, message: pb.ProxyHttpRequest, body: bytes, timeout_s: float
    ) -> AsyncIterator[tuple[pb.ProxyHttpResponse, Feed[Any]]]:
        """Send an HTTP request; yield the head of its response, and a feed of the rest."""
        request_id = message.request_id

        def mine(payload: Any) -> bool:
            return str(getattr(payload, "request_id", "")) == request_id

        with self._exchange_feed(*_CASES, match=mine, capacity=_PIECES_WAITING) as feed:
            await self._tell("proxy_http_request", message)
            if message.body_chunked:
                for piece in pieces(request_id, body, is_request=True):
                    if len(feed):
                        # It is answered or refused already; the rest of the body is not wanted.
                        break
                    await self._tell("proxy_http_body_chunk", piece)
            head = await _next(feed, timeout_s, "the response")
            if not isinstance(head, pb.ProxyHttpResponse):
                raise ProxyFailed(
                    ProxyFailure.DECODE_FAILED, "a piece of the HTTP body came before the head of its response"
                )
            if head.HasField("error"):
                raise _failure(head)
            yield head, feed


def _message(
    target: str,
    method: str,
    path: str,
    headers: Mapping[str, str] | None,
    body: bytes,
    timeout_s: float,
    backend: str,
    app_workspace: str,
    checked_access: AccessRequest | None,
    authorization: Authorization | None,
) -> pb.ProxyHttpRequest:
    chunked = len(body) > PIECE_BYTES
    return pb.ProxyHttpRequest(
        request_id=f"http-{secrets.token_hex(8)}",
        target_topic=target,
        method=method.upper(),
        path=path,
        headers=dict(headers or {}),
        body=b"" if chunked else body,
        body_chunked=chunked,
        timeout_ms=int(timeout_s * 1000),
        backend_name=backend,
        app_workspace=app_workspace,
        checked_access=None if checked_access is None else access_message(checked_access),
        authorization=authorization_context(authorization),
    )


async def _next(feed: Feed[Any], limit_s: float, what: str) -> Any:
    """Return the next message of an HTTP exchange; raise a refusal or a cut."""
    with anyio.move_on_after(limit_s):
        async for payload in feed:
            if isinstance(payload, AetherError):
                raise payload
            return payload
        raise ProxyFailed(ProxyFailure.UPSTREAM_RESET, f"the client was closed before {what} came")
    raise RequestTimeout(f"{what} did not come within {limit_s:g} s")


def _failure(response: pb.ProxyHttpResponse) -> AetherError:
    named = from_text(response.error.message, "PROXY")
    if isinstance(named, NotImplementedByGateway):
        return named
    return ProxyFailed(member(ProxyFailure, response.error.kind), response.error.message)
