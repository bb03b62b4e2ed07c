"""Handles `checkpoint_op` for keys that belong to tasks.

| key | operations | for |
|---|---|---|
| `_task:TASK_ID`, `_task:TASK_ID@NUMBER` | SAVE, LOAD: the state of the task | its current worker; with a number, that assignment alone |
| `_result:TASK_ID` | LOAD: the checkpoint that is the task's result | those who may see the task |

So a former worker, or a process of the same name that has lost the task, overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.result import MAX_KEY_BYTES, ResultKind
from aether_trio.model.tasks.status import HELD, WAITING
from aether_trio.model.text import shown, storable
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers.permissions import NOT_FOUND, load_visible
from aether_trio.services.tasks.handlers.sessions import TaskSessions
from aether_trio.services.tasks.protobuf import named
from aether_trio.services.tasks.transaction import results, states, task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.session import Session
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.pb import aether_pb2 as pb

RESULT_PREFIX: Final = "_result:"
Op = pb.CheckpointOperation
Load = Callable[[Identity, pb.CheckpointOperation], Awaitable[pb.CheckpointResponse]]
"""Performs an operation on the checkpoints of an identity (CheckpointService.handle)."""


class SavedStates:
    """Saves and loads states of tasks, and loads results that are checkpoints."""

    def __init__(self, engine: Engine, sessions: TaskSessions, authorizer: Authorizer) -> None:
        self._engine = engine
        self._sessions = sessions
        self._authorizer = authorizer

    async def handle(
        self, session: Session, op: pb.CheckpointOperation, load: Load, data_bytes: int
    ) -> pb.CheckpointResponse | None:
        """Answer an operation on a key that belongs to a task; None for another key."""
        if not op.key.startswith((states.PREFIX, RESULT_PREFIX)):
            return None
        answer = pb.CheckpointResponse(request_id=op.request_id)
        if len(op.key) > MAX_KEY_BYTES:
            answer.error = f"the checkpoint key has {len(op.key)} characters; at most {MAX_KEY_BYTES} bytes are allowed"
            return answer
        try:
            await self._sessions.wait_written(session)
            if op.key.startswith(RESULT_PREFIX):
                return await self._load_result(session, op, load, answer)
            answer.error = await self._operate(session, op, answer, data_bytes)
        except StorageUnavailable as error:
            answer.error = str(outage(error))
        answer.success = not answer.error
        return answer

    async def _operate(
        self, session: Session, op: pb.CheckpointOperation, answer: pb.CheckpointResponse, data_bytes: int
    ) -> str:
        """Save or load the state of a task; return why not."""
        task_id, number = named(storable(op.key.removeprefix(states.PREFIX)))
        name = session.identity.text
        if op.op == Op.SAVE:
            if len(op.data) > data_bytes:
                return f"the state has {len(op.data)} bytes; at most {data_bytes} are allowed"
            saved_s = self._engine.clock.now_ms() // 1000

            def save(context: Context) -> Program[tuple[str, TaskTransaction]]:
                return _save(context, task_id, name, number, op.data, saved_s)

            problem, _ = await self._engine.run_program(save, lambda done: done[1], key=task_id)
            if not problem:
                answer.saved_at = saved_s
            return problem
        if op.op != Op.LOAD:
            return "the state of a task is saved and loaded; it is deleted with the task"
        task = await self._engine.database.read_small(lambda: task_rows.load(task_id))
        if problem := _problem(task, name, number):
            return problem
        if found := await self._engine.database.read(lambda: states.load(task_id)):
            answer.data, answer.saved_at = found
        return ""

    async def _load_result(
        self, session: Session, op: pb.CheckpointOperation, load: Load, answer: pb.CheckpointResponse
    ) -> pb.CheckpointResponse:
        database = self._engine.database
        task_id = op.key.removeprefix(RESULT_PREFIX)
        task = await load_visible(
            database, self._authorizer, session, task_id, operation="task_query", audit=self._engine.audit
        )
        if op.op != Op.LOAD or task is None:
            answer.error = NOT_FOUND if op.op == Op.LOAD else "the result of a task is only loaded"
            return answer
        result = await database.read(lambda: results.load(task))
        if result is None or result.kind is not ResultKind.CHECKPOINT:
            answer.error = "the task has no result that is a checkpoint"
            return answer
        key = result.data.decode()
        if key == states.key_of(task.task_id):
            if found := await database.read(lambda: states.load(task.task_id)):
                answer.data, answer.saved_at = found
                answer.success = True
        else:
            try:
                owner = Identity.parse(task.assigned_to, strict=False)
            except IdentityError:
                answer.error = NOT_FOUND
                return answer
            answer = await load(owner, pb.CheckpointOperation(op=Op.LOAD, key=key, request_id=op.request_id))
        if not answer.saved_at and not answer.error:
            answer.success = False
            answer.error = (
                f"the result is the checkpoint {shown(key)} of {task.assigned_to}, which is not there (any more)"
            )
        return answer


def _save(
    context: Context, task_id: str, worker: str, number: int, data: bytes, saved_s: int
) -> Program[tuple[str, TaskTransaction]]:
    """Write the state of a task for its worker; return why not."""
    tx = TaskTransaction(context)
    task = yield from tx.load(task_id)
    problem = _problem(task, worker, number)
    if task is None or problem:
        return problem, tx
    yield from states.write(task_id, data, saved_s, small=context.small)
    if not states.has_state(task):
        yield from tx.write(task, task.changed({"checkpoint_key": states.key_of(task_id)}), "")
    return "", tx


def _problem(task: TaskRow | None, worker: str, number: int) -> str:
    """Return why a participant may not save or load the state of a task; "" if it may."""
    if task is None:
        return NOT_FOUND
    if task.assigned_to != worker or task.status not in HELD | WAITING:
        # A former worker is told so; to others the task does not exist.
        return "this assignment is over: the task is not this worker's" if number else NOT_FOUND
    if number and number != task.epoch:
        return f"this assignment is over: the task was assigned anew ({task.epoch}, yours was {number})"
    return ""
