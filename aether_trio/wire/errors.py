"""The one place that turns an AetherError into wire form."""

from __future__ import annotations

from aether_trio.model.errors import AetherError
from aether_trio.wire.pb import aether_pb2 as pb


def error_response(error: AetherError, request_id: str = "") -> pb.DownstreamMessage:
    """An ErrorResponse, for the request with this id if there is one."""
    return pb.DownstreamMessage(
        error=pb.ErrorResponse(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms,
            request_id=request_id,
        )
    )
