"""Graphs of workflows and states of machines as plain data, to be drawn.

    {"kind": "workflow", "id": …, "version": …, "nodes": [{"id", "kind", "about"}, …],
     "edges": [{"from", "to", "kind", "label"}, …]}

A diagram that no client takes is not drawn to its end: names that a document has once are in each
of many edges. Nodes are in the order of the document. Fields that say nothing are left out. The
kind of a step is a key of its document (action, workflow, wait, ask, fail, continue_as) or compute;
that of an edge is depends_on, success, failure or error. The kind of a node of a machine is state,
that of an edge event or timeout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from aether_trio.model.workflows.definition import (
    Action,
    AskStep,
    CallWorkflow,
    ContinueAs,
    Fail,
    Graph,
    Json,
    MachineDefinition,
    Step,
    WaitFor,
    Work,
)

Diagram: TypeAlias = dict[str, Json]

_EDGE_BYTES: Final = len('{"from":"","to":"","kind":""},')
"""What an edge has as JSON besides its values."""


class DiagramTooLarge(ValueError):
    """A diagram has more bytes as JSON than a client takes."""

    def __init__(self) -> None:
        super().__init__(f"the diagram has more than {CLIENT_MESSAGE_BYTES} bytes, which is more than a client takes")


def graph_diagram(graph: Graph, statuses: Mapping[str, str], items: Mapping[str, Mapping[str, int]]) -> Diagram:
    """Return the steps and edges of a workflow, with statuses of an execution.

    `items` counts a step's items by their status. Raises DiagramTooLarge.
    """
    nodes: list[Json] = []
    edges: list[Json] = []
    size = 0
    for step in graph.steps.values():
        node = {
            "id": step.id,
            "kind": kind_of_work(step.work),
            "about": about_work(step.work),
            "for_each": step.for_each is not None,
            "while": step.while_ is not None,
            "compensated": step.compensate is not None,
            "status": statuses.get(step.id, ""),
            "items": dict(items.get(step.id, {})),
        }
        nodes.append({name: value for name, value in node.items() if value})
        found = _edges(graph, step)
        size = _checked_size(size, found)
        edges += found
    return {"kind": "workflow", "id": graph.id, "version": graph.version, "nodes": nodes, "edges": edges}


def _checked_size(size: int, edges: Sequence[dict[str, Any]]) -> int:
    """Return the least size with some more edges. Raises DiagramTooLarge."""
    size += sum(_EDGE_BYTES + len(one["from"]) + len(one["to"]) + len(one["kind"]) for one in edges)
    if size > CLIENT_MESSAGE_BYTES:
        raise DiagramTooLarge
    return size


def _edges(graph: Graph, step: Step) -> list[dict[str, Json]]:
    join = "any" if step.join == 1 and len(step.depends_on) > 1 else str(step.join) if step.join else ""
    found = [
        _edge(before, step.id, "depends_on", join)
        for before in step.depends_on
        if graph.steps[before].on_success != step.id
    ]
    if step.on_success:
        found.append(_edge(step.id, step.on_success, "success"))
    if step.on_failure:
        found.append(_edge(step.id, step.on_failure, "failure"))
    found += [_edge(step.id, one.run, "error", one.error) for one in step.on_error if one.run]
    return found


def _edge(before: str, after: str, kind: str, label: str = "") -> dict[str, Json]:
    return {"from": before, "to": after, "kind": kind, **({"label": label} if label else {})}


def kind_of_work(work: Work) -> str:
    """Return what a step is, as the key of its document says; else compute."""
    match work:
        case Action():
            return "action"
        case CallWorkflow():
            return "workflow"
        case WaitFor():
            return "wait"
        case AskStep():
            return "ask"
        case Fail():
            return "fail"
        case ContinueAs():
            return "continue_as"
    return "compute"


def about_work(work: Work) -> str:
    """Return in a word or two what a step does; "" where its kind says all."""
    match work:
        case Action():
            if work.event_name:
                return f"event {work.event_name}"
            if work.task_type:
                return f"task {work.task_type} for {work.target_implementation}"
            return f"{work.agent}: {work.tool_name}".removesuffix(": ")
        case CallWorkflow():
            return work.workflow
        case WaitFor() if work.signal or work.event:
            return f"signal {work.signal}" if work.signal else f"event {work.event}"
        case ContinueAs():
            return work.workflow
    return ""


def machine_diagram(machine: MachineDefinition, current: str = "") -> Diagram:
    """Return states and transitions of a machine; `current` is an instance's state.

    Raises DiagramTooLarge.
    """
    nodes: list[Json] = []
    edges: list[Json] = []
    size = 0
    for state in machine.states.values():
        node = {
            "id": state.name,
            "kind": "state",
            "initial": state.name == machine.initial_state,
            "terminal": state.terminal,
            "current": state.name == current,
        }
        nodes.append({name: value for name, value in node.items() if value})
        for event, transitions in state.on.items():
            for transition in transitions:
                edge = _edge(state.name, transition.to, "event", event)
                size = _checked_size(size, (edge,))
                edges.append({**edge, "guarded": True} if transition.when is not None else edge)
        if state.timeout_action:
            edges.append(_edge(state.name, state.timeout_action, "timeout", f"after {state.timeout_ms / 1000:g} s"))
    return {"kind": "machine", "id": machine.id, "nodes": nodes, "edges": edges}
