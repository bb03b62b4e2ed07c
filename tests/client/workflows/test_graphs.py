"""Graphs that are built in Python are the documents that files have."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.client.workflows import WorkflowGraph, expr
from aether_trio.services.workflows.documents.reader import read_file, read_json

YAML = """
id: report
workspace: w
inputs: {topic: string, pages: integer}
budget: {steps: 100}
flow: {key: inputs.topic, concurrency: 1}
steps:
  - id: search
    action: {agent: searcher, tool_name: search, arguments: {topic: {$expr: inputs.topic}}}
  - id: read-all
    depends_on: [search]
    when: len(steps.search.result.hits) > 0
    for_each: {items: {$expr: steps.search.result.hits}, max_parallel: 3}
    action: {agent: reader, tool_name: read, arguments: {url: {$expr: item}}}
  - id: approve
    depends_on: [read-all]
    ask: {question: "Publish {{.steps.search.result.title}}?", choices: [now, later]}
  - id: again
    while: {condition: (last ?? 0) < 3, max_rounds: 5}
    output: {$expr: (last ?? 0) + 1}
  - id: paid
    depends_on: [approve, again]
    wait: {event: order.paid, key: input.order, equals: steps.again.result}
outputs: {pages: {$expr: 'steps["read-all"].result'}, title: {$expr: "steps.search.result.pages[0].title"}}
"""


def report() -> WorkflowGraph:
    graph = WorkflowGraph(
        "report",
        inputs={"topic": "string", "pages": "integer"},
        workspace="w",
        budget={"steps": 100},
        flow={"key": expr("inputs.topic"), "concurrency": 1},
    )
    search = graph.step(
        "search", action={"agent": "searcher", "tool_name": "search", "arguments": {"topic": graph.inputs.topic}}
    )
    read = graph.step(
        "read-all",
        when=expr(f"len({search.result.hits}) > 0"),
        for_each={"items": search.result["hits"], "max_parallel": 3},
        action={"agent": "reader", "tool_name": "read", "arguments": {"url": expr("item")}},
    )
    approve = graph.step(
        "approve",
        after=[read],
        ask={"question": "Publish {{.steps.search.result.title}}?", "choices": ("now", "later")},
    )
    again = graph.step(
        "again", while_={"condition": expr("(last ?? 0) < 3"), "max_rounds": 5}, output=expr("(last ?? 0) + 1")
    )
    graph.step(
        "paid", after=[approve], wait={"event": "order.paid", "key": expr("input.order"), "equals": again.result}
    )
    graph.outputs({"pages": read.result, "title": search.result.pages[0].title})
    return graph


def test_a_built_graph_is_what_a_file_has() -> None:
    [written] = read_file("report.yaml", YAML).checked()
    built, ignored = read_json("workflow", report().document())
    assert not ignored
    built_source: Any = dict(built.source)
    # The question's template reads a step that is above it anyway.
    assert built_source["steps"][2].pop("depends_on") == ["read-all", "search"]
    written_source: Any = dict(written.source)
    assert written_source["steps"][2].pop("depends_on") == ["read-all"]
    assert built_source == written_source


def test_steps_are_found_in_expressions_of_any_form() -> None:
    graph = WorkflowGraph("g")
    first, odd = graph.step("first", output=1), graph.step("odd one", output=2)
    both = graph.step("both", output={"a": [expr(f"{first.result} + {odd.result}")]}, on_error=[{"run": odd}])
    assert str(odd.result) == 'steps["odd one"].result'
    assert both.document["depends_on"] == ["first", "odd one"]
    assert both.document["on_error"] == [{"run": "odd one"}]
    assert "depends_on" not in graph.step("text", output="steps.first.result").document


def test_what_makes_no_sense_is_refused() -> None:
    graph, other = WorkflowGraph("g"), WorkflowGraph("h")
    step = graph.step("one", output=1)
    with pytest.raises(ValueError, match="there already"):
        graph.step("one", output=2)
    with pytest.raises(ValueError, match="not a step of workflow 'h'"):
        other.step("two", after=[step], output=1)
    with pytest.raises(TypeError, match="in an execution only"):
        list(step.result)
    with pytest.raises(TypeError, match="give it as `when`"):
        bool(step.result)
