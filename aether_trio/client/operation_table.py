"""Table of all client operations: how each is answered, refused and repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from aether_trio.wire.pb import aether_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """How one kind of UpstreamMessage is answered, refused and repeated."""

    case: str
    namespace: str
    """The attribute of a client with its methods; "" for the client's own methods."""
    response: str = ""
    """The case of DownstreamMessage that answers it; "" when nothing does."""
    id_field: str = "request_id"
    """The field whose text the answer repeats."""
    success_field: str = "success"
    """The field of the response that is false for a refusal; "" when there is none."""
    repeatable: bool | frozenset[str] = False
    """Whether it may be sent again: always, or if its op begins with one of these."""
    repeatable_numbers: frozenset[int] = frozenset()
    """Ops that may be sent again, and which the descriptor of the protocol does not name."""
    keyed_numbers: frozenset[int] = frozenset()
    """Such ops that may be sent again if they have a `status_filter`, which is a key."""
    repeatable_with: str = ""
    """The field whose text, if any, makes the request safe to send again."""
    refused_without_id: bool = False
    """A refusal is an ErrorResponse without an id: only the order tells its cause."""
    continues_exchange: bool = False
    """It continues an exchange, so it is still sent to a gateway that drains."""

    def may_repeat(self, payload: Any) -> bool:
        """Return whether a request with this payload may be sent again after a reconnect."""
        if self.repeatable_with:
            return bool(getattr(payload, self.repeatable_with))
        if isinstance(self.repeatable, bool):
            return self.repeatable
        named = payload.DESCRIPTOR.fields_by_name["op"].enum_type.values_by_number.get(payload.op)
        if named is None:
            return payload.op in self.repeatable_numbers or (
                payload.op in self.keyed_numbers and bool(payload.status_filter)
            )
        return str(named.name).startswith(tuple(self.repeatable))


_BY_CLIENT_ID: Final = "client_request_id"
"""The `id_field` of operations whose `request_id` is what they are about."""
_READS: Final = frozenset({"GET", "LIST"})

_ROWS: Final = (
    Operation(case="send", namespace="", refused_without_id=True),
    Operation(case="switch_workspace", namespace="", refused_without_id=True),
    Operation(
        case="connection_status_request", namespace="sessions", response="connection_status_response",
        success_field="ok", repeatable=True,
    ),
    Operation(case="progress", namespace="progress", refused_without_id=True),
    Operation(case="kv_op", namespace="kv", response="kv", repeatable=_READS | {"SET_CARD"}),
    Operation(
        case="checkpoint_op", namespace="checkpoints", response="checkpoint",
        repeatable=_READS | {"LOAD", "SAVE", "DELETE"},
    ),
    # A refused creation is told twice: by an ErrorResponse without an id, and by the response
    # behind it.
    Operation(
        case="create_task", namespace="tasks", response="create_task", refused_without_id=True,
        repeatable_with="idempotency_key",
    ),
    Operation(case="task_query", namespace="tasks", response="task_query", repeatable=_READS),
    Operation(case="task_op", namespace="tasks", response="task_op", repeatable=_READS | {"CLAIM"}),
    Operation(
        case="task_subscription_op", namespace="tasks", response="task_subscription_response",
        id_field=_BY_CLIENT_ID, repeatable=_READS,
    ),
    Operation(case="session_op", namespace="sessions", response="session_response", repeatable=_READS),
    Operation(case="workspace_op", namespace="workspaces", response="workspace", repeatable=_READS),
    Operation(case="agent_op", namespace="registry", response="agent", repeatable=_READS),
    Operation(case="admin_query", namespace="gateway", response="admin", repeatable=_READS),
    Operation(
        case="acl_op", namespace="rules", response="acl", repeatable=_READS | {"QUERY_AUDIT", "EXPLAIN_ACCESS"}
    ),
    Operation(case="access_check", namespace="access", response="access_check_response", repeatable=True),
    Operation(case="batch_access_check", namespace="access", response="batch_access_check_response", repeatable=True),
    Operation(case="token_op", namespace="tokens", response="token", repeatable=_READS),
    Operation(case="audit_query", namespace="audit", response="audit_response", repeatable=True),
    Operation(
        case="submit_audit_event", namespace="audit", response="submit_audit_event_response", id_field=_BY_CLIENT_ID
    ),
    Operation(
        case="authority_grant_op", namespace="grants", response="authority_grant",
        repeatable=_READS | {"DERIVE_FOR_TARGET"},
    ),
    Operation(
        case="resolve_authority_request", namespace="grants", response="resolve_authority_response",
        success_field="ok", repeatable=True,
    ),
    Operation(
        case="authority_request_op", namespace="authority_requests", response="authority_request_response",
        id_field=_BY_CLIENT_ID, repeatable=_READS,
    ),
    Operation(
        case="workflow_op", namespace="workflow", response="workflow_response", repeatable=_READS,
        repeatable_numbers=frozenset({100, 101, 105, 114}),  # RUN, SIGNAL, FORK: with keys; HISTORY
        keyed_numbers=frozenset({109}),  # CHANGE_WEBHOOK: a rotation
    ),
    Operation(case="workflow_response", namespace="workflow", continues_exchange=True),
    # The errors of a proxied response are those of the service.
    Operation(case="proxy_http_request", namespace="proxy", response="proxy_http_response", success_field=""),
    Operation(case="proxy_http_response", namespace="proxy", continues_exchange=True),
    Operation(case="proxy_http_body_chunk", namespace="proxy", refused_without_id=True, continues_exchange=True),
    Operation(case="tunnel_open", namespace="tunnels"),
    Operation(case="tunnel_data", namespace="tunnels", continues_exchange=True),
    Operation(case="tunnel_ack", namespace="tunnels", refused_without_id=True, continues_exchange=True),
    Operation(case="tunnel_close", namespace="tunnels", continues_exchange=True),
)  # fmt: skip

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType({row.case: row for row in _ROWS})
"""The rows by their case of UpstreamMessage."""

RESPONSES: Final[Mapping[str, Operation]] = MappingProxyType({row.response: row for row in _ROWS if row.response})
"""The rows by the case of DownstreamMessage that answers them."""


def operation_of(message: pb.UpstreamMessage) -> Operation | None:
    """Return the table row of a message; None for InitConnection and an empty one."""
    return OPERATIONS.get(message.WhichOneof("payload") or "")
