"""Graphs and machines become diagrams, and no name becomes structure in Mermaid."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from aether_trio.model.workflows import diagrams
from aether_trio.model.workflows.definition import Graph, MachineDefinition
from aether_trio.model.workflows.diagrams import DiagramTooLarge, graph_diagram, machine_diagram
from aether_trio.model.workflows.mermaid import escaped_label, mermaid_of
from aether_trio.services.workflows.documents.reader import read_json

HOSTILE = 'a"]; click s0 "x"\n%%{init}%% end\u202e-->b|c|{{#34;}} :::x é'


def graph_of(*steps: dict[str, Any]) -> Graph:
    graph, _ = read_json("workflow", {"id": "flow", "steps": list(steps)})
    assert isinstance(graph, Graph)
    return graph


def test_a_graph_has_nodes_and_edges_of_all_kinds() -> None:
    graph = graph_of(
        {"id": "ask", "ask": "Why?", "on_failure": "low", "on_success": "sub"},
        {"id": "sub", "workflow": "other"},
        {"id": "do", "action": {"agent": "a", "tool_name": "t"}, "on_error": [{"error": "*slow*", "run": "low"}]},
        {"id": "low", "output": 1, "for_each": [1, 2]},
        {
            "id": "any",
            "wait": {"event": "e", "key": "input", "equals": "1"},
            "depends_on": ["sub", "do"],
            "join": "any",
        },
        {"id": "bad", "fail": {"message": "no"}, "depends_on": ["any"]},
    )
    drawn = graph_diagram(graph, {"ask": "completed"}, {"low": {"completed": 1}})
    assert drawn["nodes"] == [
        {"id": "ask", "kind": "ask", "status": "completed"},
        {"id": "sub", "kind": "workflow", "about": "other"},
        {"id": "do", "kind": "action", "about": "a: t"},
        {"id": "low", "kind": "compute", "for_each": True, "items": {"completed": 1}},
        {"id": "any", "kind": "wait", "about": "event e"},
        {"id": "bad", "kind": "fail"},
    ]
    assert [(one["from"], one["to"], one["kind"], one.get("label")) for one in drawn["edges"]] == [
        ("ask", "sub", "success", None),
        ("ask", "low", "failure", None),
        ("do", "low", "error", "*slow*"),
        ("sub", "any", "depends_on", "any"),
        ("do", "any", "depends_on", "any"),
        ("any", "bad", "depends_on", None),
    ]
    assert mermaid_of(drawn).splitlines() == [
        "flowchart TD",
        '  s0{{"ask"}}',
        '  s1[["sub"]]',
        '  s2["do"]',
        '  s3["low (for each)"]',
        '  s4(["any"])',
        '  s5>"bad"]',
        "  s0 -->|success| s1",
        "  s0 -.->|failure| s3",
        "  s2 -.->|#42;slow#42;| s3",
        "  s1 -->|any| s4",
        "  s2 -->|any| s4",
        "  s4 --> s5",
        "  classDef completed fill:#d3f9d8",
        "  class s0 completed",
    ]


def test_names_are_escaped() -> None:
    diagram = {
        "kind": "workflow",
        "nodes": [{"id": HOSTILE, "kind": "compute"}, {"id": "end", "kind": "wait"}],
        "edges": [{"from": HOSTILE, "to": "end", "kind": "error", "label": HOSTILE}],
    }
    text = mermaid_of(diagram)
    assert len(text.splitlines()) == 4
    assert escaped_label('a"]\n%|#;') == "a#34;#93;#10;#37;#124;#35;#59;"
    assert f'  s0["{escaped_label(HOSTILE)}"]' in text
    assert len(escaped_label("x" * 5_000)) < 300


def test_a_machine_shows_the_state_of_an_instance() -> None:
    machine, _ = read_json(
        "machine", {"id": "m", "initial_state": "a", "states": {"a": {"on": {"go": "b"}}, "b": {"terminal": True}}}
    )
    assert isinstance(machine, MachineDefinition)
    drawn = machine_diagram(machine, "a")
    assert drawn["nodes"] == [
        {"id": "a", "kind": "state", "initial": True, "current": True},
        {"id": "b", "kind": "state", "terminal": True},
    ]
    assert drawn["edges"] == [{"from": "a", "to": "b", "kind": "event", "label": "go"}]
    assert mermaid_of(drawn).splitlines()[-2:] == ["  classDef running fill:#cfe8ff", "  class s0 running"]


def size_of(drawn: dict[str, Any]) -> int:
    return len(json.dumps(drawn, separators=(",", ":")))


def test_what_no_client_takes_is_not_drawn_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"step{number}" for number in range(40)]
    graph = graph_of(*({"id": name, "output": 1, "depends_on": names[:i]} for i, name in enumerate(names)))
    machine = {"a": {"on": {f"e{number}": "b" for number in range(500)}}, "b": {"terminal": True}}
    found, _ = read_json("machine", {"id": "m", "initial_state": "a", "states": machine})
    assert isinstance(found, MachineDefinition)
    make_edge = diagrams._edge
    for draw, most in ((partial(graph_diagram, graph, {}, {}), 780), (partial(machine_diagram, found), 500)):
        drawn = draw()
        assert len(drawn["edges"]) == most
        made: list[str] = []

        def edge(*values: str, made: list[str] = made) -> dict[str, Any]:
            made.append(values[0])
            return make_edge(*values)

        with monkeypatch.context() as patch:
            patch.setattr(diagrams, "_edge", edge)
            patch.setattr(diagrams, "CLIENT_MESSAGE_BYTES", size_of(drawn))
            assert draw() == drawn
            patch.setattr(diagrams, "CLIENT_MESSAGE_BYTES", size_of(drawn) // 4)
            made.clear()
            with pytest.raises(DiagramTooLarge, match="more than a client takes"):
                draw()
            assert 0 < len(made) < most // 2
