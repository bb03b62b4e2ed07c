"""Decides which participants may see a task and change its status (tasks.md 6.1).

The worker of a task may, in any workspace. Of participants whose credential reaches the task's
workspace these may: the creator, the user on whose behalf it runs, and managers of the workspace.
Others are answered as if the task did not exist. A worker that has lost a task may still ask for
moves: the table of moves tells it that its assignment is over.

The moves of a worker (CLAIM, COMPLETE, FAIL, PAUSE, REJECT) are open to participants to which the
waiting task may be assigned. Managers of the workspace need an access rule for them (WORK).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.tasks import Mode, StoredStatus, TaskRow
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.text import storable
from aether_trio.services.access import Actor, Authorizer, GatewayActor
from aether_trio.services.tasks.audit_events import TaskAudit
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.session.session import Session
from aether_trio.storage.base import Database

NOT_FOUND = "task not found"
MANAGE = "task_op"
WORK = "task_work"
"""Operations in access rules: MANAGE cancels, retries and resumes, WORK makes a worker's moves."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A participant with a request on a task.

    `allowed`: it manages the workspace; `may_answer`: it may send inputs to the workspace's tasks.
    """

    identity: Identity
    workspace: str
    allowed: bool = False
    may_answer: bool = False
    reaches: Callable[[str], bool] | None = None
    """Whether the credential is good for a workspace; None: only for the caller's."""
    actor: Actor | None = None
    """The caller's session, for access rules; None: the gateway asks in its name."""

    @classmethod
    def of(cls, session: Session) -> Caller:
        """Make the caller of requests from this session."""
        return cls(session.identity, session.workspace, reaches=session.allows_workspace, actor=session)

    @property
    def name(self) -> str:
        return self.identity.text

    def can_reach(self, workspace: str) -> bool:
        """Return whether the caller's credential is good for this workspace."""
        return workspace == self.workspace if self.reaches is None else self.reaches(workspace)


def is_party(task: TaskRow, caller: Caller) -> bool:
    """Return whether a caller may see and move a task without an access rule."""
    if caller.name == task.assigned_to and caller.name != task.creator:
        return True
    if not caller.can_reach(task.workspace):
        return False
    if caller.name == task.creator:
        return True
    if caller.workspace and caller.workspace != task.workspace:
        return False
    user_id = caller.identity.user_id
    return bool(user_id) and task.subject_type.lower() == "user" and task.subject_id == user_id


def may_be_given(task: TaskRow, identity: Identity) -> bool:
    """Return whether a task may be assigned to this target, creator or pool worker."""
    if task.task_type == AGENT_STARTUP:
        return False  # a start is assigned to an orchestrator
    if task.mode is Mode.POOL:
        if identity.kind is Kind.SERVICE:
            return identity.implementation == task.target_implementation
        worker = identity.kind in (Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK)
        return worker and (identity.workspace, identity.implementation) == (task.workspace, task.target_implementation)
    return identity.text == (task.target if task.mode is Mode.TARGETED else task.creator)


def waits_for(task: TaskRow, caller: Caller) -> bool:
    """Return whether a task waits for a worker and may be assigned to this caller."""
    return task.status is StoredStatus.PENDING and may_be_given(task, caller.identity)


async def load_visible(
    database: Database,
    authorizer: Authorizer,
    session: Session,
    task_id: str,
    *,
    operation: str,
    audit: TaskAudit | None = None,
) -> TaskRow | None:
    """Load a task if the session may see it, else None. Raises StorageUnavailable.

    A refusal of a participant's request is recorded in `audit`.
    """
    task = await database.read_small(lambda: task_rows.load(storable(task_id)))
    caller = Caller.of(session)
    if task is None or is_party(task, caller):
        return task
    if await may(authorizer, caller, task.workspace, operation, AccessLevel.READ):
        return task
    if audit is not None:
        audit.denied(session, operation, task.task_id, task.workspace)
    return None


async def may(
    authorizer: Authorizer, caller: Caller, workspace: str, operation: str, level: AccessLevel = AccessLevel.MANAGE
) -> bool:
    """Return whether an access rule allows an operation on a workspace's tasks."""
    if (caller.workspace and caller.workspace != workspace) or not caller.can_reach(workspace):
        return False
    actor = caller.actor or GatewayActor(caller.identity)
    return (await authorizer.check_workspace(actor, workspace, level, operation)).allowed
