"""Cases of workflows run on a virtual clock, and say what is not as expected."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.workflows import trial as trial_module
from aether_trio.model.workflows.definition import Graph
from aether_trio.model.workflows.documents import compile_document
from aether_trio.model.workflows.reading import pointer
from aether_trio.model.workflows.trial import CaseResult, run_case
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.stored.stored_graphs import schema_problem

Doc = dict[str, Any]


def compiled(document: Doc) -> Graph:
    graph, findings = compile_document("workflow", document, TOOLS)
    assert [problem.message for problem in findings.errors] == []
    assert isinstance(graph, Graph)
    return graph


def errors(steps: list[Doc], *tests: Any) -> list[str]:
    _, findings = compile_document("workflow", {"id": "flow", "steps": steps, "tests": list(tests)}, TOOLS)
    return [f"{pointer(one.path)}: {one.text()}" for one in findings.errors]


def trial(steps: list[Doc], case: Doc, *others: Graph, **rest: Any) -> CaseResult:
    graph = compiled({"id": "flow", "steps": steps, "tests": [case], **rest})
    known = {one.id: one for one in (graph, *others)}
    return run_case(graph, graph.tests[0], known=known.get, validate=schema_problem)


def act(name: str, **rest: Any) -> Doc:
    return {"id": name, "action": {"agent": "worker"}, **rest}


def test_a_case_that_is_as_expected() -> None:
    found = trial(
        [
            {"id": "a", "action": {"agent": "worker", "arguments": {"n": {"$expr": "trigger.n"}}}},
            act("b", depends_on=["a"], when="steps.a.result > 4"),
        ],
        {
            "input": {"n": 2},
            "steps": {"a": {"result": 4, "after": "3m"}},
            "expect": {
                "result": {"a": 4},
                "steps": {"a": {"sent": {"arguments": {"n": 2}}, "result": 4.0, "attempts": 1}, "b": "skipped"},
            },
        },
    )
    assert found.differences == ()
    assert found.passed
    assert (found.name, found.status, found.took_ms) == ("test 1", "completed", 180_000)


def test_every_difference_is_said() -> None:
    found = trial(
        [act("a"), act("b", depends_on=["a"])],
        {
            "steps": {"a": {"result": {"x": [1, 2]}}, "b": {"error": "broken", "error_type": "BAD"}},
            "expect": {
                "error": "whole*",
                "error_type": "GOOD",
                "result": 1,
                "steps": {"a": {"result": {"x": [1, 3]}, "sent": {"payload": 1}}, "b": {"status": "skipped"}},
            },
        },
    )
    assert found.differences == (
        'its error is "step b: broken", not "whole*"',
        'its error_type is "BAD", not "GOOD"',
        "what step a has sent as payload is null, not 1",
        "the result of step a, x[1]: is 2, not 3",
        "step b is failed, not skipped: broken",
        "its result is null, not 1",
    )


def test_a_step_whose_end_is_not_told() -> None:
    found = trial([act("a")], {})
    assert found.differences[0] == (
        "step a has begun, and the test does not say how it ends: write it below steps, such as a: {result: …}"
    )
    assert "these steps are open: a (running)" in found.differences[1]


def test_items_and_rounds_and_attempts_have_outcomes_of_their_numbers() -> None:
    found = trial(
        [
            act("items", for_each={"items": [1, 2, 3], "mode": "settled", "max_parallel": 1}),
            act("rounds", **{"while": "round < 3"}),
            {"id": "sub", "workflow": "other", "retry": {"max_attempts": 3, "initial": "10s", "jitter": 0}},
        ],
        {
            "steps": {
                "items": [{"result": "one"}, {"error": "no"}],
                "rounds": [{"result": 1}, {"result": 2}],
                "sub": [{"error": "first"}, {"result": "second"}],
            },
            "expect": {
                "steps": {
                    "items": {
                        "result": [
                            {"status": "completed", "result": "one"},
                            {"status": "failed", "error": "no", "error_type": "FAILED"},
                            {"status": "failed", "error": "no", "error_type": "FAILED"},
                        ]
                    },
                    "rounds": {"result": 2},
                    "sub": {"result": "second", "attempts": 2},
                }
            },
        },
    )
    assert found.differences == ()
    assert found.took_ms == 10_000


def test_ten_thousand_items() -> None:
    found = trial(
        [act("each", for_each={"$expr": "trigger"})],
        {"input": list(range(10_000)), "steps": {"each": {"result": 0}}, "expect": {"steps": {"each": "completed"}}},
        outputs={"$expr": "steps.each.result[9999]"},
    )
    assert found.differences == ()
    assert found.result == 0


def test_signals_events_and_answers_come_at_their_moments() -> None:
    found = trial(
        [
            {"id": "go", "wait": {"signal": "go"}, "timeout": "1h"},
            {"id": "paid", "wait": {"event": "paid", "key": "input.order", "equals": "trigger.order"}},
            {"id": "ask", "ask": {"question": "Which of {{.trigger.order}}?", "choices": ["a", "b"]}},
            {"id": "sleep", "wait": "3d", "depends_on": ["go", "paid", "ask"]},
        ],
        {
            "input": {"order": 7},
            "signals": [{"name": "go", "data": 1, "at": "59m", "by": "us::ann"}],
            "events": [
                {"name": "paid", "data": {"order": 8}, "at": "1m"},
                {"name": "paid", "data": {"order": 7, "x": 2}, "at": "2m"},
            ],
            "steps": {"ask": {"answer": {"choice": "b"}, "after": "5m"}},
            "expect": {
                "steps": {
                    "go": {"result": 1},
                    "paid": {"result": {"order": 7, "x": 2}},
                    "ask": {
                        "sent": {"question": "Which of 7?"},
                        "result": {"approved": True, "choice": "b", "text": "", "data": None, "by": "us::tester"},
                    },
                }
            },
        },
    )
    assert found.differences == ()
    assert found.took_ms == 3 * 86_400_000 + 59 * 60_000


def test_an_event_before_its_wait_counts_once() -> None:
    event = {"name": "tick", "data": 1}
    steps = [
        act("a"),
        {"id": "one", "wait": {"event": "tick"}, "depends_on": ["a"]},
        {"id": "more", "wait": {"event": "tick"}, "while": "round < 2", "depends_on": ["one"], "timeout": "1h"},
    ]
    case = {"steps": {"a": {"after": "1m"}}, "events": [event], "expect": {"status": "failed"}}
    found = trial(steps, case)
    assert found.differences == ()
    assert found.steps["one"]["status"] == "completed"
    assert found.error == "step more: round 1: timed out after 3600 s"
    assert trial(steps, {**case, "events": [event, {**event, "at": "2m"}], "expect": {}}).differences == ()


def test_nothing_comes_and_time_passes() -> None:
    steps: list[Doc] = [{"id": "ask", "ask": "Go?", "timeout": "1d"}, {"id": "go", "wait": {"signal": "go"}}]
    found = trial(steps, {"expect": {"error_type": "TIMEOUT", "steps": {"go": "cancelled"}}})
    assert found.differences == ()
    assert found.took_ms == 86_400_000
    open_ = trial([steps[1]], {"expect": {"status": "running", "steps": {"go": "waiting"}}})
    assert open_.differences == ()


def test_a_timeout_ends_an_action() -> None:
    found = trial([act("a", timeout="1m")], {"steps": {"a": {"after": "2m"}}, "expect": {"error_type": "TIMEOUT"}})
    assert found.differences == ()
    assert found.took_ms == 60_000


def test_a_cancelled_execution_is_compensated() -> None:
    found = trial(
        [act("pay", compensate={"agent": "bank"}), act("ship", depends_on=["pay"])],
        {
            "steps": {"pay": {"result": 1}, "ship": {"after": "1d"}},
            "cancel_at": "1h",
            "expect": {"status": "cancelled", "steps": {"pay": "compensated", "ship": "cancelled"}},
        },
    )
    assert found.differences == ()


def test_sub_workflows_run_with_outcomes_of_their_steps() -> None:
    other = compiled(
        {"id": "other", "inputs": {"n": "integer"}, "steps": [act("x")], "outputs": {"$expr": "steps.x.result * 2"}}
    )
    call = {"id": "sub", "workflow": "other", "input": {"n": 1}}
    case = {"steps": {"sub": {"steps": {"x": {"result": 4, "after": "1m"}}}}, "expect": {"result": {"sub": 8}}}
    assert trial([call], case, other).differences == ()
    assert "the files have no workflow other" in trial([call], case).differences[0]
    assert "step x has begun in workflow other" in trial([call], {}, other).differences[0]
    assert trial([call], {"steps": {"sub": {"result": 3}}, "expect": {"result": {"sub": 3}}}).differences == ()
    wrong = trial([{**call, "input": {"n": "one"}}], {"expect": {"error_type": "START_REFUSED"}}, other)
    assert wrong.differences == ()
    late = {"steps": {"sub": {"steps": {"x": {"after": "1d"}}}}, "cancel_at": "1m", "expect": {"status": "cancelled"}}
    assert trial([call], late, other).differences == ()
    itself = trial([{"id": "again", "workflow": "flow"}], {"expect": {"error": "*would run 17 deep*"}})
    assert itself.differences == ()


def test_a_mocked_sub_workflow_is_cancelled() -> None:
    case = {"steps": {"sub": {"after": "1d"}}, "cancel_at": "1m", "expect": {"status": "cancelled"}}
    assert trial([{"id": "sub", "workflow": "other"}], case).differences == ()


def test_an_execution_that_continues_or_pauses_or_is_refused() -> None:
    again = [{"id": "again", "continue_as": {"input": {"n": {"$expr": "trigger.n + 1"}}}}]
    assert trial(again, {"input": {"n": 1}, "expect": {"continues": {"n": 2}}}).differences == ()
    assert trial(again, {"input": {"n": 1}, "expect": {"continues": {"n": 3}}}).differences == (
        "the input with which it continues, n: is 2, not 3",
    )
    many = [act("a"), act("b", depends_on=["a"])]
    paused = trial(many, {"steps": {"a": {}}, "expect": {"status": "paused"}}, budget={"steps": 1})
    assert paused.differences == ()
    refused = trial([act("a")], {"input": {}, "expect": {"status": "refused"}}, inputs={"n": "integer"})
    assert refused.differences == ()


def test_what_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "MAX_HAPPENINGS", 500)
    loop = {"id": "loop", "while": "true", "wait": {"duration": 0.001}}
    outer = {"id": "outer", "workflow": "inner", "for_each": {"$expr": "1..200"}}
    found = trial([outer], {}, compiled({"id": "inner", "steps": [loop]}))
    assert found.differences[0] == "it does not end: more than 500 things have happened"


def test_an_answer_has_to_be_one() -> None:
    form = {"type": "object", "required": ["n"]}
    steps = [{"id": "ask", "ask": {"question": "?", "choices": ["a"], "form": form}}]
    for answer, problem in (
        ({"choice": "c"}, "the answer to step ask is none: choice is one of a"),
        ({"data": {}}, "the answer to step ask is none: 'n' is a required property"),
    ):
        found = trial(steps, {"steps": {"ask": {"answer": answer}}})
        assert found.differences[0] == problem
    assert trial(steps, {"steps": {"ask": {"answer": {"approved": False}}}}).differences == ()


@pytest.mark.parametrize(
    ("case", "error"),
    [
        (1, "/tests/0: test 1 has to be a map with keys such as name, and is a number"),
        ({"nam": "x"}, "/tests/0/nam: test 1 has no key 'nam': did you mean 'name'?"),
        ({"steps": {"aa": {}}}, "/tests/0/steps/aa: test 1: there is no step 'aa'"),
        (
            {"steps": {"made": {}}},
            "/tests/0/steps/made: test 1: step 'made' ends at once, as it does no work outside: it needs no outcome",
        ),
        (
            {"steps": {"go": {}}},
            (
                "/tests/0/steps/go: test 1: step 'go' waits: what it waits for is among signals or events, "
                "and time passes without being told"
            ),
        ),
        (
            {"steps": {"a": {"result": 1, "error": "x"}}},
            "/tests/0/steps/a/error: test 1, step 'a' has both result and error",
        ),
        ({"steps": {"a": {"answer": {}}}}, "/tests/0/steps/a/answer: test 1, step 'a' asks nothing: write result"),
        ({"steps": {"ask": {}}}, "/tests/0/steps/ask: test 1, step 'ask' asks a person: write answer"),
        (
            {"steps": {"a": [{}, {"after": 5}]}},
            (
                "/tests/0/steps/a/1/after: test 1, step 'a': after has to be a duration with a unit, such as '5s', "
                "and is a number"
            ),
        ),
        (
            {"signals": [{"name": "goo"}]},
            "/tests/0/signals/0/name: test 1, signals: no step waits for 'goo': did you mean 'go'?",
        ),
        ({"events": [{"name": "e"}]}, "/tests/0/events/0/name: test 1, events: no step waits for 'e'"),
        (
            {"expect": {"steps": {"a": "done"}}},
            (
                "/tests/0/expect/steps/a: test 1, expect, step 'a': status is 'done'; it has to be one of pending, running, "
                "waiting, completed, failed, skipped, cancelled, compensated"
            ),
        ),
        (
            {"now": "today"},
            "/tests/0/now: test 1: now has to be a moment such as '2026-11-29T18:00:00Z'",
        ),
    ],
)
def test_what_is_wrong_with_a_case(case: Any, error: str) -> None:
    steps = [act("a"), {"id": "made", "output": 1}, {"id": "go", "wait": {"signal": "go"}}, {"id": "ask", "ask": "?"}]
    found = errors(steps, case)
    assert len(found) == 1
    assert found[0].startswith(error)


def test_names_of_cases_differ() -> None:
    assert errors([act("a")], {"name": "x"}, {"name": "x"}) == ["/tests/1/name: test 'x' is there twice"]


def test_the_input_of_a_case_has_the_items_that_are_gathered() -> None:
    steps = [{"id": "sum", "output": {"$expr": "sum(map(trigger.items, #.n))"}}]
    more = {"inputs": {"n": "number"}, "flow": {"debounce": {"period": "5s"}}}
    case = {"input": {"items": [{"n": 1}, {"n": 2}]}, "expect": {"result": {"sum": 3}}}
    assert trial(steps, case, **more).differences == ()
    assert "items" in trial(steps, {"input": {"n": 1}}, **more).error
    assert "not as declared" in trial(steps, {"input": {"items": [{"n": "x"}]}}, **more).error
