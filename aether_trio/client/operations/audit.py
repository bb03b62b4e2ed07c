"""`agent.audit`: searches the gateway's audit log, and adds entries to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, authorization_context
from aether_trio.client.operations.records import Seconds, from_time, read
from aether_trio.wire.pb import aether_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One entry of the audit log. `metadata_json` is a JSON object."""

    audit_id: int
    timestamp: Seconds
    event_type: str
    actor_type: str
    actor_id: str
    resource_type: str
    resource_id: str
    operation: str
    workspace: str
    session_id: str
    gateway_id: str
    success: bool
    error_message: str
    metadata_json: str
    subject_type: str
    subject_id: str
    root_subject_type: str
    root_subject_id: str
    authority_mode: str
    root_authority_grant_id: str
    authority_grant_id: str
    parent_authority_grant_id: str
    source: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of audit entries, and how many there are in all."""

    entries: tuple[AuditEntry, ...]
    total: int


class Audit(Namespace):
    """Searches the gateway's audit log, and adds entries to it."""

    async def query(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        event_type: str = "",
        actor_type: str = "",
        actor_id: str = "",
        resource_type: str = "",
        resource_id: str = "",
        operation: str = "",
        workspace: str = "",
        only_failures: bool = False,
        subject_type: str = "",
        subject_id: str = "",
        authority_mode: str = "",
        authority_grant_id: str = "",
        exclude_actor_types: Sequence[str] = (),
        exclude_workspaces: Sequence[str] = (),
        exclude_service_direct: bool = False,
        limit: int = 0,
        offset: int = 0,
        authorization: Authorization | None = None,
    ) -> AuditPage:
        """List audit entries that fit every filter, by default 100, at most 500."""
        query = pb.AuditQuery(
            start_time=from_time(since),
            end_time=from_time(until),
            event_type=event_type,
            actor_type=actor_type,
            actor_id=actor_id,
            resource_type=resource_type,
            resource_id=resource_id,
            operation=operation,
            workspace=workspace,
            only_failures=only_failures,
            limit=limit,
            offset=offset,
            subject_type=subject_type,
            subject_id=subject_id,
            authority_mode=authority_mode,
            authority_grant_id=authority_grant_id,
            authorization=authorization_context(authorization),
            exclude_actor_types=exclude_actor_types,
            exclude_workspaces=exclude_workspaces,
            exclude_service_direct=exclude_service_direct,
        )
        answer: pb.AuditQueryResponse = await self._ask("audit_query", query)
        return AuditPage(tuple(read(AuditEntry, one) for one in answer.entries), answer.total_count)

    async def submit(
        self,
        operation: str,
        *,
        event_type: str = "custom",
        resource_type: str = "",
        resource_id: str = "",
        workspace: str = "",
        success: bool = True,
        error_message: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Add an audit entry of type message, kv, task or custom, by the caller, now."""
        event = pb.SubmitAuditEventRequest(
            event_type=event_type,
            operation=operation,
            resource_type=resource_type,
            resource_id=resource_id,
            workspace=workspace,
            success=success,
            error_message=error_message,
            metadata=dict(metadata or {}),
        )
        await self._ask("submit_audit_event", event)
