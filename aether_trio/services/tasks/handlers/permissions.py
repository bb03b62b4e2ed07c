"""Who may see and move a task (reference: tasks.md 6.1).

Its worker, wherever it is: the creator, who is another one, reached both workspaces. Of those whose credential reaches the task's workspace, its
creator, the user on whose behalf it is, and who manages the workspace. Anybody else is told what they would be told of a task that does
not exist. A worker that has lost a task may still ask for moves: the table of moves tells it that its assignment is over.

The moves of a worker (CLAIM, COMPLETE, FAIL, PAUSE, REJECT) are also for those that may be given a task that waits; who merely manages
the workspace needs an access rule of its own for them (WORK).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.tasks import Mode, Status, Task
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.handlers.sanitize import storable
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.session.session import Session
from aether_trio.storage.base import Database

NOT_FOUND = "task not found"
MANAGE = "task_op"
WORK = "task_work"
"""Operations, as access rules know them: to cancel, retry and resume tasks of others, and to do their workers' part."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `workspace` is the one the participant is in; `allowed`: an access rule has said yes.

    `reaches` says which workspaces its credential is good for; None: the one that it is in.
    """

    identity: Identity
    workspace: str
    allowed: bool = False
    reaches: Callable[[str], bool] | None = None

    @classmethod
    def of(cls, session: Session) -> Caller:
        """The participant of this session."""
        return cls(session.identity, session.workspace, reaches=session.allows_workspace)

    @property
    def name(self) -> str:
        return self.identity.text

    def can_reach(self, workspace: str) -> bool:
        """Whether it may touch anything there at all."""
        return workspace == self.workspace if self.reaches is None else self.reaches(workspace)


def is_party(task: Task, caller: Caller) -> bool:
    """Whether no access rule is needed."""
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


def may_be_given(task: Task, identity: Identity) -> bool:
    """Whether this participant is one that a task is for: its target, its creator, or a worker of its pool."""
    if task.task_type == AGENT_STARTUP:
        return False  # orchestration gives it to an orchestrator
    if task.mode is Mode.POOL:
        if identity.kind is Kind.SERVICE:
            return identity.implementation == task.target_implementation
        worker = identity.kind in (Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK)
        return worker and (identity.workspace, identity.implementation) == (task.workspace, task.target_implementation)
    return identity.text == (task.target if task.mode is Mode.TARGETED else task.creator)


def waits_for(task: Task, caller: Caller) -> bool:
    """Whether a task that nobody has may be given to this caller."""
    return task.status is Status.PENDING and may_be_given(task, caller.identity)


async def load_visible(
    database: Database, authorizer: Authorizer, session: Session, task_id: str, *, operation: str
) -> Task | None:
    """Load a task that the session may see; None otherwise. Raises StorageUnavailable."""
    task = await database.read_small(lambda: task_rows.load(storable(task_id)))
    caller = Caller.of(session)
    if task is None or is_party(task, caller):
        return task
    return task if await may(authorizer, caller, task.workspace, operation, AccessLevel.READ) else None


async def may(
    authorizer: Authorizer, caller: Caller, workspace: str, operation: str, level: AccessLevel = AccessLevel.MANAGE
) -> bool:
    """Whether an access rule lets this caller do that to the tasks of a workspace."""
    if (caller.workspace and caller.workspace != workspace) or not caller.can_reach(workspace):
        return False
    return (await authorizer.check_workspace(caller.identity, workspace, level, operation)).allowed
