"""Operations on the past of executions: replays, and moves to the newest version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.state import ExecutionStatus
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows import definitions, execution_rows
from aether_trio.services.workflows.asked import OperationAnswer, OperationAsked, OperationError, WorkspaceAccess
from aether_trio.services.workflows.compilation_thread import compile_in_thread
from aether_trio.services.workflows.definitions import StoredDefinition
from aether_trio.services.workflows.documents import read_json
from aether_trio.services.workflows.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions import TIMER, Executions
from aether_trio.services.workflows.json_values import write_json
from aether_trio.services.workflows.replay import Divergence, Replay, ReplayError
from aether_trio.services.workflows.stored_graphs import WORKFLOW, compile_stored, schema_problem
from aether_trio.services.workflows.waits import events_of
from aether_trio.storage.base import Program

REPLAY: Final = 113
"""Replays an execution on a document, or moves it to the newest version."""
_TRIES: Final = 5
"""Replays of an execution that moves on meanwhile."""


class PastOperations:
    """Performs operations on what has happened to executions."""

    def __init__(self, engine: Engine, executions: Executions, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._executions = executions
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {REPLAY: self._replay}
        )

    async def _replay(self, request: OperationAsked) -> OperationAnswer:
        """Replay on `document` of the data; else on the newest version, and move it there.

        The answer has `entries`, `version` (0 for a document) and `divergence`.
        """
        row = await self._execution(request)
        given = request.document
        unknown = sorted(set(given) - {"document", "dry_run"})
        if unknown:
            raise OperationError(f"unknown keys: {', '.join(map(shown, unknown))}")
        if "document" in given:
            try:
                graph, _ = await compile_in_thread(partial(read_json, WORKFLOW, given["document"]), len(request.data))
            except ValueError as error:
                raise OperationError(str(error)) from None
            assert isinstance(graph, Graph)
            return _answer(*(await self._replayed(row, graph)), 0)
        dry_run = given.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise OperationError("dry_run is true or false")
        if not dry_run:
            await self._access.need(request.session, row.workspace, AccessLevel.READWRITE)
        return await self._migrate(row, dry_run=dry_run)

    async def _execution(self, request: OperationAsked) -> ExecutionRow:
        row = await self._load(request.id)
        if row is None or await self._access.problem(request.session, row.workspace, AccessLevel.READ):
            raise OperationError(f"execution {shown(request.id)} not found")
        if row.kind != "graph":
            raise OperationError(f"execution {row.execution_id} is one of a function: its worker replays it")
        return row

    async def _load(self, execution_id: str) -> ExecutionRow | None:
        return await self._engine.database.read(lambda: execution_rows.load(execution_id))

    async def _replayed(self, row: ExecutionRow, graph: Graph) -> tuple[Replay, Divergence | None]:
        replay = Replay(self._engine.database.read, row, graph, schema_problem)
        try:
            return replay, await replay.run()
        except ReplayError as error:
            raise OperationError(f"execution {row.execution_id} cannot be replayed: {error}") from None

    async def _migrate(self, row: ExecutionRow, *, dry_run: bool) -> OperationAnswer:
        for _ in range(_TRIES):
            stored = await self._engine.database.read(partial(definitions.newest, row.workspace, row.workflow_id))
            if stored is None:
                raise OperationError(f"workflow {row.workflow_id} is deleted: there is no version to move to")
            if row.completed_ms and not dry_run:
                raise OperationError(f"execution {row.execution_id} has ended: it is {row.status}")
            graph = await compile_in_thread(partial(compile_stored, stored), len(stored.document))
            replay, divergence = await self._replayed(row, graph)
            same = (stored.workspace, stored.version) == (row.defined_in, row.version)
            if dry_run or divergence is not None or same:
                return _answer(replay, divergence, stored.version)
            if await self._move(row, stored, graph, replay):
                text = f"execution {row.execution_id} goes on with version {stored.version}"
                return _answer(replay, None, stored.version, text)
            current = await self._load(row.execution_id)
            if current is None:
                raise OperationError(f"execution {row.execution_id} not found")
            row = current
        raise OperationError(f"execution {row.execution_id} moves on faster than it is replayed: pause it before")

    async def _move(self, row: ExecutionRow, stored: StoredDefinition, graph: Graph, replay: Replay) -> bool:
        """Move an execution to a version, unless something has happened since its replay."""

        def program(context: Context) -> Program[tuple[TaskTransaction, bool]]:
            tx = TaskTransaction(context)
            current = yield from execution_rows.load(row.execution_id)
            if current is None or current.completed_ms or current.entries != replay.entries:
                return tx, False
            if (current.defined_in, current.version) != (row.defined_in, row.version):
                return tx, False
            state = replay.state
            if current.status == ExecutionStatus.PAUSED:
                state.status = ExecutionStatus.PAUSED
            current.state = write_json(state.to_json())
            current.defined_in, current.version, current.owner = stored.workspace, stored.version, stored.owner
            if current.due_ms != state.due_ms:
                current.due_ms = state.due_ms
                yield from execution_rows.set_timer(TIMER, row.execution_id, state.due_ms)
            if state.due_ms and not 0 < tx.effects.due_ms <= state.due_ms:
                tx.effects.due_ms = state.due_ms
            yield from execution_rows.save_version(current)
            yield from execution_rows.save(current)
            yield from self._executions.waits.begin(row.execution_id, row.workspace, events_of(graph))
            return tx, True

        _, moved = await self._engine.run_program(program, lambda result: result[0])
        return moved


def _answer(replay: Replay, divergence: Divergence | None, version: int, message: str = "") -> OperationAnswer:
    found: dict[str, Any] = {"entries": replay.entries, "version": version, "divergence": None}
    if divergence is not None:
        shown_divergence: dict[str, Json] = {
            "number": divergence.number,
            "step": divergence.step,
            "happening": divergence.happening,
            "recorded": divergence.recorded,
            "now": divergence.now,
        }
        found["divergence"] = shown_divergence
    return OperationAnswer(found, message)
