"""Makes the audit events of decisions on access and of changes of access data."""

from __future__ import annotations

from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.services.access.authorizer import Actor, Authority

ACL: EventType = EventType.ACL


def change_event(
    actor: Actor,
    authority: Authority,
    operation: str,
    resource_type: str,
    resource_id: str,
    *,
    now_ms: int,
    **metadata: object,
) -> AuditEvent:
    """Make the event of a change of access data by an actor."""
    identity = actor.identity
    grant = authority.grant
    subject = (identity.type_name, identity.canonical_id) if grant is None else grant.subject
    root = subject if grant is None else grant.root_subject
    return AuditEvent(
        at_ms=now_ms,
        event_type=ACL,
        operation=operation,
        actor_type=identity.type_name,
        actor_id=identity.canonical_id,
        resource_type=resource_type,
        resource_id=resource_id,
        workspace=resource_id if resource_type == "workspace" else identity.workspace,
        session_id=actor.session_id,
        metadata=metadata,
        subject_type=subject[0],
        subject_id=subject[1],
        root_subject_type=root[0],
        root_subject_id=root[1],
        authority_mode="direct" if grant is None else "on_behalf_of",
        authority_grant_id=authority.grant_id,
        root_authority_grant_id="" if grant is None else grant.root_grant_id,
    )
