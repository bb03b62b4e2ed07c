"""Commits changes of authority with tasks; makes their audit events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from aether_trio.model.access.grants import Lineage, PrincipalKey
from aether_trio.model.access.requests import RequestRecord, RequestStatus
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.services.access import Actor
from aether_trio.services.access.changes import AccessChanges, Committed, Draft, OutdatedCheck
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Program

T = TypeVar("T")

DERIVE: Final = "authority_grant_derive"
REVOKE: Final = "authority_grant_revoke"


class AuditSink(Protocol):
    """Takes audit events that are not part of a change. Never waits."""

    def put(self, event: AuditEvent) -> None:
        """Queue an event to be written soon."""


async def commit_with_tasks(
    engine: Engine,
    changes: AccessChanges,
    program: Callable[[TaskTransaction, Draft], Program[T]],
    check: Callable[[], None] | None = None,
) -> Committed[T]:
    """Commit a change that moves tasks too; `check` and result: AccessChanges.commit.

    The moves of tasks decide on more rows than they lock, so this is one of the serializable
    transactions on tasks. It runs again if another change was committed since it began.

    Raises StorageUnavailable, and what `check` raises.
    """
    while True:
        known = None
        if check is not None:
            check()
            known = changes.version

        def page(tx: TaskTransaction, known: int | None = known) -> Program[tuple[Draft, T]]:
            draft = yield from tx.access_change()
            if known is not None and draft.version != known:
                raise OutdatedCheck(draft.version)
            return draft, (yield from program(tx, draft))

        try:
            draft, result = await engine.result(page)
        except OutdatedCheck as outdated:
            await changes.wait_settled(outdated.version)
            continue
        version = draft.version or draft.known
        missing = await changes.in_force(version) if version else ()
        return Committed(result, draft.version, missing)


def grant_event(
    operation: str, actor: Actor, lineage: Lineage | None, now_ms: int, *, grant_id: str = "", error: str = ""
) -> AuditEvent:
    """Make the audit event of an operation on a grant, or of its refusal."""
    who = PrincipalKey.of(actor.identity)
    event = grant_row(operation, who, actor.identity.workspace, lineage, now_ms, grant_id=grant_id)
    return replace(event, session_id=actor.session_id, success=not error, error_message=error)


def grant_row(
    operation: str, who: PrincipalKey, workspace: str, lineage: Lineage | None, now_ms: int, *, grant_id: str = ""
) -> AuditEvent:
    """Make the audit event of what a participant, or a task, has done with a grant."""
    event = AuditEvent(
        at_ms=now_ms,
        event_type=EventType.AUTHORIZATION,
        operation=operation,
        actor_type=who.type_name,
        actor_id=who.id,
        resource_type="authority_grant",
        resource_id=grant_id,
        workspace=workspace,
    )
    if lineage is None:
        return event
    grant = lineage[-1]
    terms = grant.terms
    return replace(
        event,
        resource_id=grant.grant_id,
        subject_type=grant.subject.type_name,
        subject_id=grant.subject.id,
        root_subject_type=grant.subject.type_name,
        root_subject_id=grant.subject.id,
        authority_grant_id=grant.grant_id,
        root_authority_grant_id=grant.root_id,
        parent_authority_grant_id=grant.parent_id,
        metadata={
            "delegate": str(grant.delegate),
            "max_access_level": int(terms.scope.level),
            "audience": f"{terms.audience.type_name}:{terms.audience.id}",
            "expires_at": terms.expires_ms // 1000,
            "reason": terms.reason,
            "exchange_mode": terms.metadata.get("exchange_mode", ""),
        },
    )


def refused_request_row(word: str, actor: Actor, request_id: str, now_ms: int, error: str) -> AuditEvent:
    """Make the audit event of a refused operation on an authority request."""
    who = PrincipalKey.of(actor.identity)
    return AuditEvent(
        at_ms=now_ms,
        event_type=EventType.AUTHORITY_REQUEST,
        operation=f"authority_request_{word}",
        actor_type=who.type_name,
        actor_id=who.id,
        resource_type="authority_request",
        resource_id=request_id[:256],
        workspace=actor.identity.workspace,
        session_id=actor.session_id,
        success=False,
        error_message=error,
    )


def request_event_row(record: RequestRecord, actor: Actor | None, now_ms: int) -> AuditEvent:
    """Make the audit event of an authority request's present state."""
    who = record.requester if actor is None else PrincipalKey.of(actor.identity)
    word = "created" if record.status.value == "pending" else record.status.value
    metadata: dict[str, object] = {
        "request_lifecycle_event": word,
        "request_id": record.request_id,
        "status": record.status.value,
        "requesting_actor_type": record.requester.type_name,
        "requesting_actor_id": record.requester.id,
        "routing_principal": str(record.route.principal or ""),
        "routing_capability": record.route.capability,
        "requested_access": record.wish.level.name,
        "duration_seconds": record.duration_s,
        "task_id": record.task_id,
        "audience_type": record.audience.type_name,
        "audience_id": record.audience.id,
        "resolution_reason": record.resolution_reason,
        "granted_grant_id": record.grant_id,
        "expires_at": record.expires_ms // 1000,
    }
    workspace = record.wish.workspaces[0] if record.wish.workspaces else ""
    if actor is not None and workspace and not actor.allows_workspace(workspace):
        workspace = actor.identity.workspace  # no log of a workspace out of reach
    # Without a subject it is for the authority of its approver.
    approver = record.resolved_by if record.status is RequestStatus.APPROVED else None
    subject = record.subject or approver or record.requester
    return AuditEvent(
        at_ms=now_ms,
        event_type=EventType.AUTHORITY_REQUEST,
        operation=f"authority_request_{word}",
        actor_type=who.type_name,
        actor_id=who.id,
        resource_type="authority_request",
        resource_id=record.request_id,
        workspace=workspace,
        session_id="" if actor is None else actor.session_id,
        metadata=metadata,
        subject_type=subject.type_name,
        subject_id=subject.id,
    )
