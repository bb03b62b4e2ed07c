"""Graphs of workflows and states of machines as plain data, to be drawn.

    {"kind": "workflow", "id": …, "version": …, "nodes": [{"id", "kind", "about"}, …],
     "edges": [{"from", "to", "kind", "label"}, …]}

Nodes are in the order of the document. Fields that say nothing are left out. The kind of a step is
a key of its document (action, workflow, wait, ask, fail, continue_as) or compute; that of an edge
is depends_on, success, failure or error. The kind of a node of a machine is state, that of an edge
event or timeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

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


def graph_diagram(graph: Graph, statuses: Mapping[str, str], items: Mapping[str, Mapping[str, int]]) -> Diagram:
    """Return the steps and edges of a workflow, with statuses of an execution.

    `items` counts a step's items by their status.
    """
    nodes: list[Json] = []
    edges: list[Json] = []
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
        edges += _edges(graph, step)
    return {"kind": "workflow", "id": graph.id, "version": graph.version, "nodes": nodes, "edges": edges}


def _edges(graph: Graph, step: Step) -> list[Json]:
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


def _edge(before: str, after: str, kind: str, label: str = "") -> Json:
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
    """Return states and transitions of a machine; `current` is an instance's state."""
    nodes: list[Json] = []
    edges: list[Json] = []
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
                edges.append({**edge, "guarded": True} if transition.when is not None else edge)
        if state.timeout_action:
            edges.append(_edge(state.name, state.timeout_action, "timeout", f"after {state.timeout_ms / 1000:g} s"))
    return {"kind": "machine", "id": machine.id, "nodes": nodes, "edges": edges}
