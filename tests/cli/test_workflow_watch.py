"""Test the words in which entries of a history are told to people."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.cli.workflows.texts import counts_text, input_text, span_text, step_does, waits_text
from aether_trio.cli.workflows.timeline import timeline_lines
from aether_trio.cli.workflows.watching import entry_lines
from aether_trio.client.operations.workflow_values import entry_of


def told(happened: str, /, *then: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    return list(entry_lines(entry_of({"number": 1, "at": "", "type": happened, "then": list(then), **fields})))


ACTION = {"agent": "hand", "tool_name": "book"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (told("Started", trigger={}), [("", "has started")]),
        (told("Started", trigger={"a": 1}), [("", 'has started with {"a": 1}')]),
        (
            told("StepEnded", {"type": "DoAction", "place": ["b", -1], "attempt": 2, "action": ACTION},
                 place=["a", 3], outcome="failed", error="no\nluck"),
            [("a[3]", "failed: no luck"), ("b", "begins: hand: book, attempt 2")],
        ),
        (
            told("StepEnded", {"type": "MarkStep", "place": ["a", -1], "status": "compensated"}, place=["a", -1],
                 outcome="completed", compensates=True),
            [("a", "compensation completed")],
        ),
        (
            told("TimePassed", *({"type": "AskPerson", "place": ["a", n], "question": f"May {n}?"} for n in (0, 1))),
            [("a", "asks 2 items (0 to 1), such as: May 0?")],
        ),
        (
            told("ItemsEnded", ended=[{"place": ["a", 0], "outcome": "completed"},
                                      {"place": ["a", 1], "outcome": "failed", "error": "x"}]),
            [("a[1]", "failed: x"), ("a", "items 1 completed, 1 failed")],
        ),
        (told("ItemsEnded", ended=[{"place": ["a", 0], "outcome": "completed"}]), [("a[0]", "completed")]),
        (
            told("SignalReceived", {"type": "KeepResult", "place": ["w", -1]}, {"type": "KeepResult", "place": ["m", -2]},
                 name="go", by="ann", data=7),
            [("", "signal go by ann: 7"), ("w", "completed")],
        ),
        (told("CancelAsked", {"type": "CancelStep", "place": ["a", -1]}, by="ann", reason="enough"),
         [("", "is cancelled by ann: enough"), ("a", "is told to stop")]),
        (told("TimePassed", {"type": "EndExecution", "status": "failed"}), []),
        (told("TimePassed", {"type": "MarkStep", "place": ["a", -1], "status": "running", "error": "x"}),
         [("a", "will be tried again: x")]),
        (told("StepOpened", step="ask", kind="ask", given={"question": "Go?"}), [("ask", "asks: Go?")]),
        (told("StepOpened", step="w", kind="wait", given={"event": "paid"}), [("w", "waits for event paid")]),
        (told("StepOpened", step="w", kind="wait", given={"signal": "go"}), [("w", "waits for signal go")]),
        (told("StepOpened", step="r", kind="run", given={"workflow": "sums"}), [("r", "begins: workflow sums")]),
        (told("StepOpened", step="c", kind="call", given={"agent": "poet", "tool": "sing"}), [("c", "begins: poet: sing")]),
        (told("StepOpened", step="m", kind="once", given={}), [("m", "begins: once")]),
        (told("StepClosed", step="plan", outcome="completed", kind="step"), [("plan", "completed")]),
        (told("Ended", outcome="completed"), []),
        (told("SomethingNew"), [("", "SomethingNew")]),
    ],
)  # fmt: skip
def test_what_an_entry_says(lines: list[tuple[str, str]], expected: list[tuple[str, str]]) -> None:
    assert lines == expected


def test_a_timeline_leaves_out_what_tells_a_worker_of_news() -> None:
    progress = {"source": "progress", "step": "a", "progress": -1, "message": "7"}
    assert list(timeline_lines({**progress, "state": "workflow"})) == []
    assert list(timeline_lines({**progress, "state": "running"})) == [("a", "progress: running 7")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (59, "59 s"), (190, "3 m 10 s"), (7200, "2 h"), (187_200, "2 d 4 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ({"action": ACTION}, "hand: book"),
        ({"action": {"type": "emit_event", "event_name": "done"}}, "event done"),
        ({"action": {"type": "create_task", "task_type": "t", "target_implementation": "p"}}, "task t for p"),
        ({"workflow": "inner"}, "workflow inner"),
        ({"wait": "10m"}, "waits 10m"),
        ({"wait": {"signal": "go"}}, "waits for signal go"),
        ({"ask": "Go?"}, "asks: Go?"),
        ({"fail": {"message": "no"}}, "fails: no"),
        ({"continue_as": {"input": 1}}, "goes on as a new execution"),
        ({"output": 1, "for_each": {"items": "trigger.x"}}, "computes, for each of trigger.x"),
        ({"output": 1, "while": "last < 3"}, "computes, while last < 3"),
    ],
)
def test_what_a_step_does(step: dict[str, Any], text: str) -> None:
    assert step_does(step) == text


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, ""),
        ({"inputs": {"a": "string", "b": "integer[]?"}}, "a: string, b: integer[]?"),
        ({"inputs": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}, "a: number"),
        ({"function": {"input": {"properties": {"a": {}}}}}, "a: any?"),
    ],
)
def test_what_the_input_is(document: dict[str, Any], text: str) -> None:
    assert input_text(document) == text


def test_counts_and_waits() -> None:
    assert counts_text({"completed": 31, "failed": 2, "pending": 67}) == "31/100, 2 failed"
    assert waits_text({"for": "worker", "pool": "p"}) == "a worker of p"
    assert waits_text({"for": "signal", "signal": "go"}) == "signal go"
    assert waits_text({"for": "time", "until": "2026-01-01T00:00:00Z"}).startswith("until 20")
    assert waits_text({"for": "retry", "until": "", "error": "x"}) == "its next attempt: x"
    assert waits_text({}) == ""
