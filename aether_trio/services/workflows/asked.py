"""What operations on workflows share: request, answer and check of access."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.services.access import Authorizer
from aether_trio.services.workflows.definitions import EVERYWHERE
from aether_trio.services.workflows.json_values import read_json
from aether_trio.session.session import Session


class OperationError(Exception):
    """An operation on workflows is refused; the text is the answer's error."""


class OperationAnswer(NamedTuple):
    """The answer to an operation: a JSON value (bytes: encoded), or a message alone."""

    data: Any = None
    message: str = ""
    total: int = 0


@dataclass(frozen=True, slots=True)
class OperationAsked:
    """An operation as asked for; `workspace` "" is that of the caller."""

    session: Session
    op: int
    id: str = ""
    secondary_id: str = ""
    workspace: str = ""
    data: bytes = b""
    status: str = ""

    def json(self, default: Any) -> Any:
        """Return the JSON that came with it, numbers as floats. Raises OperationError."""
        if not self.data:
            return default
        try:
            return read_json(self.data)
        except (ValueError, RecursionError) as error:
            raise OperationError(f"data is not JSON: {shown(str(error))}") from None

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object that came with it; {} without any. Raises OperationError."""
        if not self.data:
            return {}
        try:
            found = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise OperationError(f"data is not JSON: {shown(str(error))}") from None
        if not isinstance(found, dict):
            raise OperationError("data is not a JSON object")
        return found

    @property
    def own_workspace(self) -> str:
        """The workspace that it names, or that of the caller."""
        return self.workspace or self.session.workspace or EVERYWHERE


class WorkspaceAccess:
    """Checks what the caller of an operation may do in a workspace."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def problem(self, session: Session, workspace: str, level: AccessLevel) -> str:
        """Return why a session may not act in a workspace at a level; "" if it may."""
        if not session.allows_workspace(workspace):
            return f"this credential does not reach workspace {workspace}"
        decision = await self._authorizer.check_workspace(session, workspace, level, "workflow_op")
        return "" if decision.allowed else decision.reason

    async def need(self, session: Session, workspace: str, level: AccessLevel = AccessLevel.READWRITE) -> None:
        """Raise OperationError if a session may not act in a workspace at a level."""
        if problem := await self.problem(session, workspace, level):
            raise OperationError(f"ERR_PERMISSION_DENIED: {problem}")

    async def visible(self, asked: OperationAsked) -> tuple[str, ...]:
        """Return the workspaces whose things a list shows: the one that is named, and *."""
        workspace = asked.own_workspace
        await self.need(asked.session, workspace, AccessLevel.READ)
        if workspace == EVERYWHERE:
            return (EVERYWHERE,)
        others = await self.problem(asked.session, EVERYWHERE, AccessLevel.READ)
        return (workspace,) if others else (workspace, EVERYWHERE)
