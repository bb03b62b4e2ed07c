"""Turn refusals into wire form: an ErrorResponse and the typed response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import Limits
from aether_trio.wire.pb import aether_pb2 as pb

ERROR_TEXT_BYTES: Final = 4 * 1024
"""Of an explanation. It may quote what a client has sent; its beginning tells what is wrong."""

ANSWERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "kv_op": "kv",
        "create_task": "create_task",
        "checkpoint_op": "checkpoint",
        "session_op": "session_response",
        "task_query": "task_query",
        "task_op": "task_op",
        "workspace_op": "workspace",
        "agent_op": "agent",
        "acl_op": "acl",
        "workflow_op": "workflow_response",
        "token_op": "token",
        "audit_query": "audit_response",
        "authority_grant_op": "authority_grant",
        "resolve_authority_request": "resolve_authority_response",
        "connection_status_request": "connection_status_response",
        "submit_audit_event": "submit_audit_event_response",
        "authority_request_op": "authority_request_response",
        "task_subscription_op": "task_subscription_response",
        "access_check": "access_check_response",
        "batch_access_check": "batch_access_check_response",
        "proxy_http_request": "proxy_http_response",
        "tunnel_open": "tunnel_close",
        "tunnel_data": "tunnel_close",
    }
)
"""The response of each operation: a case of UpstreamMessage → a case of DownstreamMessage."""

TYPED_ONLY: Final = frozenset(
    {
        "checkpoint",
        "session_response",
        "connection_status_response",
        "task_query",
        "task_op",
        "task_subscription_response",
    }
)
"""Responses that carry their error, so no ErrorResponse follows (docs/wire.md)."""

_ONLY_WITH_ID: Final = frozenset({"kv", "create_task"})
"""Responses that a client matches by id only; without an id the ErrorResponse is sent alone."""
_ERROR_FIRST: Final = frozenset({"create_task"})
"""The ErrorResponse comes before the typed one, and without an id, which is the typed one's."""
_CODES: Final[Mapping[str, Code]] = MappingProxyType({"kv": Code.KV_ERROR})
_IDS: Final = ("request_id", "client_request_id", "tunnel_id", "task_id", "subscription_id")
"""What a response repeats of its request."""


def error_response(error: RequestError, request_id: str = "") -> pb.DownstreamMessage:
    """Make the ErrorResponse for a refused request with this id, if there is one."""
    return pb.DownstreamMessage(
        error=pb.ErrorResponse(
            code=error.code,
            message=shortened(error.message, ERROR_TEXT_BYTES),
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms,
            request_id=request_id,
        )
    )


def shortened(text: str, most: int) -> str:
    """Cut a text between characters to at most `most` bytes of UTF-8."""
    if len(text) * 4 <= most or len(data := text.encode(errors="replace")) <= most:
        return text
    return data[: most - 3].decode(errors="ignore") + "…"


def refusal_of(case: str, payload: Any, text: str) -> list[pb.DownstreamMessage]:
    """Make a request's refusal: its failed response, an ErrorResponse, or both."""
    return _failed(ANSWERS.get(case, ""), payload, Code.INVALID_ARGUMENT, text)


def too_large(message: pb.DownstreamMessage, size: int) -> list[pb.DownstreamMessage]:
    """Make the refusal that replaces an answer too large for any client."""
    case = message.WhichOneof("payload") or ""
    text = f"the answer has {size} bytes, which is more than a client takes; ask for less at a time"
    return _failed(case, getattr(message, case), Code.PAYLOAD_TOO_LARGE, text)


def _failed(answer: str, about: Any, code: Code, text: str) -> list[pb.DownstreamMessage]:
    ids = {
        name: value for name in _IDS if (value := getattr(about, name, "")) and len(value.encode()) <= Limits.name_bytes
    }
    request_id = ids.get("client_request_id") or ids.get("request_id", "")
    error = RequestError(_CODES.get(answer, code), text)
    error_first = answer in _ERROR_FIRST
    answers = [] if answer in TYPED_ONLY else [error_response(error, "" if error_first else request_id)]
    if answer in ANSWERS.values() and (request_id or answer not in _ONLY_WITH_ID):
        message = pb.DownstreamMessage()
        response = getattr(message, answer)
        response.SetInParent()
        for name, value in ids.items():
            if name in response.DESCRIPTOR.fields_by_name:
                setattr(response, name, value)
        _EXPLAIN.get(answer, _explain)(response, error)
        answers.insert(len(answers) if error_first else 0, message)
    return answers


def _explain(response: Any, error: RequestError) -> None:
    fields = response.DESCRIPTOR.fields_by_name
    if "error_code" in fields:
        response.error_code, response.error_message = error.code, error.message
    elif "error" in fields:
        response.error = error.message


def _explain_proxy(response: pb.ProxyHttpResponse, error: RequestError) -> None:
    response.error.kind, response.error.message = pb.ProxyError.SIDECAR_UNAVAILABLE, error.message


def _explain_tunnel(response: pb.TunnelClose, error: RequestError) -> None:
    response.reason, response.detail = pb.TunnelClose.ERROR, error.message


_EXPLAIN: Final[Mapping[str, Callable[[Any, RequestError], None]]] = MappingProxyType(
    {"proxy_http_response": _explain_proxy, "tunnel_close": _explain_tunnel}
)
