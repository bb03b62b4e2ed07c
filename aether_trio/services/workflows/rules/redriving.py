"""Acts again on what the dead letters of workflows are about: REDRIVE.

A page of letters is tried again, oldest first, each in one transaction that also resolves or buries
it: so each acts once, whatever is killed. Letters that are made meanwhile are not of the same call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.containment import report
from aether_trio.model.tasks import Move, StoredStatus, TaskRow
from aether_trio.model.text import line, shown
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.actions.action_dead_letters import ACTION_FAILED
from aether_trio.services.workflows.actions.event_dead_letters import (
    EVENT_FAILED,
    MACHINE_FAILED,
    RULE_FAILED,
    TRIGGER_FAILED,
)
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.storage.base import Fetch, Program, Row, StorageUnavailable, placeholders
from aether_trio.wire.pb import aether_pb2 as pb

REDRIVE: Final = 116
PAGE: Final = 50
"""Letters that one call acts on; so many are looked at, too."""
REASON_SHOWN: Final = 300
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "rule": (RULE_FAILED,),
    "workflow": (TRIGGER_FAILED,),
    "machine": (MACHINE_FAILED, ACTION_FAILED),
    "join": (ACTION_FAILED,),
}
"""Types of dead letters by what has failed."""
_ALL: Final = (RULE_FAILED, TRIGGER_FAILED, MACHINE_FAILED, EVENT_FAILED, ACTION_FAILED)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which letters are meant: those of a kind and name, or all, between two ids."""

    workspace: str
    kind: str
    name: str
    since_ms: int
    after: str
    until: str


class RedriveOperations:
    """Performs REDRIVE; `table` has it by its number."""

    def __init__(self, engine: Engine, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {REDRIVE: self._redrive}
        )

    async def _redrive(self, request: OperationAsked) -> OperationAnswer:
        """Act again on a page of dead letters.

        The answer has `acted`, `refused` ({task_id, reason} of each that is dead again), and, if
        there are more, `after` and `until` for the next call.
        """
        workspace = request.own_workspace
        await self._access.need(request.session, workspace)
        asked = _read(await request.document(), workspace)
        if not asked.until:
            asked = _Asked(
                workspace, asked.kind, asked.name, asked.since_ms, asked.after, (await self._newest(workspace))
            )
        found = await self._engine.database.read(lambda: _page(asked))
        refused: list[dict[str, str]] = []
        acted = 0
        for task in found:
            if not _is_meant(task, asked):
                continue
            problem = await self._again(task.task_id, request.session.identity.text)
            if problem is None:
                continue
            if problem:
                refused.append({"task_id": task.task_id, "reason": line(problem, REASON_SHOWN)})
            else:
                acted += 1
        answer: dict[str, Any] = {"acted": acted, "refused": refused}
        if len(found) == PAGE:
            answer |= {"after": found[-1].task_id, "until": asked.until}
        return OperationAnswer(answer, f"{acted} dead letters have acted, {len(refused)} are dead again")

    async def _newest(self, workspace: str) -> str:
        def program() -> Program[str]:
            rows: list[Row] = yield Fetch(
                "SELECT MAX(task_id) FROM task_dead_letters WHERE workspace = $1 AND resolved_ms = 0", (workspace,)
            )
            return rows[0][0] or ""

        return await self._engine.database.read(program)

    async def _again(self, task_id: str, by: str) -> str | None:
        """Act on a letter; return why it is dead again, or "".

        None: another call has acted on it.
        """

        def program(context: Context) -> Program[tuple[TaskTransaction, str | None]]:
            tx = TaskTransaction(context)
            task = yield from task_rows.load(task_id)
            if task is None or task.status is not StoredStatus.DLQ:
                return tx, "" if context.again else None  # or another one was faster
            decision = yield from tx.apply(task, Move.RETRY, tx.facts(by))
            after = yield from task_rows.load(task_id)
            if after is not None and after.status is StoredStatus.DLQ:
                return tx, after.error
            return tx, getattr(decision, "text", "")

        try:
            _, problem = await self._engine.run_program(program, lambda result: result[0])
        except StorageUnavailable:
            raise
        except Exception as error:
            report(error, f"the dead letter {task_id}, on which a client acts again")
            return f"a defect of the gateway: {error}"
        return problem


def _read(document: Mapping[str, Any], workspace: str) -> _Asked:
    """Read what is asked for. Raises OperationError."""
    unknown = sorted(set(document) - {*KINDS, "all", "since", "after", "until"})
    if unknown:
        raise OperationError(f"unknown keys: {', '.join(map(shown, unknown))}")
    kinds = [kind for kind in KINDS if kind in document]
    if len(kinds) + (document.get("all") is True) != 1:
        raise OperationError(f'say which dead letters: {{"all": true}}, or the name of one of {", ".join(KINDS)}')
    for name in (*kinds, "after", "until"):
        if not isinstance(document.get(name, ""), str) or "\0" in document.get(name, ""):
            raise OperationError(f"{name} is a text")
    since_ms = 0
    if "since" in document:
        try:
            since = datetime.fromisoformat(document["since"])
            if since.tzinfo is None:
                raise ValueError
        except (TypeError, ValueError):
            raise OperationError("since is a moment such as 2026-11-29T06:00:00Z") from None
        since_ms = round(since.timestamp() * 1000)
    kind = kinds[0] if kinds else ""
    name = document[kind] if kind else ""
    return _Asked(workspace, kind, name, since_ms, document.get("after", ""), document.get("until", ""))


def _page(asked: _Asked) -> Program[list[TaskRow]]:
    """Load a page of open dead letters of these types, by their ids."""
    types = KINDS.get(asked.kind, _ALL)
    rows: list[Row] = yield Fetch(
        "SELECT d.task_id FROM task_dead_letters d JOIN tasks t ON t.task_id = d.task_id "  # noqa: S608
        "WHERE d.workspace = $1 AND d.resolved_ms = 0 AND d.task_id > $2 AND d.task_id <= $3 AND d.buried_ms >= $4 "
        f"AND t.status = 'dlq' AND t.task_type IN ({placeholders(len(types), 6)}) ORDER BY d.task_id LIMIT $5",
        (asked.workspace, asked.after, asked.until, asked.since_ms, PAGE, *types),
    )
    found: list[TaskRow] = []
    for (task_id,) in rows:
        task = yield from task_rows.load(task_id)
        if task is not None:
            found.append(task)
    return found


def _is_meant(task: TaskRow, asked: _Asked) -> bool:
    if not asked.kind:
        return True
    metadata = pb.CreateTaskRequest.FromString(task.spec).metadata
    if task.task_type == ACTION_FAILED:
        return metadata.get(asked.kind) == asked.name
    return asked.name in (metadata.get("name"), metadata.get(asked.kind))
