"""Operations on the past of executions: replays, moves to a version, and forks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.forks import ForkError, KeptPart, plan_fork
from aether_trio.model.workflows.state import ExecutionStatus, State
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.interface import Context, LargeError
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.actions.performer import KeyReused, operation_key, request_hash, take_key
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import read_json as read_data
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.documents.reader import read_json
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.advancing import TIMER, Executions
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.function_forks import plan_function_fork
from aether_trio.services.workflows.executions.new_executions import QUEUED, Begin, ForkOf, StartRefused
from aether_trio.services.workflows.executions.replay import Divergence, Replay, ReplayError
from aether_trio.services.workflows.executions.turns import read_state
from aether_trio.services.workflows.executions.waits import events_of
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.services.workflows.stored import definitions, timers
from aether_trio.services.workflows.stored.definitions import StoredDefinition
from aether_trio.services.workflows.stored.stored_graphs import WORKFLOW, compile_stored, schema_problem
from aether_trio.storage.base import Program

NEWEST: Final = "newest"
SAME: Final = "same"
REPLAY: Final = 113
"""Replays an execution on a document, or moves it to the newest version."""
FORK: Final = 114
"""Starts an execution with what another one has done, but for a step and what follows it."""
_TRIES: Final = 5
"""Replays of an execution that moves on meanwhile."""


class PastOperations:
    """Performs operations on what has happened to executions."""

    def __init__(self, engine: Engine, executions: Executions, access: WorkspaceAccess, ids: IdFactory) -> None:
        self._engine = engine
        self._ids = ids
        self._executions = executions
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {REPLAY: self._replay, FORK: self._fork}
        )

    async def _replay(self, request: OperationAsked) -> OperationAnswer:
        """Replay on `document` of the data; else on the newest version, and move it there.

        The answer has `entries`, `version` (0 for a document) and `divergence`.
        """
        row = await self._execution(request)
        if row.kind != "graph":
            raise OperationError(f"execution {row.execution_id} is one of a function: its worker replays it")
        given = await request.document()
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

    async def _fork(self, request: OperationAsked) -> OperationAnswer:
        """Start a fork: data has `from`, a step, and may have `input` and `version`.

        `secondary_id` is an idempotency key. The answer has `execution_id`, `kept`, and `undone`.
        """
        row = await self._execution(request)
        await self._access.need(request.session, row.workspace, AccessLevel.READWRITE)
        given = await request.json({})
        if not isinstance(given, dict) or not isinstance(given.get("from"), str) or not given["from"]:
            raise OperationError("data is a JSON object with `from`: the step from which on is done again")
        if unknown := sorted(set(given) - {"from", "input", "version"}):
            raise OperationError(f"unknown keys: {', '.join(map(shown, unknown))}")
        if given.get("version", SAME) not in (SAME, NEWEST):
            raise OperationError(f"version is {NEWEST}, or {SAME} for that of the execution")
        newest = given.get("version") == NEWEST
        task_id = self._ids.dated(self._engine.clock.now_ms())
        key = operation_key("fork", row.execution_id, request.secondary_id) if request.secondary_id else b""
        same = await in_json_thread(partial(request_hash, given), len(request.data)) if key else b""
        creator = request.session.identity.text
        of_function: KeptPart | None = None
        if row.kind != "graph" and row.status != QUEUED:
            try:
                of_function = await plan_function_fork(self._engine.database.read, row, given["from"])
            except ForkError as error:
                raise OperationError(str(error)) from None

        def program(context: Context) -> Program[tuple[TaskTransaction, str, KeptPart | None]]:
            tx = TaskTransaction(context)
            if context.small:
                raise LargeError
            if key and (other := (yield from take_key(tx, key, task_id, same))):
                return tx, other, None
            origin = yield from execution_rows.load(row.execution_id)
            if origin is None:
                raise OperationError(f"execution {row.execution_id} not found")
            if origin.status == QUEUED or (of_function is None and origin.kind != "graph"):
                raise OperationError(f"execution {row.execution_id} has not begun: there is nothing to keep of it")
            if newest:
                stored = yield from definitions.newest(origin.workspace, origin.workflow_id)
            else:
                stored = yield from definitions.load(origin.defined_in, origin.workflow_id, origin.version)
            if stored is None or not stored.active:
                raise OperationError(f"workflow {origin.workflow_id} is deleted: nothing begins with it any more")
            if stored.is_function is (of_function is None):
                kind = "a function" if stored.is_function else "a graph"
                raise OperationError(f"workflow {stored.id} is {kind} by now: fork on the version of the execution")
            if of_function is not None:
                kept = of_function
            else:
                graph = yield from self._executions.definitions.graph(stored.workspace, stored.id, stored.version)
                assert graph is not None
                kept = plan_fork(graph, State.from_json(read_state(origin.state)), given["from"])
            begin = Begin(
                given["input"] if "input" in given else read_data(origin.trigger_data),
                creator,
                origin.correlation_id,
                {"forked_from": origin.execution_id, "forked_at": given["from"]},
                fork=ForkOf(origin.execution_id, given["from"], kept),
            )
            yield from self._executions.start(tx, stored, origin.workspace, begin, task_id=task_id)
            both = () if origin.completed_ms else kept.undone
            return tx, task_id, kept._replace(undone=both)

        try:
            _, execution_id, kept = await self._engine.run_program(program, lambda result: result[0])
        except (StartRefused, ForkError, KeyReused) as error:
            raise OperationError(str(error)) from None
        found: dict[str, Any] = {"execution_id": execution_id}
        if kept is None:
            return OperationAnswer(found, f"execution {execution_id} had begun with this key")
        found |= {"kept": [*kept.whole, *kept.partly], "undone_by_both": list(kept.undone)}
        text = f"execution {execution_id} is a fork of {row.execution_id} from step {given['from']}"
        if kept.undone:
            text += (
                f"; {row.execution_id} goes on, and each of both undoes {', '.join(kept.undone)} if it fails: "
                "cancel one in time, or let what undoes it be idempotent"
            )
        return OperationAnswer(found, text)

    async def _execution(self, request: OperationAsked) -> ExecutionRow:
        row = await self._load(request.id)
        if row is None or await self._access.problem(request.session, row.workspace, AccessLevel.READ):
            raise OperationError(f"execution {shown(request.id)} not found")
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
                yield from timers.set_timer(TIMER, row.execution_id, state.due_ms)
            tx.effects.note_due(state.due_ms)
            yield from execution_rows.save_version(current)
            yield from execution_rows.save(current)
            yield from self._executions.waits.change(row.execution_id, row.workspace, tuple(events_of(graph)))
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
