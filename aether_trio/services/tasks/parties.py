"""Who may see and move a task (reference: tasks.md 6.1).

Its creator and its worker, wherever they are; the user on whose behalf it is; and whoever manages its workspace. Anybody else is told
what they would be told of a task that does not exist. A worker that has lost a task may still ask for moves: the table of moves tells
it that its assignment is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity
from aether_trio.model.tasks.task import Task
from aether_trio.services.access import Authorizer

NOT_FOUND = "task not found"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `workspace` is the one the participant is in; `allowed`: an access rule has said yes."""

    identity: Identity
    workspace: str
    allowed: bool = False

    @property
    def name(self) -> str:
        return self.identity.text


def is_party(task: Task, caller: Caller) -> bool:
    """Whether no access rule is needed."""
    if caller.name in (task.creator, task.assigned_to):
        return True
    if caller.workspace and caller.workspace != task.workspace:
        return False
    user_id = caller.identity.user_id
    return bool(user_id) and task.subject_type.lower() == "user" and task.subject_id == user_id


async def may(
    authorizer: Authorizer, caller: Caller, workspace: str, operation: str, level: AccessLevel = AccessLevel.MANAGE
) -> bool:
    """Whether an access rule lets this caller do that to the tasks of a workspace."""
    if caller.workspace and caller.workspace != workspace:
        return False
    return (await authorizer.check_workspace(caller.identity, workspace, level, operation)).allowed
