"""Refuses operations that are not implemented yet with ERR_NOT_IMPLEMENTED.

A client must not wait for its time limit. The typed failure ends the call that waits for it (by id,
or by order of arrival); the ErrorResponse has the error code. The row of an operation leaves this
table when the operation is implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from aether_trio.model.errors import Code, RequestError
from aether_trio.session.dispatch import Handler, request_id_of
from aether_trio.session.session import Session
from aether_trio.wire.errors import error_response
from aether_trio.wire.pb import aether_pb2 as pb

Failure: TypeAlias = Callable[[Any, str], pb.DownstreamMessage]
"""Builds the typed failure for (payload, text)."""


def _tunnel_closed(payload: Any, text: str) -> pb.DownstreamMessage:
    return pb.DownstreamMessage(
        tunnel_close=pb.TunnelClose(tunnel_id=payload.tunnel_id, reason=pb.TunnelClose.ERROR, detail=text)
    )


FAILURES: dict[str, Failure | None] = {
    "workspace_op": lambda op, text: pb.DownstreamMessage(
        workspace=pb.WorkspaceResponse(error=text, request_id=op.request_id)
    ),
    "acl_op": lambda op, text: pb.DownstreamMessage(acl=pb.ACLResponse(error=text, request_id=op.request_id)),
    "workflow_op": lambda op, text: pb.DownstreamMessage(
        workflow_response=pb.WorkflowResponse(error=text, request_id=op.request_id)
    ),
    "token_op": lambda op, text: pb.DownstreamMessage(token=pb.TokenResponse(error=text, request_id=op.request_id)),
    "audit_query": lambda op, text: pb.DownstreamMessage(
        audit_response=pb.AuditQueryResponse(error=text, request_id=op.request_id)
    ),
    "authority_grant_op": lambda op, text: pb.DownstreamMessage(
        authority_grant=pb.AuthorityGrantResponse(error=text, request_id=op.request_id)
    ),
    "authority_request_op": lambda op, text: pb.DownstreamMessage(
        authority_request_response=pb.AuthorityRequestOperationResponse(
            error=text, client_request_id=op.client_request_id
        )
    ),
    "resolve_authority_request": lambda op, text: pb.DownstreamMessage(
        resolve_authority_response=pb.ResolveAuthorityResponse(error=text, request_id=op.request_id)
    ),
    "submit_audit_event": lambda op, text: pb.DownstreamMessage(
        submit_audit_event_response=pb.SubmitAuditEventResponse(
            error_code=Code.NOT_IMPLEMENTED, error_message=text, client_request_id=op.client_request_id
        )
    ),
    "access_check": lambda op, text: pb.DownstreamMessage(
        access_check_response=pb.AccessCheckResponse(error=text, request_id=op.request_id)
    ),
    "batch_access_check": lambda op, text: pb.DownstreamMessage(
        batch_access_check_response=pb.BatchAccessCheckResponse(error=text, request_id=op.request_id)
    ),
    "proxy_http_request": lambda op, text: pb.DownstreamMessage(
        proxy_http_response=pb.ProxyHttpResponse(
            request_id=op.request_id, error=pb.ProxyError(kind=pb.ProxyError.SIDECAR_UNAVAILABLE, message=text)
        )
    ),
    "tunnel_open": _tunnel_closed,
    "tunnel_data": _tunnel_closed,
    # No client waits for an answer to these.
    "tunnel_ack": None,
    "tunnel_close": None,
    "proxy_http_body_chunk": None,
    "proxy_http_response": None,
    "workflow_response": None,
    "admin_query": None,
}

_LAST_WORDS = frozenset({"tunnel_close"})
"""Messages that end something: there is nothing to refuse."""


def failure(case: str, payload: Any) -> Sequence[pb.DownstreamMessage]:
    """Return the typed failure and the error for an unimplemented operation."""
    error = RequestError(Code.NOT_IMPLEMENTED, f"{case} is not served by this gateway yet")
    typed = FAILURES[case]
    request_id = request_id_of(payload)
    answers = [error_response(error, request_id)]
    if typed is not None:
        answers.insert(0, typed(payload, str(error)))
    return answers


def _handler(case: str) -> Handler:
    async def answer(session: Session, payload: Any) -> Sequence[pb.DownstreamMessage]:
        return () if case in _LAST_WORDS else failure(case, payload)

    return answer


HANDLERS: Final = {case: _handler(case) for case in FAILURES}
"""A handler for each operation of FAILURES."""
