"""Refuses operations that are not implemented yet with ERR_NOT_IMPLEMENTED.

The typed failure ends the client's call that waits for it (by id, or by order of arrival); the
ErrorResponse has the error code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from aether_trio.model.errors import Code, RequestError
from aether_trio.session.dispatch import Handler, request_id_of
from aether_trio.session.session import Session
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

Failure: TypeAlias = Callable[[Any, str], pb.DownstreamMessage]  # for (payload, text)


def _tunnel_closed(payload: Any, text: str) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(
        tunnel_close=pb.TunnelClose(tunnel_id=payload.tunnel_id, reason=pb.TunnelClose.ERROR, detail=text)
    )


FAILURES: Final[dict[str, Failure | None]] = {
    "proxy_http_request": lambda op, text: pb.DownstreamMessage(
        proxy_http_response=pb.ProxyHttpResponse(
            request_id=op.request_id, error=pb.ProxyError(kind=pb.ProxyError.SIDECAR_UNAVAILABLE, message=text)
        )
    ),
    "tunnel_open": _tunnel_closed,
    "tunnel_data": _tunnel_closed,
    # No client waits for an answer to these.
    **dict.fromkeys(("tunnel_ack", "tunnel_close", "proxy_http_body_chunk", "proxy_http_response")),
    "admin_query": None,
}

_LAST_WORDS = frozenset({"tunnel_close"})  # messages that end something: there is nothing to refuse


def failure(case: str, payload: Any) -> Sequence[pb.DownstreamMessage]:
    """Make the failed response and the ErrorResponse to an unimplemented operation."""
    error = RequestError(Code.NOT_IMPLEMENTED, f"{case} is not served by this gateway yet")
    refusal = error_response(error, request_id_of(payload))
    typed = FAILURES[case]
    return [refusal] if typed is None else [typed(payload, str(error)), refusal]


def _handler(case: str) -> Handler:
    async def answer(session: Session, payload: Any) -> Sequence[pb.DownstreamMessage]:
        return () if case in _LAST_WORDS else failure(case, payload)

    return answer


HANDLERS: Final = {case: _handler(case) for case in FAILURES}
