"""Workflow files run as they say: documents, languages and interpreter."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.happenings import (
    TRIGGER,
    AskPerson,
    DoAction,
    EndExecution,
    NeedResult,
    OpenWait,
    StepPlace,
)
from aether_trio.services.workflows.documents.reader import read_file
from aether_trio.services.workflows.documents.schemas import schema_problems
from tests.model.workflows.driver import START_MS, Execution


def begin(text: str, trigger: Json = None) -> Execution:
    """Start an execution of the workflow of a file."""
    documents = read_file("flow.yaml", text)
    (graph,) = documents.checked()
    assert isinstance(graph, Graph)
    run = Execution(graph, trigger=trigger, validate=lambda schema, value: "; ".join(schema_problems(schema, value)))
    run.start()
    return run


def values(run: Execution, name: str, item: int = -1) -> Any:
    """Return the computed values of an open place."""
    command = run.open[StepPlace(name, item)]
    assert isinstance(command, DoAction)
    return command.values


REPORT = """
id: report
inputs: {topic: string, sources: array}
outputs: {text: "{{ .steps.write.result.text }}", count: {$expr: len(steps.search.result)}}
steps:
  - id: search
    for_each: {items: {$expr: inputs.sources}, max_parallel: 2, mode: settled}
    action: {agent: searcher, tool_name: search, arguments: {query: "{{ .inputs.topic }} in {{ .item }}"}}
  - id: enough
    depends_on: [search]
    output: {$expr: 'len(filter(steps.search.result, #.status == "completed"))'}
  - id: ask
    depends_on: [enough]
    when: steps.enough.result < 2
    ask: {question: "Only {{ .steps.enough.result }} sources. Go on?", of: us::ada, default: {approved: true}}
    timeout: 2d
  - id: write
    depends_on: [enough, ask]
    join: any
    action: {agent: writer, arguments: {found: {$expr: steps.search.result}}}
    result: {type: object, required: [text], properties: {text: {type: string}}}
    retry: {max_attempts: 3}
"""


def test_a_report_with_a_map_a_branch_and_a_schema() -> None:
    run = begin(REPORT, {"topic": "owls", "sources": ["books", "web", "news"]})
    assert values(run, "search", 1) == {"arguments": {"query": "owls in web"}}
    run.complete("search", "B", 0)
    run.fail("search", "down", 1)
    run.complete("search", "N", 2)
    assert run.result("enough") == 2
    assert run.statuses()["ask"] == "skipped"
    assert values(run, "write")["arguments"]["found"][1]["status"] == "failed"
    run.complete("write", {"text": "Owls."})
    assert run.end == EndExecution(status="completed", result={"text": "Owls.", "count": 3})


def test_a_report_with_too_few_sources_asks_and_refuses_what_breaks_the_schema() -> None:
    run = begin(REPORT, {"topic": "owls", "sources": ["books"]})
    run.complete("search", "B", 0)
    assert run.opened() == {"write", "ask"}
    question = run.open[StepPlace("ask")]
    assert isinstance(question, AskPerson)
    assert (question.question, question.of) == ("Only 1 sources. Go on?", "us::ada")
    run.complete("write", {"words": 3})
    assert run.end is not None
    assert run.end.error_type == "RESULT_SCHEMA"


BOOKING = """
id: booking
steps:
  - id: flight
    action: {agent: flights, arguments: {to: "{{ .trigger.city }}"}}
    compensate: {agent: flights, arguments: {cancel: {$expr: result.number}, why: "{{ .error.message }}"}}
  - id: hotel
    depends_on: [flight]
    action: {agent: hotels}
    compensate: {type: emit_event, event_name: hotel_cancelled, payload: {id: {$expr: steps.hotel.result}}}
  - id: paid
    depends_on: [hotel]
    wait: {event: paid, key: input.order, equals: execution.id, condition: input.amount >= trigger.price}
    timeout: 1h
  - id: refuse
    depends_on: [hotel]
    when: steps.hotel.result == "h-0"
    fail: {message: "no {{ .trigger.city }}", error_type: SOLD_OUT}
