"""Records who was refused a task, and which task tokens were made, for the audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.clock import Clock
from aether_trio.session.session import Session


def _put_nothing(_: AuditEvent) -> None:
    return None


@dataclass(frozen=True, slots=True)
class TaskAudit:
    """Makes the audit events of requests on tasks and gives them to `put`."""

    clock: Clock
    put: Callable[[AuditEvent], None] = _put_nothing

    def denied(self, session: Session, request: str, task_id: str, workspace: str) -> None:
        """Record that a request on a task was refused, as if the task did not exist."""
        self.put(
            self._event(
                session,
                "task_authz_denied",
                task_id,
                workspace,
                error=f"{request}: access denied",
                metadata={"request": request},
            )
        )

    def token_made(self, session: Session, task_id: str, workspace: str, target: str, problem: str = "") -> None:
        """Record that a task's token for `target` was made, or why it was not."""
        self.put(
            self._event(
                session, "task_token_issue", task_id, workspace, error=problem, metadata={"target_identity": target}
            )
        )

    def _event(
        self, session: Session, operation: str, task_id: str, workspace: str, *, error: str, metadata: dict[str, object]
    ) -> AuditEvent:
        identity = session.identity
        return AuditEvent(
            at_ms=self.clock.now_ms(),
            event_type=EventType.TASK,
            operation=operation,
            actor_type=identity.type_name,
            actor_id=identity.canonical_id,
            resource_type="task",
            resource_id=task_id,
            workspace=workspace,
            session_id=session.session_id,
            success=not error,
            error_message=error,
            metadata=metadata,
        )
