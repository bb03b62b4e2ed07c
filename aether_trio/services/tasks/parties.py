"""Who may see and move a task (reference: tasks.md 6.1).

Its worker, wherever it is: the creator, who is another one, reached both workspaces. Of those whose credential reaches the task's workspace, its
creator, the user on whose behalf it is, and who manages the workspace. Anybody else is told what they would be told of a task that does
not exist. A worker that has lost a task may still ask for moves: the table of moves tells it that its assignment is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity
from aether_trio.model.tasks.task import Task
from aether_trio.services.access import Authorizer
from aether_trio.session.session import Session

NOT_FOUND = "task not found"


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


async def may(
    authorizer: Authorizer, caller: Caller, workspace: str, operation: str, level: AccessLevel = AccessLevel.MANAGE
) -> bool:
    """Whether an access rule lets this caller do that to the tasks of a workspace."""
    if (caller.workspace and caller.workspace != workspace) or not caller.can_reach(workspace):
        return False
    return (await authorizer.check_workspace(caller.identity, workspace, level, operation)).allowed
