"""The gateway's dead letters: failed tasks that await an operator's decision.

The protocol cannot resolve one: the command line does it through the ops port (telemetry/ops.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.model.tasks import Move, MoveStep, StoredStatus, TaskRow
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.protobuf import resolved_by
from aether_trio.services.tasks.transaction import dead_messages, payloads, startup, task_rows
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Fetch, Program, Row

MAX_PAGE: Final = 1_000
_FIELDS: Final = "task_id, workspace, reason, error_type, attempts, buried_ms, resolved_ms, resolved_by, notes"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead task's reason and resolution. Times are Unix ms; `resolved_ms` 0: open."""

    task_id: str
    workspace: str
    reason: str
    error_type: str
    attempts: int
    buried_ms: int
    resolved_ms: int
    resolved_by: str
    notes: str


class DeadLetters:
    """Lists, requeues and resolves dead letters of tasks. Raises StorageUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def page(
        self, workspace: str = "", *, resolved: bool = False, after: str = "", limit: int = 100
    ) -> list[DeadLetter]:
        """Return dead letters after the task id `after`, of one workspace or of all."""
        where = "task_id > $1 AND (workspace = $2 OR $2 = '')" + ("" if resolved else " AND resolved_ms = 0")
        found = await self._engine.database.fetch(
            f"SELECT {_FIELDS} FROM task_dead_letters WHERE {where} ORDER BY task_id LIMIT $3",  # noqa: S608
            after,
            workspace,
            min(limit, MAX_PAGE),
        )
        return [DeadLetter(*row) for row in found]

    async def show(self, task_id: str) -> tuple[DeadLetter | None, TaskRow | None]:
        """Return the dead letter of a task and the task's row, as far as they exist."""

        def program() -> Program[tuple[DeadLetter | None, TaskRow | None]]:
            found: list[Row] = yield Fetch(f"SELECT {_FIELDS} FROM task_dead_letters WHERE task_id = $1", (task_id,))  # noqa: S608
            task = yield from task_rows.load(task_id)
            return (DeadLetter(*found[0]) if found else None), task

        return await self._engine.database.read(program)

    async def requeue(self, task_id: str, by: str) -> bool:
        """Retry a dead task; False if there is none, or it may not be tried again."""

        def retry(tx: TaskTransaction) -> Program[bool]:
            task = yield from task_rows.load(task_id)
            if task is None or task.status is not StoredStatus.DLQ:
                return tx.context.again  # an earlier run was committed
            if task.category == dead_messages.DEAD_MESSAGE:
                payload = yield from payloads.load(task_id)
                return isinstance((yield from dead_messages.requeue(tx, task, payload, by)), MoveStep)
            if task.task_type == AGENT_STARTUP and (yield from startup.reopen(tx, task)):
                return False  # its agent has a later start
            if (yield from tx.context.grants.retry_problem(task)):
                return False
            fresh = task.changed({"retry_count": 0})
            yield from task_rows.save(task, fresh)
            yield from task_rows.resolve_dead_letter(task_id, tx.context.now_ms, by, "requeued")
            yield from tx.apply(fresh, Move.RETRY, tx.facts(by))
            return True

        return await self._engine.result(retry)

    async def resolve(self, task_id: str, by: str, notes: str = "") -> bool:
        """Mark a task's dead letter as resolved; return False if there is no open one."""

        def mark(tx: TaskTransaction) -> Program[bool]:
            task = yield from task_rows.load(task_id)
            if task is None:
                return False
            if not (yield from task_rows.resolve_dead_letter(task_id, tx.context.now_ms, by, notes)):
                return tx.context.again  # an earlier run was committed
            yield from task_rows.save(task, resolved_by(task, by))
            return True

        return await self._engine.result(mark)
