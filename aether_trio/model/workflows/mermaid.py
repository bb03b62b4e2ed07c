"""Writes diagrams as Mermaid: flowcharts of workflows, states of machines.

Names of steps, states and events are labels only, whose unusual characters are written as numbers:
no name becomes structure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.diagrams import Diagram

_OTHER: Final = re.compile(r"[^A-Za-z0-9_.,()?+/ -]")
_LONGEST: Final = 200
"""Characters of a label."""
_SHAPES: Final = {
    "ask": ('{{"', '"}}'),
    "workflow": ('[["', '"]]'),
    "continue_as": ('[["', '"]]'),
    "wait": ('(["', '"])'),
    "fail": ('>"', '"]'),
}
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


def mermaid_of(diagram: Diagram) -> str:
    """Return a flowchart of a workflow or execution, or a state diagram of a machine."""
    if diagram["kind"] == "machine":
        return "\n".join(["stateDiagram-v2", *_machine_lines(diagram)])
    return "\n".join(["flowchart TD", *_graph_lines(diagram)])


def _graph_lines(diagram: Diagram) -> Iterator[str]:
    names = {node["id"]: f"s{number}" for number, node in enumerate(diagram["nodes"])}
    for node in diagram["nodes"]:
        begin, end = _SHAPES.get(node["kind"], _BOX)
        many = " (for each)" if node.get("for_each") else " (while)" if node.get("while") else ""
        yield f"  {names[node['id']]}{begin}{escaped_label(node['id'] + many)}{end}"
    for edge in diagram["edges"]:
        label = edge.get("label") or ("" if edge["kind"] == "depends_on" else edge["kind"])
        line = "-->" if edge["kind"] in ("depends_on", "success") else "-.->"
        arrow = f"{line}|{escaped_label(label)}|" if label else line
        yield f"  {names[edge['from']]} {arrow} {names[edge['to']]}"
    yield from _classes({names[node["id"]]: node.get("status", "") for node in diagram["nodes"]})


def _machine_lines(diagram: Diagram) -> Iterator[str]:
    nodes: list[Json] = diagram["nodes"]
    names = {node["id"]: f"s{number}" for number, node in enumerate(nodes)}
    for node in nodes:
        yield f'  state "{escaped_label(node["id"])}" as {names[node["id"]]}'
    for node in nodes:
        if node.get("initial"):
            yield f"  [*] --> {names[node['id']]}"
    for edge in diagram["edges"]:
        guard = " (if)" if edge.get("guarded") else ""
        label = escaped_label(f"{edge.get('label', '')}{guard}")
        yield f"  {names[edge['from']]} --> {names[edge['to']]}{f' : {label}' if label else ''}"
    for node in nodes:
        if node.get("terminal"):
            yield f"  {names[node['id']]} --> [*]"
    yield from _classes({names[node["id"]]: "running" if node.get("current") else "" for node in nodes})


def _classes(statuses: dict[str, str]) -> Iterator[str]:
    for status, colour in _COLOURS.items():
        having = [name for name, its in statuses.items() if its == status]
        if having:
            yield f"  classDef {status} fill:{colour}"
            yield f"  class {','.join(having)} {status}"


def escaped_label(text: str) -> str:
    """Return a text as Mermaid shows it: other characters by their numbers."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return _OTHER.sub(lambda found: f"#{ord(found[0])};", cut) or " "
