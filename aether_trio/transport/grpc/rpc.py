"""Runs one RPC on the server: finds its handler, keeps the deadline, ends it.

Invariants: an accepted stream ends with one status or one reset; a handler's cancellation stays in
its RPC; an unexpected error of a handler is logged and reaches the caller as UNKNOWN, without text.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import trio
from grpclib.const import Handler
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import decode_timeout

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc import message_encoding, response_headers
from aether_trio.transport.grpc.message_stream import AssemblyBudget
from aether_trio.transport.grpc.refused import RefusedRequest
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.http2.server_connection import ServerConnection
from aether_trio.transport.link import LinkBroken

log = logging.getLogger(__name__)

Method = TypeVar("Method", bound=Callable[..., Awaitable[None]])

_TIMEOUT_CHARACTERS: Final = 9
_NO_GRPC: Final = (405, 415)
"""HTTP statuses of requests that no gRPC client makes."""
_LENGTH_DIGITS: Final = 18
_CONTENT_TYPES: Final = ("application/grpc", "application/grpc+proto")


def told_when_broken(handler: Method) -> Method:
    """Mark an RPC handler to get LinkBroken, not cancellation, when its stream breaks."""
    handler.told_when_broken = True  # type: ignore[attr-defined]
    return handler


class RpcRefused(Exception):
    """Raised when an HTTP/2 request cannot become an RPC."""

    def __init__(self, http_status: int, status: Status, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.status = status
        self.message = message


class RpcAcceptor:
    """Starts an RPC for each request on one gRPC connection."""

    __slots__ = ("_budget", "_handlers")

    def __init__(self, handlers: Mapping[str, Handler], budget: AssemblyBudget) -> None:
        self._handlers = handlers
        self._budget = budget

    def __call__(self, connection: ServerConnection, stream_id: int, headers: list[tuple[str, str]]) -> None:
        """Start the task of a requested RPC, or answer why it is refused."""
        try:
            stream = self._open(connection, stream_id, headers)
        except RpcRefused as refusal:
            if refusal.http_status in _NO_GRPC:
                _refuse_plainly(connection, stream_id, refusal, dict(headers).get("content-length", ""))
            else:
                _refuse(connection, stream_id, refusal)
            return
        connection.open(stream.http2)
        connection.nursery.start_soon(_runner_of(stream), stream)

    def _open(self, connection: ServerConnection, stream_id: int, headers: list[tuple[str, str]]) -> ServerStream:
        by_name = dict(headers)
        if by_name.get(":method") != "POST":
            raise RpcRefused(405, Status.INTERNAL, "the request's method is not POST, as gRPC needs")
        content_type = by_name.get("content-type", "").partition(";")[0].strip()
        if content_type not in _CONTENT_TYPES:
            raise RpcRefused(
                415, Status.INTERNAL, f"unacceptable content-type {content_type!r}; gRPC needs application/grpc"
            )
        if by_name.get("te") != "trailers":
            raise RpcRefused(400, Status.INTERNAL, 'the header "te: trailers" is missing')
        handler = self._handlers.get(by_name.get(":path", ""))
        if handler is None:
            raise RpcRefused(200, Status.UNIMPLEMENTED, f"Method not found: {by_name.get(':path', '')}")
        encoding = by_name.get("grpc-encoding", "identity")
        if not message_encoding.known_encoding(encoding):
            raise RpcRefused(200, Status.UNIMPLEMENTED, f"grpc-encoding {encoding!r} is not supported")
        deadline = None
        if "grpc-timeout" in by_name:
            deadline = trio.current_time() + _timeout(by_name["grpc-timeout"])
        return ServerStream(stream_id, connection, self._budget, handler, headers, encoding=encoding, deadline=deadline)


def _timeout(value: str) -> float:
    """Return the seconds of a grpc-timeout header (8 digits). Raises RpcRefused."""
    try:
        if len(value) <= _TIMEOUT_CHARACTERS:
            return decode_timeout(value)
    except ValueError:
        pass
    raise RpcRefused(200, Status.INTERNAL, "the header grpc-timeout is invalid")


def _refuse(connection: ServerConnection, stream_id: int, refusal: RpcRefused) -> None:
    connection.counters.reject(f"http_{refusal.http_status}" if refusal.http_status != 200 else "unimplemented")
    block = response_headers.refusal(refusal.http_status, refusal.status, refusal.message)
    connection.send_block(stream_id, block, end_stream=True)
    connection.refuse(stream_id, Http2ErrorCode.NO_ERROR)


def _refuse_plainly(connection: ServerConnection, stream_id: int, refusal: RpcRefused, length: str) -> None:
    connection.counters.reject(f"http_{refusal.http_status}")
    error = StatusError(refusal.status, refusal.message)
    declared = int(length) if length.isascii() and length.isdigit() and len(length) <= _LENGTH_DIGITS else None
    refused = RefusedRequest(stream_id, connection, refusal.http_status, error, declared)
    connection.open(refused.stream)
    connection.nursery.start_soon(refused.answer_soon)


def _runner_of(stream: ServerStream) -> Callable[[ServerStream], Awaitable[None]]:
    """Return what runs an RPC's handler to its end and sends the RPC's status."""
    unscoped = stream.deadline is None and getattr(stream.handler.func, "told_when_broken", False)
    return _run_unscoped if unscoped else _run_scoped


async def _run_scoped(stream: ServerStream) -> None:
    scope = stream.scope_until_broken()
    try:
        with scope:
            await stream.handler.func(stream)
            await _end_well(stream)
    except Exception as error:
        _end_badly(stream, error)
    finally:
        stream.release()
    if scope.cancelled_caught:
        stream.finish(Status.DEADLINE_EXCEEDED, "Deadline exceeded")


async def _run_unscoped(stream: ServerStream) -> None:
    try:
        await stream.handler.func(stream)
        await _end_well(stream)
    except Exception as error:
        _end_badly(stream, error)
    finally:
        stream.release()


async def _end_well(stream: ServerStream) -> None:
    """End the RPC of a handler that has returned: with OK, unless it sent no response."""
    if not stream.finished:
        await stream.wait_drained()
        if stream.incomplete:
            log.error("the gRPC handler of %s returned without sending a response", stream.path)
            stream.finish(Status.UNKNOWN, "Internal Server Error")
        else:
            stream.finish(Status.OK, None)


def _end_badly(stream: ServerStream, error: Exception) -> None:
    leaf = _first_status(error)
    if isinstance(leaf, GRPCError):
        stream.finish(leaf.status.value, leaf.message)
    elif isinstance(leaf, StatusError):
        stream.finish(leaf.status, leaf.message)
    elif stream.broken_reason is not None and isinstance(leaf, (LinkBroken, StreamTerminatedError)):
        pass  # the handler let it end, as it should
    else:
        log.error("the gRPC handler of %s raised an error that names no status", stream.path, exc_info=error)
        stream.finish(Status.UNKNOWN, "Internal Server Error")


def _first_status(error: BaseException) -> BaseException:
    """Return the first error with a gRPC status in exception groups, else `error`."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            leaf = _first_status(inner)
            if isinstance(leaf, (GRPCError, StatusError, LinkBroken, StreamTerminatedError)):
                return leaf
    return error
