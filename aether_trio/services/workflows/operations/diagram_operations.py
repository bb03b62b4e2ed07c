"""DIAGRAM: graphs of workflows and executions, and states of machines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Graph
from aether_trio.model.workflows.diagrams import DiagramTooLarge, graph_diagram
from aether_trio.model.workflows.happenings import StepPlace
from aether_trio.model.workflows.state import GraphState
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.execution_view import item_counts
from aether_trio.services.workflows.executions.functions import FUNCTION
from aether_trio.services.workflows.executions.turns import read_state
from aether_trio.services.workflows.machines.machine_operations import MachineOperations
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.definitions import StoredDefinition
from aether_trio.services.workflows.stored.stored_graphs import compile_stored

DIAGRAM: Final = 115
"""Returns the nodes and edges of a workflow, execution, machine or instance."""
KINDS: Final = ("workflow", "execution", "machine", "instance")


class DiagramOperations:
    """Answers DIAGRAM; `secondary_id` says what `id` names, by default a workflow."""

    def __init__(self, engine: Engine, machines: MachineOperations, access: WorkspaceAccess) -> None:
        self._engine = engine
        self._machines = machines
        self._access = access
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {DIAGRAM: self._diagram}
        )

    async def _diagram(self, asked: OperationAsked) -> OperationAnswer:
        match asked.secondary_id or "workflow":
            case "workflow":
                return OperationAnswer(await self._of_workflow(asked))
            case "execution":
                return OperationAnswer(await self._of_execution(asked))
            case "machine":
                return OperationAnswer(await self._machines.diagram(asked))
            case "instance":
                return OperationAnswer(await self._machines.instance_diagram(asked))
        raise OperationError(f"secondary_id is one of {', '.join(KINDS)}, and not {shown(asked.secondary_id)}")

    async def _of_workflow(self, asked: OperationAsked) -> bytes:
        workspace = asked.own_workspace
        stored = await self._engine.database.read(partial(definitions.newest, workspace, asked.id, also_inactive=True))
        if stored is None or await self._access.problem(asked.session, stored.workspace, AccessLevel.READ):
            raise OperationError(f"workflow {shown(asked.id)} not found in workspace {shown(workspace)}")
        return await _drawn(stored, GraphState.new(), {"workspace": stored.workspace})

    async def _of_execution(self, asked: OperationAsked) -> bytes:
        row: ExecutionRow | None = await self._engine.database.read(partial(execution_rows.load, asked.id))
        if row is None or await self._access.problem(asked.session, row.workspace, AccessLevel.READ):
            raise OperationError(f"execution {shown(asked.id)} not found")
        place = row.defined_in, row.workflow_id, row.version
        stored = await self._engine.database.read(partial(definitions.load, *place))
        if stored is None:
            raise OperationError(f"version {row.version} of workflow {row.workflow_id} is gone")
        state = GraphState.new() if row.kind == FUNCTION else GraphState.from_json(read_state(row.state))
        about = {"workspace": row.workspace, "execution_id": row.execution_id, "status": row.status}
        return await _drawn(stored, state, about)


async def _drawn(stored: StoredDefinition, state: GraphState, about: dict[str, Any]) -> bytes:
    if stored.is_function:
        raise OperationError(f"workflow {stored.id} is a function: it has no graph of steps")
    graph = await compile_in_thread(partial(compile_stored, stored), len(stored.document))
    try:
        return await in_json_thread(partial(_written, graph, state, about), len(stored.document))
    except DiagramTooLarge as error:
        raise OperationError(f"{error}: get the workflow") from None


def _written(graph: Graph, state: GraphState, about: dict[str, Any]) -> bytes:
    statuses: dict[str, str] = {}
    if state.started_ms:
        statuses = {step: state.step_status(StepPlace(step)) for step in graph.steps}
    items = {step: item_counts(progress) for step, progress in state.steps.items()}
    return write_json({**graph_diagram(graph, statuses, items), **about})
