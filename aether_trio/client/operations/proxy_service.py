"""`agent.proxy`, in part: answers HTTP requests of the gateway to this service.

    async with agent.proxy.serve() as requests:
        async for request in requests:
            await request.respond(200, {"content-type": "text/plain"}, b"hello")

A request is handed out when its body is complete. The headers x-auth-* and x-aether-* are the
gateway's own, which strips what a caller puts there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

from aether_trio.client.errors import AetherError, PayloadTooLarge
from aether_trio.client.operations.bodies import PIECE_BYTES, BodyAssembly, pieces
from aether_trio.client.operations.enums import ProxyFailure
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, read_authorization
from aether_trio.wire.pb import aether_pb2 as pb

MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024
MAX_INCOMPLETE: Final = 256
"""Requests whose bodies still come. The oldest is dropped when there are more."""


class ProxiedRequest:
    """An HTTP request to this service, to be answered at once or in pieces."""

    def __init__(self, service: ProxyService, message: pb.ProxyHttpRequest, body: bytes) -> None:
        self.method = message.method
        self.path = message.path
        self.headers: Mapping[str, str] = dict(message.headers)
        self.body = body
        self.timeout_s = message.timeout_ms / 1000
        """How long the caller waits; 0 if it does not say."""
        self.backend = message.backend_name
        self.app_workspace = message.app_workspace
        self.authorization: Authorization | None = (
            read_authorization(message.authorization) if message.HasField("authorization") else None
        )
        self.raw = message
        self._service = service
        self._seq = 0

    async def respond(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Answer with a whole HTTP response; a long body goes in pieces."""
        if len(body) <= PIECE_BYTES:
            await self._head(pb.ProxyHttpResponse(status_code=status, headers=dict(headers or {}), body=body))
            return
        await self.start(status, headers)
        for piece in pieces(self.raw.request_id, body, is_request=False):
            await self._service.tell_piece(piece)

    async def fail(self, kind: ProxyFailure, message: str) -> None:
        """Answer that there is no HTTP response. After `start` this breaks the body off."""
        error = pb.ProxyError(kind=pb.ProxyError.Kind.ValueType(kind), message=message)
        await self._head(pb.ProxyHttpResponse(error=error))

    async def start(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send the head of an HTTP response whose body follows in pieces."""
        await self._head(pb.ProxyHttpResponse(status_code=status, headers=dict(headers or {}), body_chunked=True))

    async def send(self, data: bytes) -> None:
        """Send the next piece of the HTTP body."""
        await self._piece(data, fin=False)

    async def finish(self) -> None:
        """Tell the caller that the HTTP body is complete."""
        await self._piece(b"", fin=True)

    async def _piece(self, data: bytes, *, fin: bool) -> None:
        piece = pb.ProxyHttpBodyChunk(request_id=self.raw.request_id, seq=self._seq, data=data, fin=fin)
        self._seq += 1
        await self._service.tell_piece(piece)

    async def _head(self, response: pb.ProxyHttpResponse) -> None:
        response.request_id = self.raw.request_id
        await self._service.tell_head(response)


class ProxyService(Namespace):
    """Receives and answers HTTP requests to this service."""

    @asynccontextmanager
    async def serve(
        self, *, capacity: int = 1024, max_request_bytes: int = MAX_REQUEST_BYTES
    ) -> AsyncIterator[AsyncIterator[ProxiedRequest]]:
        """Yield the HTTP requests to this service; refuse long or incomplete bodies."""
        cases = ("proxy_http_request", "proxy_http_body_chunk")
        with self._feed(*cases, match=_of_a_request, capacity=capacity) as feed:
            yield _Complete(self, feed, max_request_bytes)

    async def tell_head(self, response: pb.ProxyHttpResponse) -> None:
        """Send the head of an HTTP response, as a raw message."""
        await self._tell_confirmed("proxy_http_response", response)

    async def tell_piece(self, piece: pb.ProxyHttpBodyChunk) -> None:
        """Send a piece of an HTTP body, as a raw message."""
        await self._tell("proxy_http_body_chunk", piece)


class _Complete:
    """Iterates over HTTP requests to this service whose bodies are complete."""

    def __init__(self, service: ProxyService, feed: AsyncIterator[Any], limit: int) -> None:
        self._service = service
        self._feed = feed
        self._limit = limit
        self._waiting: dict[str, tuple[pb.ProxyHttpRequest, BodyAssembly]] = {}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProxiedRequest:
        while True:
            payload = await anext(self._feed)
            if not isinstance(payload, pb.ProxyHttpRequest):
                if (complete := await self._add(payload)) is not None:
                    return complete
            elif payload.body_chunked:
                self._waiting[payload.request_id] = (payload, BodyAssembly(self._limit))
                if len(self._waiting) > MAX_INCOMPLETE:
                    del self._waiting[next(iter(self._waiting))]
            else:
                return ProxiedRequest(self._service, payload, payload.body)

    async def _add(self, piece: pb.ProxyHttpBodyChunk) -> ProxiedRequest | None:
        """Add a piece of a body; return the request if complete, refuse it if malformed."""
        if piece.request_id not in self._waiting:
            return None
        request, assembly = self._waiting[piece.request_id]
        try:
            complete = assembly.add(piece)
        except AetherError as error:
            del self._waiting[piece.request_id]
            too_large = isinstance(error, PayloadTooLarge)
            kind = ProxyFailure.PAYLOAD_TOO_LARGE if too_large else ProxyFailure.DECODE_FAILED
            await ProxiedRequest(self._service, request, b"").fail(kind, error.message)
            return None
        if not complete:
            return None
        del self._waiting[piece.request_id]
        return ProxiedRequest(self._service, request, assembly.body())


def _of_a_request(payload: Any) -> bool:
    return isinstance(payload, pb.ProxyHttpRequest) or bool(payload.is_request)