"""


def test_a_booking_is_undone_when_it_is_not_paid() -> None:
    run = begin(BOOKING, {"city": "Oslo", "price": 100})
    run.complete("flight", {"number": "f-1"})
    run.complete("hotel", "h-1")
    wait = run.waits[StepPlace("paid")]
    assert wait == OpenWait(place=StepPlace("paid"), event="paid", key_source="input.order", value="e-1")
    assert run.event("paid", {"order": "e-1", "amount": 99}) == []
    assert run.due_ms == START_MS + 3_600_000
    commands = run.pass_time()
    undone = [one for one in commands if isinstance(one, DoAction)]
    assert [one.place.step for one in undone] == ["hotel", "flight"]
    assert undone[0].values == {"payload": {"id": "h-1"}}
    assert undone[1].values == {"arguments": {"cancel": "f-1", "why": "step paid: timed out after 3600 s"}}
    run.undone("flight")
    assert run.status == "failed"


def test_a_booking_that_is_paid_completes() -> None:
    run = begin(BOOKING, {"city": "Oslo", "price": 100})
    run.complete("flight", {"number": "f-1"})
    run.complete("hotel", "h-1")
    run.event("paid", {"order": "e-1", "amount": 100})
    assert run.status == "completed"


def test_a_booking_without_a_room_fails() -> None:
    run = begin(BOOKING, {"city": "Oslo", "price": 100})
    run.complete("flight", {"number": "f-1"})
    run.complete("hotel", "h-0")
    run.undone("flight")
    assert run.end == EndExecution(status="failed", error="step refuse: no Oslo", error_type="SOLD_OUT")


def test_a_loop_polls_until_it_is_done_and_a_handler_gives_up() -> None:
    run = begin("""
        id: poll
        steps:
          - id: check
            while: {condition: last?.state != "done", max_rounds: 3}
            action: {agent: checker, arguments: {n: {$expr: round}}}
            on_error:
              - {error: LIMIT, result: {state: unknown}}
              - {error: "*", run: mend}
          - id: mend
            action: {agent: mender, payload: {why: "{{ .error.type }}"}}
          - id: done
            output: {$expr: steps.check.result.state}
            depends_on: [check]
        """)
    run.complete("check", {"state": "busy"}, 0)
    assert values(run, "check", 1) == {"arguments": {"n": 1}}
    run.complete("check", {"state": "busy"}, 1)
    run.complete("check", {"state": "busy"}, 2)
    assert run.end is not None
    assert run.end.result == {"check": {"state": "unknown"}, "done": "unknown"}


def test_only_what_expressions_read_is_asked_for() -> None:
    run = begin(
        """
        id: needs
        outputs: "{{ .steps.c.result.x }}"
        steps:
          - {id: a, action: {agent: w}}
          - {id: b, action: {agent: w}}
          - {id: c, action: {agent: w, arguments: {x: {$expr: steps.a.result.y}}}, depends_on: [a, b], when: trigger.go}
        """,
        {"go": True},
    )
    run.complete("b", {"y": 2})
    run.complete("a", {"y": 1})
    run.complete("c", {"x": 5})
    assert run.needs == [NeedResult(TRIGGER), NeedResult(StepPlace("a")), NeedResult(StepPlace("c"))]
    assert run.end == EndExecution(status="completed", result=5)


@pytest.mark.parametrize("reads", ["steps.a.result.b.c", "1 / steps.a.result", "steps.a.result * 2"])
def test_an_expression_that_fails_is_the_failure_of_its_step(reads: str) -> None:
    run = begin(f"""
        id: bad
        steps:
          - {{id: a, action: {{agent: w}}}}
          - {{id: b, depends_on: [a], action: {{agent: w, arguments: {{$expr: '{reads}'}}}}}}
        """)
    run.complete("a", None)
    assert run.end is not None
    assert run.end.error_type == "EXPRESSION"
    assert run.end.error.startswith("step b: action, arguments: ")


def test_an_error_of_the_outputs_names_them_once() -> None:
    run = begin("""
        id: bad
        steps:
          - {id: a, action: {agent: w}}
        outputs: {text: {$expr: steps.a.result * 2}}
        """)
    run.complete("a", None)
    assert run.end is not None
    assert run.end.error.startswith("outputs: text: ")
