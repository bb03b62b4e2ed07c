"""What follows from what in a graph: each construct of the interpreter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aether_trio.model.evaluation_meter import note_operations
from aether_trio.model.workflows.definition import (
    AskStep,
    Budget,
    CallWorkflow,
    Compute,
    ContinueAs,
    ErrorHandler,
    Escalation,
    Fail,
    ForEach,
    Json,
    MapMode,
    RetryRule,
    WaitFor,
    While,
)
from aether_trio.model.workflows.happenings import (
    BEGUN_AT_ONCE,
    ITEMS,
    NO_ITEM,
    TRIGGER,
    AskPerson,
    CancelAsked,
    CancelStep,
    CloseWait,
    ContinueExecution,
    DoAction,
    EndExecution,
    KeepResult,
    MarkStep,
    NeedItems,
    NeedResult,
    NeedResults,
    OpenWait,
    PauseAsked,
    PauseExecution,
    ResumeAsked,
    RetryAsked,
    Started,
    StartExecution,
    StepEnded,
    StepPlace,
)
from aether_trio.model.workflows.interpreter import OPERATIONS_AT_ONCE, STEP_OPERATIONS, signal_problem
from aether_trio.model.workflows.state import State
from tests.model.workflows.driver import (
    START_MS,
    Execution,
    Of,
    agent,
    compute,
    emit,
    graph,
    kinds,
    lit,
    never,
    read,
    result_of,
    started,
    step,
)

HOUR = 3_600_000


def only(commands: list[Any], kind: type) -> Any:
    found = [one for one in commands if isinstance(one, kind)]
    assert len(found) == 1, commands
    return found[0]


class TestOrder:
    def test_steps_follow_their_dependencies(self) -> None:
        run = started(step("a"), step("b", depends_on="a"), step("c", depends_on="b"))
        assert run.opened() == {"a"}
        assert kinds(run.complete("a", 1)) == ["DoAction b"]
        run.complete("b", 2)
        assert run.complete("c", 3) == [EndExecution(status="completed", result={"a": 1, "b": 2, "c": 3})]
        assert run.statuses() == {"a": "completed", "b": "completed", "c": "completed"}

    def test_independent_steps_run_at_the_same_time_in_the_order_of_the_document(self) -> None:
        run = Execution(graph(step("b"), step("a"), step("end", depends_on="a b")))
        assert kinds(run.start()) == ["DoAction b", "DoAction a"]
        assert run.complete("a") == []
        assert kinds(run.complete("b")) == ["DoAction end"]

    def test_a_graph_without_steps_completes_at_once(self) -> None:
        assert Execution(graph()).start() == [EndExecution(status="completed", result={})]

    def test_nothing_is_asked_for_that_no_value_reads(self) -> None:
        run = started(
            step("a"),
            step("b"),
            step("c", agent(arguments=result_of("a")), depends_on="a b"),
            step("d", agent(arguments=Of(lambda env: env["steps"]["a"]["status"], "steps.a.status")), depends_on="c"),
            outputs=lit(1),
        )
        run.complete("b", "unread")
        command = only(run.complete("a", "read"), DoAction)
        assert command.values == {"arguments": "read"}
        assert only(run.complete("c"), DoAction).values == {"arguments": "completed"}
        run.complete("d")
        assert run.needs == [NeedResult(StepPlace("a"))]

    def test_a_dynamic_path_reads_all_completed_steps(self) -> None:
        everything = Of(lambda env: sorted(one for one in env["steps"] if env["steps"][one]["result"]), "steps")
        run = started(step("a"), step("b"), step("c", agent(payload=everything), depends_on="a"))
        assert only(run.complete("a", "x"), DoAction).values == {"payload": ["a"]}

    def test_a_result_is_read_the_same_whether_it_was_made_now_or_before(self) -> None:
        kind = Of(lambda env: type(env["steps"]["a"]["result"]["n"]).__name__, "steps.a.result.n")
        run = started(
            compute({"n": 1}, name="a"),
            step("b", agent(payload=kind), depends_on="a"),
            step("c", agent(payload=kind), depends_on="b"),
        )
        now = run.open[StepPlace("b")]
        later = only(run.complete("b"), DoAction)
        assert isinstance(now, DoAction)
        assert now.values == later.values == {"payload": "float"}
        items = step(
            "m",
            Compute(),
            output=Of(lambda env: type(env["item"]).__name__, "item"),
            for_each=ForEach(items=lit([1, 2])),
        )
        assert started(items).result("m") == ["float", "float"]

    def test_several_results_are_asked_for_at_once(self) -> None:
        run = started(step("a"), step("b"), step("c"))
        for name in "abc":
            run.complete(name, name)
        assert run.end == EndExecution(status="completed", result={"a": "a", "b": "b", "c": "c"})
        assert run.needs == [NeedResults(("a", "b", "c"))]

    def test_the_input_is_asked_for_and_has_two_names(self) -> None:
        run = started(
            compute(lambda env: env["trigger"]["n"], "trigger.n", name="a"),
            compute(lambda env: env["inputs"]["n"] + 1, "inputs.n", name="b"),
            trigger={"n": 3},
        )
        assert run.end is not None
        assert run.end.result == {"a": 3, "b": 4}
        assert run.needs == [NeedResult(TRIGGER)]

    def test_values_know_the_execution_and_the_moment_of_the_happening(self) -> None:
        seen = []

        class Clock:
            def paths(self) -> Any:
                return frozenset({("execution",)})

            def evaluate(self, env: Any, *, now: Any) -> Any:
                seen.append((env["execution"], now().isoformat()))

        started(step("a", Compute(), output=Clock()))
        execution = {
            "id": "e-1",
            "workflow": "flow",
            "workspace": "ws",
            "started_at": "2023-11-14T22:13:20Z",
        }
        assert seen == [(execution, "2023-11-14T22:13:20+00:00")]

    def test_a_thousand_computed_steps_are_few_advances(self) -> None:
        steps = [compute(0, name="s0")]
        for number in range(1, 1000):
            before = f"s{number - 1}"
            steps.append(
                compute(
                    lambda env, before=before: env["steps"][before]["result"] + 1,
                    f"steps.{before}.result",
                    name=f"s{number}",
                    depends_on=before,
                )
            )
        run = started(*steps, outputs=result_of("s999"))
        assert run.end is None
        run.pass_pages()
        assert run.end == EndExecution(status="completed", result=999)
        most = OPERATIONS_AT_ONCE // STEP_OPERATIONS
        ends = [sum(isinstance(one, KeepResult) for one in commands) for _, commands, _ in run.history]
        assert sum(ends) == 1_000
        assert max(ends) <= most
        assert len(ends) <= 1_000 // most + 2

    def test_what_takes_many_operations_goes_on_in_pages(self) -> None:
        def slow(env: Any) -> Json:
            note_operations(OPERATIONS_AT_ONCE // 4)
            return 1

        items = step("items", Compute(), output=Of(slow), for_each=ForEach(items=lit([1] * 10)))
        loop = While(condition=Of(lambda env: env["round"] < 10, "round"))
        rounds = step("rounds", Compute(), output=Of(slow), while_=loop)
        run = started(*[compute(slow, name=f"s{number}") for number in range(10)], items, rounds)
        for _ in range(3):  # a happening from outside changes nothing of that
            assert run.status == "running"
            run.signal("unknown")
        run.pass_pages()
        assert run.end is not None
        assert run.end.status == "completed"
        ends = [sum(isinstance(one, KeepResult) for one in commands) for _, commands, _ in run.history]
        assert max(ends) <= 7  # with the lists of items, and the results of maps and loops

    def test_a_page_of_steps_rests_while_the_execution_is_paused(self) -> None:
        run = started(*[compute(1, name=f"s{number}") for number in range(1_000)])
        run.tell(PauseAsked(at_ms=run.now_ms))
        run.pass_pages()
        assert run.status == "paused"
        run.tell(ResumeAsked(at_ms=run.now_ms))
        run.pass_pages()
        assert run.status == "completed"

    def test_a_page_of_steps_ends_with_the_execution(self) -> None:
        run = started(*[compute(1, name=f"s{number}") for number in range(1_000)])
        run.tell(CancelAsked(at_ms=run.now_ms))
        assert run.status == "cancelled"
        assert not run.due_ms

    def test_an_emitted_event_ends_at_once(self) -> None:
        run = started(step("a", emit(payload=lit({"x": 1}))), step("b", depends_on="a"))
        commands = run.history[0][1]
        assert kinds(commands) == ["DoAction a", "KeepResult a", "DoAction b"]
        assert commands[0].values == {"payload": {"x": 1}}
        assert run.opened() == {"b"}

    def test_all_values_of_an_action_are_computed(self) -> None:
        action = agent(
            arguments=lit({"q": 1}),
            metadata=lit({"m": "x"}),
            payload=lit([1]),
            idempotency_key=lit("k"),
            correlation_id=lit("c"),
        )
        run = started(step("a", action, timeout_ms=5000))
        assert only(run.history[0][1], DoAction) == DoAction(
            place=StepPlace("a"),
            attempt=1,
            action=action,
            values={
                "arguments": {"q": 1},
                "metadata": {"m": "x"},
                "payload": [1],
                "idempotency_key": "k",
                "correlation_id": "c",
            },
            timeout_ms=5000,
        )

    def test_steps_in_a_circle_fail_the_execution_instead_of_hanging(self) -> None:
        run = started(step("a", depends_on="b"), step("b", depends_on="a"))
        assert run.end is not None
        assert run.end.status == "failed"
        assert run.end.error == "these steps wait for each other: a, b"


class TestJoins:
    def test_any_needs_one_and_later_completions_change_nothing(self) -> None:
        run = started(step("a"), step("b"), step("c", depends_on="a b", join=1))
        assert kinds(run.complete("b")) == ["DoAction c"]
        assert run.complete("a") == []
        run.complete("c")
        assert run.status == "completed"

    def test_a_number_needs_as_many(self) -> None:
        run = started(step("a"), step("b"), step("c"), step("d", depends_on="a b c", join=2))
        assert run.complete("a") == []
        assert kinds(run.complete("c")) == ["DoAction d"]

    def test_it_is_skipped_once_too_few_can_be_completed(self) -> None:
        run = started(
            step("a", when=lit(False)),
            step("b", on_failure="mend"),
            step("c"),
            step("mend"),
            step("two", depends_on="a b c", join=2),
            step("one", depends_on="a b c", join=1),
        )
        assert run.statuses()["two"] == "pending"
        commands = run.fail("b")
        assert MarkStep(place=StepPlace("two"), status="skipped") in commands
        assert run.statuses()["one"] == "pending"
        run.complete("c")
        assert run.opened() == {"mend", "one"}


class TestBranches:
    def test_when_skips_a_branch_transitively(self) -> None:
        run = started(
            step("a", when=read("trigger", "go")),
            step("b", depends_on="a"),
            step("c", depends_on="b"),
            step("other"),
            trigger={"go": False},
        )
        assert run.statuses() == {"a": "skipped", "b": "skipped", "c": "skipped", "other": "running"}
        run.complete("other", 1)
        assert run.end == EndExecution(status="completed", result={"other": 1})

    def test_when_is_computed_once_the_dependencies_are_there(self) -> None:
        run = started(step("a"), step("b", depends_on="a", when=result_of("a")))
        assert kinds(run.complete("a", True)) == ["DoAction b"]

    @pytest.mark.parametrize(
        ("condition", "error"),
        [
            (lit("yes"), "step a: the condition gives a text, not true or false"),
            (lit(None), "step a: the condition gives null, not true or false"),
            (never(), "step a: cannot compute: KeyError('missing')"),
        ],
    )
    def test_a_condition_that_is_no_bool_fails_the_step(self, condition: Any, error: str) -> None:
        run = started(step("a", when=condition))
        assert run.end == EndExecution(status="failed", error=error, error_type="EXPRESSION")

    def test_on_success_waits_for_its_step(self) -> None:
        run = started(step("a", on_success="b"), step("b"))
        assert run.opened() == {"a"}
        assert kinds(run.complete("a")) == ["DoAction b"]

    def test_on_success_and_on_failure_exclude_each_other(self) -> None:
        steps = (step("a", on_success="good", on_failure="bad"), step("good"), step("bad"))
        run = started(*steps)
        run.complete("a")
        assert run.statuses() == {"a": "completed", "good": "running", "bad": "skipped"}
        run = started(*steps)
        run.fail("a")
        assert run.statuses() == {"a": "failed", "good": "skipped", "bad": "running"}
        run.complete("bad", 7)
        assert run.end == EndExecution(status="completed", result={"bad": 7})

    def test_a_handler_reads_the_failure(self) -> None:
        run = started(
            step("a", on_failure="bad"),
            step("bad", agent(payload=read("error"))),
        )
        command = only(run.fail("a", "no disk", error_type="DISK"), DoAction)
        assert command.values == {"payload": {"step": "a", "type": "DISK", "message": "no disk"}}

    def test_values_read_the_error_of_a_step(self) -> None:
        value = Of(lambda env: env["steps"]["a"], "steps.a")
        run = started(step("a", on_failure="bad"), step("bad", agent(payload=value)))
        command = only(run.fail("a", "no disk", error_type="DISK"), DoAction)
        assert command.values == {
            "payload": {"status": "failed", "result": None, "error": "no disk", "error_type": "DISK"}
        }

    def test_one_of_several_failures_is_enough_for_a_handler(self) -> None:
        steps = (step("a", on_failure="bad"), step("b", on_failure="bad"), step("bad"))
        run = started(*steps)
        assert run.complete("a") == []
        assert kinds(run.fail("b")) == ["DoAction bad"]
        run = started(*steps)
        run.complete("a")
        assert MarkStep(place=StepPlace("bad"), status="skipped") in run.complete("b")

    def test_a_dependency_and_a_route_are_both_needed(self) -> None:
        steps = (step("a", on_failure="c"), step("b"), step("c", depends_on="b"))
        run = started(*steps)
        assert run.fail("a") == []
        assert kinds(run.complete("b")) == ["DoAction c"]
        run = started(*steps)
        assert kinds(run.complete("a")) == ["MarkStep c"]


class TestErrors:
    def test_the_first_pattern_that_matches_decides(self) -> None:
        handlers = (
            ErrorHandler(error="DISK*", run="disk"),
            ErrorHandler(error="*quota*", result=lit("half")),
            ErrorHandler(error="*", run="rest"),
        )
        steps = (step("a", on_error=handlers), step("disk"), step("rest"))
        run = started(*steps)
        run.fail("a", "x", error_type="DISK_FULL")
        assert run.statuses() == {"a": "failed", "disk": "running", "rest": "skipped"}
        run = started(*steps)
        run.fail("a", "over quota today")
        assert run.statuses() == {"a": "completed", "disk": "skipped", "rest": "skipped"}
        assert run.result("a") == "half"
        run = started(*steps)
        run.fail("a", "else")
        assert run.statuses() == {"a": "failed", "disk": "skipped", "rest": "running"}

    def test_brackets_of_a_pattern_are_literal(self) -> None:
        run = started(step("a", on_error=(ErrorHandler(error="[x]*", result=lit(1)),)))
        run.fail("a", "[x] is missing")
        assert run.status == "completed"

    def test_a_result_reads_the_error(self) -> None:
        run = started(step("a", on_error=(ErrorHandler(error="*", result=read("error", "message")),)))
        run.fail("a", "why")
        assert run.result("a") == "why"

    def test_on_failure_takes_what_no_pattern_takes(self) -> None:
        run = started(
            step("a", on_error=(ErrorHandler(error="X", run="x"),), on_failure="y"),
            step("x"),
            step("y"),
        )
        run.fail("a", "other")
        assert run.statuses() == {"a": "failed", "x": "skipped", "y": "running"}

    def test_a_handlers_result_that_fails_is_the_steps_failure(self) -> None:
        run = started(step("a", on_error=(ErrorHandler(error="*", result=never()),)))
        run.fail("a", "first")
        assert run.end is not None
        assert run.end.error == "step a: cannot compute: KeyError('missing') (in on_error of: first)"

    def test_a_failure_without_a_handler_ends_the_execution(self) -> None:
        run = started(step("a"), step("b"), step("w", WaitFor(event="e")), step("c", depends_on="a"))
        commands = run.fail("a", "broken", error_type="X")
        assert commands == [
            CancelStep(place=StepPlace("b")),
            CloseWait(place=StepPlace("w")),
            MarkStep(place=StepPlace("w"), status="cancelled"),
            EndExecution(status="failed", error="step a: broken", error_type="X"),
        ]
        assert run.statuses() == {"a": "failed", "b": "cancelled", "w": "cancelled", "c": "pending"}

    def test_an_argument_that_cannot_be_computed_fails_the_step(self) -> None:
        run = started(step("a", agent(arguments=never()), on_failure="b"), step("b"))
        assert run.statuses() == {"a": "failed", "b": "running"}
        assert (
            MarkStep(
                place=StepPlace("a"),
                status="failed",
                error="cannot compute: KeyError('missing')",
                error_type="EXPRESSION",
            )
            in (run.history[0][1])
        )

    def test_a_task_that_was_cancelled_by_hand_is_a_failure(self) -> None:
        run = started(step("a"))
        run.open.clear()
        run.tell(StepEnded(at_ms=START_MS, place=StepPlace("a"), outcome="cancelled"))
        assert run.end == EndExecution(status="failed", error="step a: cancelled", error_type="CANCELLED")

    def test_an_error_is_cut_in_the_state(self) -> None:
        run = started(step("a", on_failure="b"), step("b"))
        run.fail("a", "x" * 100_000)
        assert len(json.dumps(run.state)) < 2_000

    def test_fail_ends_the_execution_past_all_handlers(self) -> None:
        run = started(
            step("a"),
            step("no", Fail(message=read("trigger"), error_type="REFUSED"), on_failure="b"),
            step("b"),
            trigger="not today",
        )
        assert run.end == EndExecution(status="failed", error="step no: not today", error_type="REFUSED")
        assert run.statuses() == {"a": "cancelled", "no": "failed", "b": "pending"}


class TestResults:
    def test_output_replaces_the_raw_result(self) -> None:
        run = started(step("a", output=Of(lambda env: env["result"]["x"], "result.x")), step("b", depends_on="a"))
        commands = run.complete("a", {"x": 5})
        assert commands[0] == KeepResult(place=StepPlace("a"), result=5)
        assert run.result("a") == 5

    def test_an_output_that_fails_fails_the_step(self) -> None:
        run = started(step("a", output=Of(lambda env: env["result"]["x"], "result.x"), on_failure="b"), step("b"))
        commands = run.complete("a", {})
        assert kinds(commands) == ["MarkStep a", "DoAction b"]
        assert commands[0].error_type == "EXPRESSION"

    def test_a_schema_is_held_against_the_result(self) -> None:
        def validate(schema: Any, value: Any) -> str:
            return "" if value == schema["const"] else f"{value} is not {schema['const']}"

        steps = (step("a", result_schema={"const": 1}), compute(lambda env: 2, name="b", result_schema={"const": 3}))
        run = started(steps[0], validate=validate)
        run.complete("a", 1)
        assert run.status == "completed"
        run = started(steps[0], validate=validate)
        run.complete("a", 2)
        assert run.end == EndExecution(status="failed", error="step a: 2.0 is not 1", error_type="RESULT_SCHEMA")
        run = started(steps[1], validate=validate)
        assert run.end == EndExecution(status="failed", error="step b: 2 is not 3", error_type="RESULT_SCHEMA")
        run = started(steps[0])
        run.complete("a", 2)
        assert run.status == "completed"

    def test_outputs_are_the_result(self) -> None:
        run = started(step("a"), outputs=Of(lambda env: [env["steps"]["a"]["result"]], "steps.a.result"))
        run.complete("a", 1)
        assert run.end == EndExecution(status="completed", result=[1])

    def test_outputs_that_fail_fail_the_execution(self) -> None:
        run = started(step("a"), outputs=never())
        run.complete("a")
        assert run.end is not None
        assert run.end.error == "outputs: cannot compute: KeyError('missing')"

    def test_the_output_schema_is_held_against_the_result(self) -> None:
        run = started(compute(1, name="a"), output_schema={"x": 1}, validate=lambda schema, value: "wrong")
        assert run.end == EndExecution(status="failed", error="outputs: wrong", error_type="RESULT_SCHEMA")

    def test_a_result_is_bounded(self) -> None:
        run = started(compute("x" * 600_000, name="a"))
        assert run.end == EndExecution(
            status="failed",
            error="step a: the result has 600002 bytes; 524288 are allowed",
            error_type="LIMIT",
        )
        run = started(compute("x" * 300_000, name="a"), compute("x" * 300_000, name="b"))
        assert run.end is not None
        assert run.end.error == "outputs: the result has 600015 bytes; 524288 are allowed"

    def test_what_one_happening_computes_is_bounded(self) -> None:
        """Else a graph of 1,000 such steps keeps 500 MB in one transaction and one entry."""
        run = started(*(compute("x" * 500_000, name=f"s{number}") for number in range(20)), outputs=lit(1))
        assert run.end is not None
        assert run.end.error.startswith("step s4: the steps that are computed at once would have 2500010 bytes of")
        assert run.end.error_type == "LIMIT"
        waiting = (step(f"s{number}", agent(), output=lit("x" * 500_000)) for number in range(20))
        run = started(*waiting, outputs=lit(1))
        for number in range(20):
            run.complete(f"s{number}")
        assert run.end == EndExecution(status="completed", result=1)

    def test_a_result_that_is_no_json_fails_the_step(self) -> None:
        run = started(compute(lambda env: float("nan"), name="a"))
        assert run.end is not None
        assert run.end.error_type == "EXPRESSION"


class TestMaps:
    def steps(self, **fields: Any) -> Any:
        for_each = {name: fields.pop(name) for name in ("max_parallel", "mode") if name in fields}
        action = agent(arguments=Of(lambda env: [env["item"], env["index"]], "item", "index"))
        return step(
            "m",
            fields.pop("work", action),
            for_each=ForEach(items=read("trigger"), **for_each),
            **fields,
        )

    def test_each_item_is_a_place_of_its_step(self) -> None:
        run = Execution(graph(self.steps(), step("end", agent(payload=result_of("m")), depends_on="m")), ["x", "y"])
        commands = run.start()
        assert kinds(commands) == ["KeepResult m", "MarkStep m", "DoAction m", "DoAction m"]
        assert commands[0] == KeepResult(place=StepPlace("m", ITEMS), result=["x", "y"])
        assert commands[3].values == {"arguments": ["y", 1]}
        assert run.complete("m", "B", 1) == []
        commands = run.complete("m", "A", 0)
        assert commands[0] == KeepResult(place=StepPlace("m"), result=["A", "B"])
        assert commands[1].values == {"payload": ["A", "B"]}

    def test_an_empty_list_is_completed_at_once(self) -> None:
        run = started(self.steps(), trigger=[])
        assert run.end == EndExecution(status="completed", result={"m": []})
        assert run.needs == [NeedResult(TRIGGER)]

    def test_at_most_so_many_items_run(self) -> None:
        run = started(self.steps(max_parallel=2), trigger=list("abcde"))
        assert run.opened() == {"m[0]", "m[1]"}
        run.complete("m", 1, 1)
        assert run.opened() == {"m[0]", "m[2]"}
        run.page(run.ended("m", 0, result=0), run.ended("m", 2, result=2))
        assert run.opened() == {"m[3]", "m[4]"}
        run.complete("m", 3, 3)
        run.complete("m", 4, 4)
        assert run.result("m") == [0, 1, 2, 3, 4]

    def test_the_first_failure_cancels_the_rest(self) -> None:
        run = started(self.steps(max_parallel=2), trigger=list("abcde"))
        commands = run.fail("m", "bad", 1, "X")
        assert commands == [
            CancelStep(place=StepPlace("m", 0)),
            MarkStep(place=StepPlace("m"), status="failed", error="item 1: bad", error_type="X"),
            EndExecution(status="failed", error="step m: item 1: bad", error_type="X"),
        ]
        state = run.now_state
        assert [state.step_status(StepPlace("m", item)) for item in range(3)] == ["cancelled", "failed", "pending"]

    def test_ends_that_come_with_a_failure_count(self) -> None:
        run = started(self.steps(compensate=agent("undo")), trigger=list("abc"))
        commands = run.page(run.ended("m", 1, error="bad"), run.ended("m", 0, result="A"))
        assert kinds(commands) == ["CancelStep m", "MarkStep m", "DoAction m"]
        assert [commands[0].place.item, commands[2].place.item] == [2, 0]

    def test_settled_items_say_how_they_ended(self) -> None:
        run = started(self.steps(mode=MapMode.SETTLED), trigger=list("abc"))
        run.fail("m", "bad", 1, "X")
        run.complete("m", "A", 0)
        run.complete("m", "C", 2)
        assert run.result("m") == [
            {"status": "completed", "result": "A"},
            {"status": "failed", "error": "bad", "error_type": "X"},
            {"status": "completed", "result": "C"},
        ]

    def test_items_are_begun_in_pages(self) -> None:
        run = started(self.steps(), trigger=list(range(250)))
        assert len(run.open) == BEGUN_AT_ONCE == 25
        assert run.due_ms == START_MS
        run.pass_time()
        assert len(run.open) == 50
        run.pass_pages()
        assert len(run.open) == 250
        assert run.due_ms == 0
        for first in range(0, 250, 100):
            run.page(*[run.ended("m", item, result=item) for item in range(first, min(first + 100, 250))])
        assert run.result("m") == list(range(250))

    def test_ten_thousand_items_have_a_small_state(self) -> None:
        run = started(self.steps(), trigger=list(range(10_000)))
        run.pass_pages()
        assert len(run.open) == 10_000
        assert len(json.dumps(run.state)) < 1_000
        order = [item * 7919 % 10_000 for item in range(10_000)]
        largest = 0
        for first in range(0, 10_000, 100):
            run.page(*[run.ended("m", item, result=item) for item in order[first : first + 100]])
            largest = max(largest, len(json.dumps(run.state)))
        assert largest < 20_000
        assert run.result("m") == list(range(10_000))
        assert run.status == "completed"
        assert NeedItems("m") in run.needs

    @pytest.mark.parametrize(
        ("items", "error"),
        [
            ("text", "for_each gives a text, not a list"),
            (None, "for_each gives null, not a list"),
            ([0] * 10_001, "for_each has 10001 items; 10000 are allowed"),
        ],
    )
    def test_what_is_no_list_or_too_long_fails_the_step(self, items: Any, error: str) -> None:
        run = started(self.steps(), trigger=items)
        assert run.end is not None
        assert run.end.error == f"step m: {error}"

    def test_items_and_results_are_bounded(self) -> None:
        run = started(self.steps(), trigger=["x" * 600_000])
        assert run.end is not None
        assert run.end.error == "step m: items from 0 on: the result has 600004 bytes; 524288 are allowed"
        run = started(self.steps(), trigger=[1, 2])
        run.complete("m", "x" * 300_000, 0)
        run.complete("m", "x" * 300_000, 1)
        assert run.end is not None
        assert run.end.error_type == "LIMIT"

    def test_computed_items_are_not_asked_for(self) -> None:
        work = {"work": Compute(), "output": Of(lambda env: env["item"] * 2, "item")}
        run = started(self.steps(**work), trigger=[1, 2])
        assert run.end == EndExecution(status="completed", result={"m": [2, 4]})
        assert run.needs == [NeedResult(TRIGGER)]
        run = started(self.steps(**work), trigger=list(range(150)))
        run.pass_pages()
        assert run.result("m") == [2 * number for number in range(150)]

    def test_an_item_whose_value_fails_is_a_failed_item(self) -> None:
        output = Of(lambda env: 1 // env["item"], "item")
        run = started(self.steps(work=Compute(), output=output, mode=MapMode.SETTLED), trigger=[1, 0])
        assert run.result("m")[1] == {
            "status": "failed",
            "error": "cannot compute: ZeroDivisionError('float floor division by zero')",
            "error_type": "EXPRESSION",
        }

    def test_items_may_ask_wait_and_call(self) -> None:
        run = started(
            self.steps(work=AskStep(question=read("item"))),
            step("w", WaitFor(event="e", equals=read("item")), for_each=ForEach(items=read("trigger"))),
            step("s", WaitFor(signal="s"), for_each=ForEach(items=read("trigger"))),
            step("c", CallWorkflow(workflow="other", input=read("item")), for_each=ForEach(items=read("trigger"))),
            trigger=["p", "q"],
        )
        questions = [one.question for one in run.open.values() if isinstance(one, AskPerson)]
        assert questions == ["p", "q"]
        assert [one.value for one in run.waits.values()] == ["p", "q"]
        run.complete("m", {"approved": True}, 0)
        run.complete("m", {"approved": False}, 1)
        run.event("w", "E1", 1)
        run.event("w", "E0", 0)
        run.signal("s", 1)
        run.signal("s", 2)
        run.complete("c", "C", 0)
        run.complete("c", "D", 1)
        assert run.end is not None
        assert run.end.result == {
            "m": [{"approved": True}, {"approved": False}],
            "w": ["E0", "E1"],
            "s": [1, 2],
            "c": ["C", "D"],
        }

    def test_a_list_is_computed_once_though_its_step_is_retried(self) -> None:
        run = started(self.steps(max_parallel=1), trigger=list("abc"))
        run.complete("m", "A", 0)
        run.fail("m", "bad", 1)
        run.end = None
        commands = run.tell(RetryAsked(at_ms=run.now_ms))
        assert kinds(commands) == ["MarkStep m", "MarkStep m", "DoAction m"]
        assert (commands[2].place, commands[2].attempt) == (StepPlace("m", 1), 2)
        run.complete("m", "B", 1)
        run.complete("m", "C", 2)
        assert run.result("m") == ["A", "B", "C"]


class TestLoops:
    def test_rounds_follow_each_other(self) -> None:
        loop = While(condition=Of(lambda env: (env["last"] or 0) < 3, "last"))
        action = agent(arguments=Of(lambda env: [env["round"], env["last"]], "round", "last"))
        run = started(step("l", action, while_=loop))
        assert run.opened() == {"l[0]"}
        assert only(run.complete("l", 1, 0), DoAction).values == {"arguments": [1, 1]}
        assert only(run.complete("l", 2, 1), DoAction).values == {"arguments": [2, 2]}
        commands = run.complete("l", 3, 2)
        assert commands[0] == KeepResult(place=StepPlace("l"), result=3)
        assert run.status == "completed"

    def test_no_round_gives_null(self) -> None:
        run = started(step("l", while_=While(condition=lit(False))))
        assert run.end == EndExecution(status="completed", result={"l": None})

    def test_a_round_that_fails_fails_the_step(self) -> None:
        run = started(step("l", while_=While(condition=lit(True))))
        run.complete("l", 1, 0)
        run.fail("l", "bad", 1)
        assert run.end is not None
        assert run.end.error == "step l: round 1: bad"

    def test_rounds_are_bounded(self) -> None:
        loop = While(condition=lit(True), max_rounds=2)
        run = started(step("l", while_=loop, on_error=(ErrorHandler(error="LIMIT", result=lit("stop")),)))
        run.complete("l", 1, 0)
        run.complete("l", 2, 1)
        assert run.result("l") == "stop"

    def test_computed_rounds_go_on_in_pages(self) -> None:
        loop = While(condition=Of(lambda env: env["round"] < 250, "round"))
        run = started(step("l", Compute(), output=Of(lambda env: (env["last"] or 0) + 1, "last"), while_=loop))
        assert run.status == "running"
        run.pass_pages()
        assert run.end == EndExecution(status="completed", result={"l": 250})
        assert len(run.history) == 250 // BEGUN_AT_ONCE + 1

    def test_a_condition_that_fails_fails_the_step(self) -> None:
        run = started(step("l", while_=While(condition=never())))
        assert run.end is not None
        assert run.end.error == "step l: condition of round 0: cannot compute: KeyError('missing')"


class TestWaits:
    def test_a_duration_ends_when_it_is_over(self) -> None:
        run = started(step("w", WaitFor(duration=lit("1h30m"))), step("b", depends_on="w"))
        assert run.statuses()["w"] == "waiting"
        assert run.due_ms == START_MS + 90 * 60_000
        run.pass_time(HOUR)
        assert run.statuses()["w"] == "waiting"
        run.pass_time()
        assert run.opened() == {"b"}
        assert run.due_ms == 0

    @pytest.mark.parametrize("duration", [0, "0s"])
    def test_no_duration_is_over_at_once(self, duration: Any) -> None:
        assert started(step("w", WaitFor(duration=lit(duration)))).status == "completed"

    @pytest.mark.parametrize("duration", [-1, True, None, "soon", [], float("nan"), "9" * 50 + "s", 10**400])
    def test_what_is_no_duration_fails_the_step(self, duration: Any) -> None:
        run = started(step("w", WaitFor(duration=lit(duration))))
        assert run.end is not None
        assert run.end.error_type == "EXPRESSION"
        assert run.end.error.startswith("step w: wait: ")

    def test_a_moment_may_be_in_the_past(self) -> None:
        run = started(step("w", WaitFor(until=lit("2023-11-15T00:13:20+02:00"))))
        assert run.status == "completed"
        run = started(step("w", WaitFor(until=lit("2023-11-14T22:13:21Z"))))
        assert run.due_ms == START_MS + 1000
        run.pass_time()
        assert run.status == "completed"

    @pytest.mark.parametrize("moment", ["2023-11-14T22:13:21", "soon", None, 5])
    def test_what_is_no_moment_fails_the_step(self, moment: Any) -> None:
        run = started(step("w", WaitFor(until=lit(moment))))
        assert run.end is not None
        assert run.end.error == "step w: wait: `until` gives no moment such as '2026-11-29T18:00:00Z'"

    def test_a_moment_is_at_most_a_hundred_years_ahead(self) -> None:
        run = started(step("w", WaitFor(until=lit("9999-12-31T23:59:59-23:59"))))
        assert run.end is not None
        assert run.end.error == "step w: wait: `until` is more than 100 years ahead"

    def test_a_signal_wakes_one_step_with_its_data(self) -> None:
        run = started(step("w", WaitFor(signal="go")), step("v", WaitFor(signal="go")))
        run.signal("go", {"n": 1})
        assert run.statuses() == {"w": "completed", "v": "waiting"}
        assert run.result("w") == {"n": 1}
        run.signal("go", 2)
        assert run.end == EndExecution(status="completed", result={"w": {"n": 1}, "v": 2})

    def test_a_signal_before_its_wait_is_kept(self) -> None:
        run = started(step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        run.signal("go", 1)
        run.signal("go", 2)
        run.complete("a")
        assert run.end == EndExecution(status="completed", result={"a": None, "w": 1})

    def test_a_signal_may_have_to_fit(self) -> None:
        big = Of(lambda env: env["input"] > 5 and env["source"]["principal"] == "us::ada", "input", "source.principal")
        run = started(step("a"), step("w", WaitFor(signal="go", condition=big)), step("v", WaitFor(signal="go")))
        run.signal("go", 1)
        assert run.result("v") == 1
        run.signal("go", 2)
        run.signal("go", 6)
        assert run.result("w") == 6
        assert run.now_state.signals == [("go", 2, "us::ada")]
        run = started(step("a"), step("w", WaitFor(signal="go", condition=big), depends_on="a"))
        for number in (1, 7, 8):
            run.signal("go", number)
        run.complete("a")
        assert run.result("w") == 7

    def test_a_signal_that_no_step_waits_for_is_refused(self) -> None:
        run = started(step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        assert run.signal("no") == []
        problem = signal_problem(run.graph, run.now_state, "no", 1)
        assert problem == "no step of the workflow waits for this signal; the signals of the workflow are: go"
        assert signal_problem(run.graph, run.now_state, "go", 1) == ""

    def test_kept_signals_are_bounded(self) -> None:
        run = started(step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        for _ in range(300):
            run.signal("go", 1)
        assert len(run.now_state.signals) == 256
        assert signal_problem(run.graph, run.now_state, "go", 1).startswith("256 signals wait")
        run.complete("a")
        run = started(step("v", WaitFor(signal="go")), step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        assert signal_problem(run.graph, run.now_state, "go", "x" * 70_000) == ""
        run = started(step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        run.signal("go", "x" * 40_000)
        run.signal("go", "x" * 40_000)
        assert len(run.now_state.signals) == 1
        assert signal_problem(run.graph, run.now_state, "go", "x" * 40_000).startswith("the signals that wait")

    def test_a_signal_that_is_no_json_or_comes_too_late_is_refused(self) -> None:
        run = started(step("a"), step("w", WaitFor(signal="go"), depends_on="a"))
        problem = signal_problem(run.graph, run.now_state, "go", float("nan"))
        assert problem.startswith("the signal's data are not JSON")
        assert run.signal("go", float("nan")) == []
        run.fail("a")
        assert signal_problem(run.graph, run.now_state, "go", 1) == "the execution is failed"

    def test_a_signal_on_which_a_condition_fails_fails_the_wait(self) -> None:
        run = started(step("w", WaitFor(signal="go", condition=never())))
        run.signal("go", 1)
        assert run.end is not None
        assert run.end.error_type == "EXPRESSION"

    def test_timers_of_many_items_go_off_in_pages(self) -> None:
        wait = WaitFor(duration=Of(lambda env: env["index"] % 2 + 1, "index"))
        run = started(step("w", wait, for_each=ForEach(items=lit([0] * 1000), max_parallel=400)))
        run.pass_pages()
        run.now_ms += 5_000
        happenings = len(run.history)
        run.pass_time()
        assert run.due_ms == run.now_ms
        run.pass_pages()
        assert run.status == "running"
        while run.status == "running":
            run.pass_time()
            run.pass_pages()
        assert run.result("w") == [None] * 1000
        assert len(run.history) - happenings < 100

    def test_timers_of_ended_items_are_forgotten(self) -> None:
        wait = WaitFor(event="e")
        run = started(step("w", wait, timeout_ms=HOUR, for_each=ForEach(items=lit([0] * 600), max_parallel=5)))
        largest = 0
        for item in range(600):
            run.now_ms += 10
            run.event("w", item, item)
            largest = max(largest, sum(map(len, run.now_state.timers.values())))
        assert run.status == "completed"
        assert largest < 200

    def test_an_event_that_fits_ends_a_wait(self) -> None:
        condition = Of(lambda env: env["input"]["n"] > env["trigger"], "input.n", "trigger")
        wait = WaitFor(event="paid", key_source="input.order", equals=lit("o-1"), condition=condition)
        run = started(step("w", wait), trigger=5)
        assert run.waits == {
            StepPlace("w"): OpenWait(place=StepPlace("w"), event="paid", key_source="input.order", value="o-1")
        }
        before = run.state
        assert run.event("w", {"n": 5}) == []
        assert run.state == before
        commands = run.event("w", {"n": 6})
        assert commands[:2] == [
            CloseWait(place=StepPlace("w")),
            KeepResult(place=StepPlace("w"), result={"n": 6}),
        ]
        assert run.status == "completed"

    def test_a_condition_that_fails_fails_the_wait(self) -> None:
        run = started(step("w", WaitFor(event="paid", condition=never())))
        commands = run.event("w", {})
        assert kinds(commands) == ["CloseWait w", "MarkStep w", "EndExecution"]

    @pytest.mark.parametrize("work", [WaitFor(event="e"), WaitFor(signal="s"), WaitFor(duration=lit("1d"))])
    def test_a_wait_times_out(self, work: Any) -> None:
        run = started(step("w", work, timeout_ms=5000))
        assert run.due_ms == START_MS + 5000
        run.pass_time()
        assert run.end == EndExecution(status="failed", error="step w: timed out after 5 s", error_type="TIMEOUT")
        assert not run.waits

    def test_a_wait_that_times_out_may_have_a_default(self) -> None:
        run = started(step("w", WaitFor(event="e", default=lit("none")), timeout_ms=5000))
        run.pass_time()
        assert run.end == EndExecution(status="completed", result={"w": "none"})

    def test_a_default_that_fails_fails_the_wait(self) -> None:
        run = started(step("w", WaitFor(event="e", default=never()), timeout_ms=5000))
        run.pass_time()
        assert run.end is not None
        assert run.end.error_type == "EXPRESSION"

    def test_a_wait_is_tried_again(self) -> None:
        retry = RetryRule(max_attempts=2, backoff="constant", initial_ms=1000, jitter=0)
        run = started(step("w", WaitFor(event="e"), timeout_ms=5000, retry=retry))
        run.pass_time()
        assert not run.waits
        assert run.statuses() == {"w": "running"}
        assert run.due_ms == START_MS + 6000
        run.pass_time()
        assert run.waits
        assert run.due_ms == START_MS + 11_000
        run.pass_time()
        assert run.status == "failed"


class TestQuestions:
    def test_the_answer_is_the_result(self) -> None:
        ask = AskStep(question=lit("May I?"), of=read("trigger"), choices=("yes", "no"), text="why", form={"a": 1})
        run = started(step("q", ask), trigger="us::ada")
        assert only(run.history[0][1], AskPerson) == AskPerson(
            place=StepPlace("q"),
            attempt=1,
            question="May I?",
            of="us::ada",
            choices=("yes", "no"),
            text="why",
            form={"a": 1},
        )
        assert run.statuses() == {"q": "waiting"}
        run.complete("q", {"approved": True})
        assert run.end == EndExecution(status="completed", result={"q": {"approved": True}})

    def test_a_question_without_an_answer_times_out(self) -> None:
        run = started(step("q", AskStep(question=lit("?")), timeout_ms=1000))
        commands = run.pass_time()
        assert commands[0] == CancelStep(place=StepPlace("q"))
        assert run.end is not None
        assert run.end.error_type == "TIMEOUT"

    def test_a_question_may_have_a_default(self) -> None:
        run = started(step("q", AskStep(question=lit("?"), default=lit({"approved": False})), timeout_ms=1000))
        run.pass_time()
        assert run.end == EndExecution(status="completed", result={"q": {"approved": False}})

    def test_it_escalates_in_stages_counted_from_the_question(self) -> None:
        ask = AskStep(
            question=lit("?"),
            of=lit("us::ada"),
            escalate=(Escalation(after_ms=1000, of=lit("us::bob")), Escalation(after_ms=5000, of=lit("us::eve"))),
        )
        run = started(step("q", ask, timeout_ms=HOUR))
        assert run.due_ms == START_MS + 1000
        command = only(run.pass_time(), AskPerson)
        assert (command.of, command.attempt) == ("us::bob", 1)
        assert run.due_ms == START_MS + 5000
        assert only(run.pass_time(), AskPerson).of == "us::eve"
        assert run.due_ms == START_MS + HOUR
        run.complete("q", 1)
        assert run.status == "completed"
        assert run.due_ms == 0

    def test_an_escalation_that_fails_fails_the_question(self) -> None:
        run = started(step("q", AskStep(question=lit("?"), escalate=(Escalation(after_ms=1000, of=never()),))))
        commands = run.pass_time()
        assert commands[0] == CancelStep(place=StepPlace("q"))
        assert run.status == "failed"

    def test_a_question_that_is_no_text_is_asked_as_json(self) -> None:
        run = started(step("q", AskStep(question=lit({"a": [1]}))))
        assert only(run.history[0][1], AskPerson).question == '{"a":[1]}'
        run = started(step("q", AskStep(question=lit([float("nan")]))))
        assert run.end is not None
        assert run.end.error_type == "EXPRESSION"


class TestSubWorkflows:
    def test_it_is_started_with_its_input(self) -> None:
        run = started(step("s", CallWorkflow(workflow="other", input=read("trigger")), timeout_ms=9), trigger=[1])
        assert only(run.history[0][1], StartExecution) == StartExecution(
            place=StepPlace("s"), attempt=1, workflow="other", input=[1], timeout_ms=9
        )
        run.complete("s", "done")
        assert run.status == "completed"

    def test_it_is_tried_again_after_a_growing_delay(self) -> None:
        retry = RetryRule(max_attempts=4, initial_ms=1000, max_ms=3000, jitter=0, final=("FATAL",))
        run = started(step("s", CallWorkflow(workflow="other"), retry=retry))
        for attempt, delay in ((2, 1000), (3, 2000), (4, 3000)):
            run.fail("s", "x")
            assert run.due_ms == run.now_ms + delay
            assert run.statuses() == {"s": "running"}
            assert only(run.pass_time(), StartExecution).attempt == attempt
        run.fail("s", "x")
        assert run.status == "failed"

    def test_a_final_error_is_not_tried_again(self) -> None:
        retry = RetryRule(max_attempts=4, final=("FATAL",))
        run = started(step("s", CallWorkflow(workflow="other"), retry=retry))
        run.fail("s", "x", error_type="FATAL")
        assert run.status == "failed"

    def test_jitter_is_the_same_in_a_replay(self) -> None:
        def delay() -> int:
            retry = RetryRule(max_attempts=2, initial_ms=1000, jitter=0.5)
            run = started(step("s", CallWorkflow(workflow="other"), retry=retry))
            run.fail("s")
            return run.due_ms - START_MS

        assert delay() == delay()
        assert 500 <= delay() <= 1500
        assert delay() != 1000


class TestCompensation:
    def test_what_is_done_is_undone_in_reverse(self) -> None:
        undo = {"compensate": agent("undo", arguments=read("result"))}
        run = started(
            step("a", **undo),
            step("b", **undo, depends_on="a"),
            step("c", depends_on="b"),
            step("d", depends_on="c"),
        )
        run.complete("a", "A")
        run.complete("b", "B")
        run.complete("c", "C")
        command = only(run.fail("d", "broken", error_type="X"), DoAction)
        assert (command.place, command.compensates, command.values) == (StepPlace("b"), True, {"arguments": "B"})
        assert run.status == "compensating"
        command = only(run.undone("b"), DoAction)
        assert (command.place, command.values) == (StepPlace("a"), {"arguments": "A"})
        assert run.undone("a") == [
            MarkStep(place=StepPlace("a"), status="compensated"),
            EndExecution(status="failed", error="step d: broken", error_type="X"),
        ]
        assert run.statuses() == {"a": "compensated", "b": "compensated", "c": "completed", "d": "failed"}

    def test_the_order_is_that_of_completion(self) -> None:
        run = started(*(step(name, compensate=agent("undo")) for name in "abc"))
        for name in "bca":
            run.complete(name)
        assert run.status == "completed"
        run = started(*(step(name, compensate=agent("undo")) for name in "abc"), step("d"))
        for name in "bca":
            run.complete(name)
        run.fail("d")
        for name in "acb":
            assert set(run.undoing) == {StepPlace(name)}
            run.undone(name)
        assert run.status == "failed"

    def test_a_failed_compensation_does_not_hold_up_the_others(self) -> None:
        run = started(
            step("a", compensate=agent("undo")),
            step("b", compensate=agent(arguments=never())),
            step("c", compensate=agent("undo")),
            step("d"),
        )
        for name in "abc":
            run.complete(name)
        run.fail("d")
        commands = run.undone("c", error="gone")
        assert kinds(commands) == ["MarkStep c", "MarkStep b", "DoAction a"]
        assert commands[0].status == commands[1].status == "compensation_failed"
        run.undone("a")
        assert run.status == "failed"

    def test_a_step_whose_failure_gave_its_result_is_not_undone(self) -> None:
        handler = (ErrorHandler(error="*", result=lit(1)),)
        run = started(
            step("a", compensate=agent("undo"), on_error=handler),
            step("m", for_each=ForEach(items=lit([1, 2])), compensate=agent("undo"), on_error=handler),
            step("z"),
        )
        run.fail("a")
        run.complete("m", item=0)
        run.fail("m", item=1)
        run.fail("z")
        assert set(run.undoing) == {StepPlace("m", 0)}

    def test_compensations_that_emit_events_end_at_once(self) -> None:
        run = started(step("a", compensate=emit("undone")), step("b"))
        run.complete("a")
        assert kinds(run.fail("b")) == ["DoAction a", "MarkStep a", "EndExecution"]

    def test_a_cancel_compensates_too(self) -> None:
        run = started(step("a", compensate=agent("undo", payload=read("error"))), step("b"))
        run.complete("a")
        commands = run.tell(CancelAsked(at_ms=run.now_ms, reason="no longer wanted"))
        assert kinds(commands) == ["CancelStep b", "DoAction a"]
        assert commands[1].values["payload"]["message"] == "no longer wanted"
        assert run.tell(CancelAsked(at_ms=run.now_ms)) == []
        run.undone("a")
        assert run.end == EndExecution(status="cancelled", error="no longer wanted", error_type="CANCELLED")

    def test_items_are_undone_though_their_step_failed(self) -> None:
        run = started(
            step(
                "m",
                for_each=ForEach(items=lit(list("abcd"))),
                compensate=agent("undo", arguments=Of(lambda env: [env["item"], env["result"]], "item", "result")),
            )
        )
        run.complete("m", "A", 0)
        run.complete("m", "C", 2)
        commands = run.fail("m", "bad", 1)
        undos = [one for one in commands if isinstance(one, DoAction)]
        assert [one.values["arguments"] for one in undos] == [["c", "C"], ["a", "A"]]
        run.undone("m", 0)
        run.undone("m", 2)
        assert run.status == "failed"

    def test_items_are_undone_in_pages(self) -> None:
        for_each = ForEach(items=lit(list(range(250))))
        run = started(step("m", for_each=for_each, compensate=emit()), step("z"))
        run.pass_pages()
        for first in range(0, 250, 50):
            run.page(*[run.ended("m", item) for item in range(first, first + 50)])
        run.fail("z")
        assert run.status == "compensating"
        run.pass_pages()
        assert run.status == "failed"
        undone = [one.place.item for _, commands, _ in run.history for one in commands if isinstance(one, DoAction)]
        assert undone[-250:] == list(range(249, -1, -1))

    def test_rounds_are_undone_one_after_the_other(self) -> None:
        loop = While(condition=Of(lambda env: env["round"] < 2, "round"))
        run = started(step("l", while_=loop, compensate=agent("undo", arguments=read("result"))), step("z"))
        run.complete("l", "A", 0)
        run.complete("l", "B", 1)
        assert only(run.fail("z"), DoAction).values == {"arguments": "B"}
        assert only(run.undone("l", 1), DoAction).values == {"arguments": "A"}
        run.undone("l", 0)
        assert run.status == "failed"

    def test_rounds_that_end_at_once_are_undone_in_pages(self) -> None:
        loop = While(condition=Of(lambda env: env["round"] < 150, "round"))
        run = started(step("l", Compute(), while_=loop, compensate=emit()), step("z"))
        run.pass_pages()
        run.fail("z")
        assert run.status == "compensating"
        run.pass_pages()
        assert run.status == "failed"

    def test_it_waits_for_the_end_of_cancelled_sub_executions(self) -> None:
        run = started(
            step("a", compensate=agent("undo")),
            step("s", CallWorkflow(workflow="other"), compensate=agent("undo other")),
            step("b"),
        )
        run.complete("a")
        assert kinds(run.fail("b")) == ["CancelStep s"]
        place = StepPlace("s")
        commands = run.tell(StepEnded(at_ms=run.now_ms, place=place, outcome="cancelled", attempt=1))
        assert kinds(commands) == ["DoAction a"]

    def test_a_sub_execution_that_was_completed_meanwhile_is_undone_too(self) -> None:
        run = started(
            step("s", CallWorkflow(workflow="other"), compensate=agent("undo other", arguments=read("result"))),
            step("b"),
        )
        run.fail("b")
        command = only(run.tell(run.ended("s", result="S")), DoAction)
        assert (command.place, command.compensates, command.values) == (StepPlace("s"), True, {"arguments": "S"})
        run.undone("s")
        assert run.status == "failed"

    def test_late_ends_of_forward_work_are_not_those_of_compensation(self) -> None:
        run = started(step("a", compensate=agent("undo")), step("b"))
        late = run.ended("a")
        run.tell(late)
        run.fail("b")
        assert run.tell(late) == []
        assert run.status == "compensating"
        run.undone("a")
        assert run.status == "failed"


class TestRetryOfAnExecution:
    def test_what_failed_is_begun_again_and_results_stay(self) -> None:
        run = started(step("a"), step("b", depends_on="a"), step("c", agent(payload=result_of("a")), depends_on="b"))
        run.complete("a", 1)
        run.fail("b")
        run.end = None
        commands = run.tell(RetryAsked(at_ms=run.now_ms))
        assert commands[0] == MarkStep(place=StepPlace("b"), status="pending")
        assert (commands[1].place, commands[1].attempt) == (StepPlace("b"), 2)
        assert run.status == "running"
        assert only(run.complete("b", 2), DoAction).values == {"payload": 1}
        run.complete("c", 3)
        assert run.end == EndExecution(status="completed", result={"a": 1, "b": 2, "c": 3})

    def test_cancelled_and_therefore_skipped_steps_are_begun_again(self) -> None:
        run = started(
            step("a", on_failure="bad"),
            step("b", depends_on="a"),
            step("bad"),
            step("off", when=lit(False)),
            step("c"),
        )
        run.tell(CancelAsked(at_ms=run.now_ms))
        assert run.statuses() == {
            "a": "cancelled",
            "b": "pending",
            "bad": "pending",
            "off": "skipped",
            "c": "cancelled",
        }
        run.end = None
        run.tell(RetryAsked(at_ms=run.now_ms))
        assert run.opened() == {"a", "c"}
        run.complete("a")
        run.complete("b")
        run.complete("c")
        assert run.status == "completed"
        assert run.statuses()["off"] == "skipped"

    def test_what_was_compensated_is_done_again(self) -> None:
        run = started(step("a", compensate=agent("undo")), step("b", depends_on="a"))
        run.complete("a", 1)
        run.fail("b")
        run.undone("a")
        run.end = None
        run.tell(RetryAsked(at_ms=run.now_ms))
        assert run.opened() == {"a"}
        assert run.now_state.attempt(StepPlace("a")) == 2

    def test_a_running_or_completed_execution_is_not_retried(self) -> None:
        run = started(step("a"))
        assert run.tell(RetryAsked(at_ms=run.now_ms)) == []
        run.complete("a")
        assert run.tell(RetryAsked(at_ms=run.now_ms)) == []
        assert run.status == "completed"


class TestPause:
    def test_nothing_begins_until_it_is_resumed(self) -> None:
        run = started(step("a"), step("b", depends_on="a"), step("m", for_each=ForEach(items=lit(list(range(45))))))
        assert run.tell(PauseAsked(at_ms=run.now_ms)) == []
        assert run.due_ms == 0
        assert run.complete("a") == []
        assert run.status == "paused"
        commands = run.tell(ResumeAsked(at_ms=run.now_ms))
        assert kinds(commands).count("DoAction b") == 1
        assert len(run.open) == 1 + 45

    def test_a_failure_ends_it_once_it_is_resumed(self) -> None:
        run = started(step("a"), step("b"))
        run.tell(PauseAsked(at_ms=run.now_ms))
        run.fail("a", "x")
        assert run.status == "paused"
        assert run.complete("b") == []
        run.tell(ResumeAsked(at_ms=run.now_ms))
        assert run.end is not None
        assert run.end.error == "step a: x"

    def test_a_cancel_ends_a_pause(self) -> None:
        run = started(step("a"))
        run.tell(PauseAsked(at_ms=run.now_ms))
        run.tell(CancelAsked(at_ms=run.now_ms))
        assert run.status == "cancelled"

    def test_retries_rest(self) -> None:
        retry = RetryRule(max_attempts=2, jitter=0)
        run = started(step("s", CallWorkflow(workflow="other"), retry=retry))
        run.fail("s")
        run.tell(PauseAsked(at_ms=run.now_ms))
        assert run.due_ms == 0
        assert run.pass_time(HOUR) == []
        run.tell(ResumeAsked(at_ms=run.now_ms))
        run.pass_time()
        assert run.opened() == {"s"}

    def test_a_budget_of_steps_pauses_it(self) -> None:
        run = started(*(step(name) for name in "abcd"), budget=Budget(steps=3))
        assert run.history[0][1][-1] == PauseExecution(reason="the budget of 3 steps is used up")
        assert run.opened() == {"a", "b", "c"}
        assert run.status == "paused"
        run.tell(ResumeAsked(at_ms=run.now_ms))
        assert run.opened() == {"a", "b", "c", "d"}


class TestTimeout:
    def test_an_execution_times_out(self) -> None:
        run = started(step("a"), timeout_ms=HOUR)
        assert run.due_ms == START_MS + HOUR
        run.pass_time()
        assert run.end == EndExecution(
            status="failed", error="the execution timed out after 3600 s", error_type="TIMEOUT"
        )
        assert run.statuses() == {"a": "cancelled"}

    @pytest.mark.parametrize("work", [WaitFor(signal="go"), AskStep(question=lit("?"))])
    def test_waiting_takes_no_time(self, work: Any) -> None:
        run = started(step("a"), step("w", work, depends_on="a"), step("b", depends_on="w"), timeout_ms=HOUR)
        run.pass_time(HOUR // 2)
        run.complete("a")
        assert run.due_ms == 0
        run.now_ms += 100 * HOUR
        if isinstance(work, AskStep):
            run.complete("w")
        else:
            run.signal("go")
        assert run.due_ms == run.now_ms + HOUR // 2
        run.pass_time()
        assert run.status == "failed"

    def test_a_retried_execution_has_its_whole_time(self) -> None:
        run = started(step("a"), timeout_ms=HOUR)
        run.pass_time()
        run.end = None
        run.tell(RetryAsked(at_ms=run.now_ms))
        assert run.due_ms == run.now_ms + HOUR

    def test_a_loop_that_waits_takes_no_time(self) -> None:
        run = started(step("l", WaitFor(signal="go"), while_=While(condition=lit(True))), timeout_ms=HOUR)
        assert run.due_ms == 0
        run = started(step("l", while_=While(condition=lit(True))), timeout_ms=HOUR)
        assert run.due_ms == START_MS + HOUR
        run = started(step("m", WaitFor(signal="go"), for_each=ForEach(items=lit([1]))), timeout_ms=HOUR)
        assert run.due_ms == 0
        run = started(step("m", for_each=ForEach(items=lit([1]))), timeout_ms=HOUR)
        assert run.due_ms == START_MS + HOUR

    def test_a_wait_beside_work_takes_time(self) -> None:
        run = started(step("a"), step("w", WaitFor(signal="go")), timeout_ms=HOUR)
        assert run.due_ms == START_MS + HOUR

    def test_a_pause_takes_no_time(self) -> None:
        run = started(step("a"), timeout_ms=HOUR)
        run.pass_time(HOUR // 2)
        run.tell(PauseAsked(at_ms=run.now_ms))
        assert run.due_ms == 0
        run.now_ms += 10 * HOUR
        run.tell(ResumeAsked(at_ms=run.now_ms))
        assert run.due_ms == run.now_ms + HOUR // 2


class TestContinuing:
    def test_it_goes_on_with_another_input(self) -> None:
        run = started(
            step("a"),
            step("w", WaitFor(signal="go")),
            step("c", ContinueAs(input=result_of("a"), workflow="next"), depends_on="a"),
        )
        commands = run.complete("a", [1])
        assert commands == [
            MarkStep(place=StepPlace("c"), status="completed"),
            MarkStep(place=StepPlace("w"), status="cancelled"),
            ContinueExecution(workflow="next", input=[1]),
        ]
        assert run.status == "completed"
        assert run.signal("go") == []

    def test_an_input_is_bounded(self) -> None:
        run = started(step("c", ContinueAs(input=lit("x" * 600_000))))
        assert run.end is not None
        assert run.end.error_type == "LIMIT"

    def test_an_input_that_fails_fails_the_step(self) -> None:
        run = started(step("c", ContinueAs(input=never()), on_failure="b"), step("b"))
        assert run.opened() == {"b"}


class TestLateHappenings:
    def test_nothing_happens_before_the_start_or_twice(self) -> None:
        run = Execution(graph(step("a")))
        assert run.tell(CancelAsked(at_ms=START_MS)) == []
        run.start()
        before = run.state
        assert run.tell(Started(at_ms=START_MS + 5, trigger=1)) == []
        assert run.state == before

    @pytest.mark.parametrize(
        "place",
        [StepPlace("no"), StepPlace("a", 0), StepPlace("b"), StepPlace("m"), StepPlace("m", 5), StepPlace("m", -7)],
    )
    @pytest.mark.parametrize("compensates", [False, True])
    def test_an_end_of_what_is_not_open_is_ignored(self, place: StepPlace, compensates: bool) -> None:
        run = started(step("a"), step("b", depends_on="a"), step("m", for_each=ForEach(items=lit([1, 2]))))
        before = run.state
        for outcome in ("completed", "failed", "cancelled"):
            ended = StepEnded(at_ms=START_MS + 9, place=place, outcome=outcome, compensates=compensates)
            assert run.tell(ended) == []
        assert run.state == before

    def test_an_end_that_comes_twice_counts_once(self) -> None:
        run = started(step("a"), step("b"), step("c", depends_on="a"))
        ended = run.ended("a", result=1)
        assert kinds(run.tell(ended)) == ["DoAction c"]
        before = run.state
        assert run.tell(ended) == []
        assert run.tell(StepEnded(at_ms=START_MS, place=StepPlace("a"), outcome="failed", error="x")) == []
        assert run.state == before

    def test_an_end_of_an_earlier_attempt_is_ignored(self) -> None:
        retry = RetryRule(max_attempts=2, jitter=0)
        run = started(step("s", CallWorkflow(workflow="other"), retry=retry))
        first = run.ended("s", error="x")
        run.tell(first)
        assert run.tell(first) == []
        run.pass_time()
        assert run.tell(first) == []
        assert run.opened() == {"s"}

    def test_time_that_passes_early_changes_nothing(self) -> None:
        run = started(step("w", WaitFor(duration=lit("1h"))))
        before = run.state
        run.now_ms += 5
        assert run.pass_time(5) == []
        assert run.state == before

    def test_an_ended_execution_ignores_all(self) -> None:
        run = started(step("a"))
        run.complete("a")
        before = run.state
        assert run.tell(CancelAsked(at_ms=START_MS)) == []
        assert run.tell(PauseAsked(at_ms=START_MS)) == []
        assert run.tell(ResumeAsked(at_ms=START_MS)) == []
        assert run.pass_time(5) == []
        assert run.state == before


def test_a_new_state_is_small_and_reads_as_pending() -> None:
    state = State.new()
    assert state.to_json() == {"status": "running"}
    assert state.step_status(StepPlace("a")) == "pending"
    assert state.attempt(StepPlace("a")) == 0
    assert state.due_ms == 0
    assert StepPlace("a").item == NO_ITEM
