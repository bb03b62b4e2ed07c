"""Draws a workflow as a Mermaid flowchart, with the states of an execution."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from aether_trio.cli import exits

if TYPE_CHECKING:
    from aether_trio.model.workflows.definition import Graph, Step

_OTHER: Final = re.compile(r"[^A-Za-z0-9_.,:()*?+/ -]")
_SHAPES: Final = {"ask": ('{{"', '"}}'), "workflow": ('[["', '"]]'), "wait": ('(["', '"])')}
_BOX: Final = ('["', '"]')
_COLOURS: Final = {
    "running": "#cfe8ff",
    "waiting": "#fff3bf",
    "completed": "#d3f9d8",
    "failed": "#ffd6d6",
    "skipped": "#eeeeee",
    "cancelled": "#e0e0e0",
    "compensated": "#e5dbff",
}


def mermaid_of(document: Mapping[str, Any], states: Mapping[str, str], note: str = "") -> str:
    """Return a flowchart of a document; `states` are statuses of its steps by id.

    Raises CliError for a document that is no graph.
    """
    from aether_trio.model.workflows.definition import Graph
    from aether_trio.services.workflows.documents import read_json

    if "steps" not in document:
        raise exits.CliError("this workflow is a function: it has no graph of steps")
    try:
        graph, _ = read_json("workflow", dict(document))
    except ValueError as error:
        raise exits.CliError(f"the workflow cannot be drawn: {error}", lines=True) from None
    assert isinstance(graph, Graph)
    return "\n".join(["flowchart TD", *([f"  %% {note}"] if note else []), *_lines(graph, states)])


def _lines(graph: Graph, states: Mapping[str, str]) -> Iterator[str]:
    names = {step: f"s{number}" for number, step in enumerate(graph.steps)}
    for step in graph.steps.values():
        kind = _kind(step)
        begin, end = _SHAPES.get(kind, _BOX)
        many = " (for each)" if step.for_each is not None else " (while)" if step.while_ is not None else ""
        yield f"  {names[step.id]}{begin}{_escaped(step.id + many)}{end}"
    for step in graph.steps.values():
        name = names[step.id]
        join = "any" if step.join == 1 and len(step.depends_on) > 1 else str(step.join) if step.join else ""
        for before in step.depends_on:
            arrow = f"-->|{_escaped(join)}|" if join else "-->"
            if step.id != graph.steps[before].on_success:
                yield f"  {names[before]} {arrow} {name}"
        if step.on_success:
            yield f"  {name} -->|success| {names[step.on_success]}"
        if step.on_failure:
            yield f"  {name} -.->|failure| {names[step.on_failure]}"
        for handler in step.on_error:
            if handler.run:
                yield f"  {name} -.->|{_escaped(handler.error)}| {names[handler.run]}"
    for status, colour in _COLOURS.items():
        having = [names[step] for step in graph.steps if states.get(step) == status]
        if having:
            yield f"  classDef {status} fill:{colour}"
            yield f"  class {','.join(having)} {status}"


def _kind(step: Step) -> str:
    return {"AskStep": "ask", "CallWorkflow": "workflow", "WaitFor": "wait"}.get(type(step.work).__name__, "")


def _escaped(text: str) -> str:
    """Return a text as Mermaid shows it: other characters by their numbers."""
    return _OTHER.sub(lambda found: f"#{ord(found[0])};", text)
