"""Workflow documents become graphs, or give all their errors at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    CallWorkflow,
    Compute,
    ContinueAs,
    EvaluationError,
    Fail,
    Graph,
    MapMode,
    RetryRule,
    Trigger,
    WaitFor,
)
from aether_trio.model.workflows.documents import compile_document
from aether_trio.model.workflows.reading import MAX_PROBLEMS, Findings, pointer
from aether_trio.services.workflows.documents.tools import TOOLS

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def compiled(document: dict[str, Any], *, strict: bool = True) -> Graph:
    graph, findings = compile_document("workflow", document, TOOLS, strict=strict)
    assert [problem.message for problem in findings.errors] == []
    assert isinstance(graph, Graph)
    return graph


def findings_of(document: Any, *, strict: bool = True) -> Findings:
    graph, findings = compile_document("workflow", document, TOOLS, strict=strict)
    assert graph is None or not findings.errors
    return findings


def errors(document: Any, *, strict: bool = True) -> list[str]:
    return [f"{pointer(one.path)}: {one.text()}" for one in findings_of(document, strict=strict).errors]


def warnings(*steps: dict[str, Any]) -> list[str]:
    found = findings_of(flow(*steps))
    assert found.errors == []
    return [one.text() for one in found.warnings]


def flow(*steps: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"id": "flow", "steps": list(steps), **rest}


def act(name: str, **rest: Any) -> dict[str, Any]:
    return {"id": name, "action": {"agent": "worker"}, **rest}


def test_a_document_in_the_references_form() -> None:
    graph = compiled(
        {
            "name": "report",
            "version": 3,
            "trigger": {"event": "asked", "source_agent": "*", "condition": "input.kind == 'report'"},
            "steps": [
                {
                    "id": "search",
                    "action": {
                        "agent": "searcher",
                        "tool_name": "search",
                        "arguments": {"topic": "{{ .trigger.topic }}", "most": 5},
                        "retry": {"max_attempts": 3, "backoff": "fixed"},
                    },
                    "on_success": "write",
                    "on_failure": "mourn",
                    "timeout": "1h30m",
                },
                {
                    "id": "write",
                    "action": {"agent": "writer", "arguments": {"found": "{{.steps.search.result.n}}"}},
                    "depends_on": ["search"],
                },
                {"id": "mourn", "action": {"type": "emit_event", "event_name": "failed", "payload": [1]}},
            ],
        }
    )
    assert (graph.id, graph.version, graph.workspace) == ("report", 3, "*")
    assert graph.trigger is not None
    assert graph.trigger.condition is not None
    assert graph.trigger.condition.evaluate({"input": {"kind": "report"}}, now=lambda: NOW) is True
    search, write, mourn = graph.steps.values()
    assert search.retry == RetryRule(max_attempts=3, backoff="fixed")
    assert isinstance(search.work, Action)
    assert search.work.retry == search.retry
    assert search.timeout_ms == 5_400_000
    assert search.work.arguments is not None
    assert search.work.arguments.evaluate({"trigger": {"topic": "x: y"}}, now=lambda: NOW) == {
        "topic": "x: y",
        "most": 5,
    }
    assert (write.depends_on, write.targeted_by) == (("search",), ("search",))
    assert mourn.failure_target_of == ("search",)
    assert isinstance(mourn.work, Action)
    assert mourn.work.type is ActionType.EMIT_EVENT


def test_every_kind_of_step() -> None:
    graph = compiled(
        flow(
            {"id": "sub", "workflow": "other", "input": {"n": {"$expr": "trigger.n"}}},
            {"id": "sleep", "wait": "5m"},
            {"id": "until", "wait": {"until": "{{.trigger.at}}"}},
            {"id": "sign", "wait": {"signal": "go"}, "timeout": "1d"},
            {
                "id": "paid",
                "wait": {"event": "payment", "key": "input.order", "equals": "trigger.order", "default": {"paid": 0}},
                "timeout": "2w",
            },
            {"id": "yes", "ask": "Go on?"},
            {
                "id": "who",
                "ask": {
                    "question": "How many?",
                    "of": "{{.trigger.boss}}",
                    "choices": ["one", "two"],
                    "text": "Why",
                    "form": {"n": "integer"},
                    "escalate": {"after": "1h", "of": "ceo"},
                },
            },
            {"id": "sum", "output": {"n": {"$expr": "trigger.n"}}},
            {"id": "again", "continue_as": {"input": {"n": 1}}, "when": "trigger.again == true"},
            {"id": "stop", "fail": "no {{.trigger.n}}", "when": False},
            act("each", for_each={"items": "trigger.list", "max_parallel": 4, "mode": "settled"}),
            act("loop", **{"while": {"condition": "last.more == true", "max_rounds": 7}}),
            act(
                "careful",
                on_error=[{"error": "TIMEOUT*", "result": {"late": True}}, {"run": "sorry"}],
                compensate={"agent": "undoer", "arguments": {"id": "{{.steps.careful.result.id}}"}},
                retry={"max_attempts": 5, "initial": "2s", "max": "1m", "jitter": 0.5, "final": ["BAD*"]},
            ),
            act("sorry"),
            {"id": "last", "output": 1, "depends_on": ["sub", "sum", "each"], "join": 2},
        )
    )
    work = {name: step.work for name, step in graph.steps.items()}
    assert isinstance(work["sub"], CallWorkflow)
    assert work["sub"].workflow == "other"
    assert isinstance(work["sleep"], WaitFor)
    assert work["sleep"].duration is not None
    assert isinstance(work["paid"], WaitFor)
    assert (work["paid"].event, work["paid"].key_source) == ("payment", "input.order")
    assert work["paid"].equals is not None
    assert work["paid"].equals.evaluate({"trigger": {"order": 7.0}}, now=lambda: NOW) == 7
    assert isinstance(work["who"], AskStep)
    assert work["who"].escalate[0].after_ms == 3_600_000
    assert work["who"].form == {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert isinstance(work["sum"], Compute)
    assert isinstance(work["again"], ContinueAs)
    assert isinstance(work["stop"], Fail)
    assert graph.steps["each"].for_each is not None
    assert graph.steps["each"].for_each.mode is MapMode.SETTLED
    assert graph.steps["loop"].while_ is not None
    assert graph.steps["loop"].while_.max_rounds == 7
    careful = graph.steps["careful"]
    assert [(one.error, one.run) for one in careful.on_error] == [("TIMEOUT*", ""), ("*", "sorry")]
    assert graph.steps["sorry"].failure_target_of == ("careful",)
    assert careful.retry == RetryRule(max_attempts=5, initial_ms=2000, max_ms=60_000, jitter=0.5, final=("BAD*",))
    assert graph.steps["last"].join == 2


WRONG = {
    "an unknown step": (
        flow(act("search"), act("write", depends_on=["serch"])),
        ["/steps/1/depends_on/0: step 'write' depends on 'serch': did you mean 'search'?"],
    ),
    "an unknown target": (
        flow(act("a", on_success="zzzzz")),
        ["/steps/0/on_success: step 'a' has on_success 'zzzzz'; known are a"],
    ),
    "an unknown key": (
        flow(act("a", depend_on=[])),
        ["/steps/0/depend_on: step 'a' has no key 'depend_on': did you mean 'depends_on'?"],
    ),
    "an unknown key of the document": (
        flow(act("a"), step=[]),
        ["/step: the workflow has no key 'step': did you mean 'steps'?"],
    ),
    "an unknown key of an action": (
        flow({"id": "a", "action": {"agent": "x", "argument": {}}}),
        ["/steps/0/action/argument: step 'a', action has no key 'argument': did you mean 'arguments'?"],
    ),
    "two steps with an id": (
        flow(act("a"), act("a")),
        ["/steps/1/id: step 'a' is there twice: it is also the id of step 1"],
    ),
    "an id that looks like an item": (
        flow(act("a[1]")),
        ["/steps/0/id: step 'a[1]': id 'a[1]' contains '[', which is not allowed in a step's id"],
    ),
    "no id": (flow({"action": {"agent": "x"}}), ["/steps/0: step 1 has no id"]),
    "no steps": ({"id": "a"}, ["/: the workflow has no steps"]),
    "steps that are a map": (
        {"id": "a", "steps": {}},
        ["/steps: the workflow: steps has to be a list, and is a map"],
    ),
    "no name": ({"steps": [act("a")]}, ["/: the workflow has no id"]),
    "a circle": (
        flow(act("a", depends_on=["c"]), act("b", depends_on=["a"]), act("c", depends_on=["b"])),
        ["/steps/0/depends_on/0: these steps wait for each other: a → b → c → a"],
    ),
    "a circle over targets": (
        flow(act("a", on_success="b"), act("b", on_error={"run": "a"})),
        ["/steps/1/on_error/run: these steps wait for each other: a → b → a"],
    ),
    "two circles": (
        flow(
            act("a", depends_on=["b"]),
            act("b", depends_on=["a"]),
            act("c", depends_on=["d"]),
            act("d", depends_on=["c"]),
        ),
        [
            "/steps/0/depends_on/0: these steps wait for each other: a → b → a",
            "/steps/2/depends_on/0: these steps wait for each other: c → d → c",
        ],
    ),
    "itself": (flow(act("a", depends_on="a")), ["/steps/0/depends_on: step 'a' depends on 'a', which is itself"]),
    "nothing to do": (
        flow({"id": "a"}),
        ["/steps/0: step 'a' does nothing: it has no action, workflow, wait, ask, fail, continue_as and no output"],
    ),
    "two things to do": (
        flow({"id": "a", "wait": "1s", "fail": "x"}),
        ["/steps/0/fail: step 'a' has both wait and fail: make two steps of it"],
    ),
    "a duration without a unit": (
        flow(act("a", timeout=30)),
        ["/steps/0/timeout: step 'a': timeout has to be a duration with a unit, such as '30s', and is a number"],
    ),
    "a wrong duration": (
        flow(act("a", timeout="soon")),
        ["/steps/0/timeout: step 'a': timeout: 'soon' is not a duration such as 90s, 5m or 1h30m"],
    ),
    "a wrong type": (
        flow(act("a", depends_on=5)),
        ["/steps/0/depends_on: step 'a': depends_on has to be a list of texts, and is a number"],
    ),
    "a number for a text": (
        {"id": 7, "steps": [act("a")]},
        ["/id: the workflow: id has to be a text, and is a number; quotes make a text of it"],
    ),
    "an unknown name": (
        flow(act("a", when="triger.x == 1")),
        ["/steps/0/when: step 'a', when: there is no 'triger' here: did you mean 'trigger'?"],
    ),
    "an unknown step in an expression": (
        flow(act("search"), act("b", when="steps.serch.result == 1", depends_on=["search"])),
        ["/steps/1/when: step 'b', when: there is no step 'serch': did you mean 'search'?"],
    ),
    "a step that is not upstream": (
        flow(act("a"), act("b", when="steps.a.result == 1")),
        ["/steps/1/when: step 'b', when: step 'a' need not have ended by then: add it to depends_on"],
    ),
    "a field that a step does not have": (
        flow(act("a"), act("b", when="steps.a.results == 1", depends_on=["a"])),
        ["/steps/1/when: step 'b', when: 'steps.a' has no field 'results': did you mean 'result'?"],
    ),
    "a field that an input does not have": (
        flow(act("a", when="trigger.topik == 'x'"), inputs={"topic": "string"}),
        ["/steps/0/when: step 'a', when: 'trigger' has no field 'topik': did you mean 'topic'?"],
    ),
    "a field of a text": (
        flow(act("a", when="inputs.topic.x == 'x'"), inputs={"topic": "string"}),
        ["/steps/0/when: step 'a', when: 'inputs.topic' is a text and has no field 'x'"],
    ),
    "a field that a result does not have": (
        flow(
            act("a", result={"title": "string"}),
            act("b", depends_on=["a"], when="steps.a.result.titel == 'x'"),
        ),
        ["/steps/1/when: step 'b', when: 'steps.a.result' has no field 'titel': did you mean 'title'?"],
    ),
    "a field that an output does not have": (
        flow(
            {"id": "a", "output": {"n": 1}},
            {"id": "b", "depends_on": ["a"], "output": "{{.steps.a.result.m}}"},
        ),
        ["/steps/1/output: step 'b', output: 'steps.a.result' has no field 'm'; known are n"],
    ),
    "an item outside a map": (
        flow(act("a", when="item.x == 1")),
        ["/steps/0/when: step 'a', when: 'item' is there only in a step with for_each"],
    ),
    "a round outside a loop": (
        flow({"id": "a", "output": {"$expr": "round"}}),
        ["/steps/0/output/$expr: step 'a', output: 'round' is there only in a step with while"],
    ),
    "a condition that is no bool": (
        flow(act("a", when="'yes'")),
        ["/steps/0/when: step 'a', when: the condition gave \"yes\" instead of true or false"],
    ),
    "a condition that is a text": (
        flow(act("a", when="inputs.topic"), inputs={"topic": "string"}),
        ["/steps/0/when: step 'a', when is a text, not true or false"],
    ),
    "items that are a map": (
        flow(
            {"id": "a", "ask": "ok?"},
            act("b", depends_on=["a"], for_each="steps.a.result"),
            act("c", depends_on=["a"], when="steps.a.result"),
        ),
        [
            "/steps/1/for_each: step 'b', for_each: items is a map, not a list",
            "/steps/2/when: step 'c', when is a map, not true or false",
        ],
    ),
    "a condition that is a number": (
        flow(act("a", when=5)),
        ["/steps/0/when: step 'a', when has to be an expression, and is a number"],
    ),
    "a condition that is a template": (
        flow(act("a", when="{{ .trigger.x }}")),
        ["/steps/0/when: step 'a', when is an expression, not a template: write it without '{{' and '}}'"],
    ),
    "an unknown type of an input": (
        flow(act("a"), inputs={"topic": "strng"}),
        ["/inputs/topic: the workflow, inputs 'topic' has the unknown type 'strng': did you mean 'string'?"],
    ),
    "a join of a step": (
        flow({"id": "a", "action": {"type": "join", "join": {}}}),
        ["/steps/0/action/type: step 'a', action: only rules have joins; a step has depends_on and join"],
    ),
    "join of more steps than there are": (
        flow(act("a"), act("b", depends_on=["a"], join=2)),
        ["/steps/1/join: step 'b': join is 2, and it depends on 1 steps"],
    ),
    "an agent that is no identity": (
        flow({"id": "a", "action": {"agent": "no good"}}),
        [
            "/steps/0/action/agent: step 'a', action: agent 'no good' contains ' '; '*', '>', space and control bytes are not allowed"
        ],
    ),
    "items that are a template": (
        flow(act("a", for_each="{{ .trigger.list }}")),
        [
            "/steps/0/for_each: step 'a', for_each, items is an expression, not a template: write it without '{{' and '}}'"
        ],
    ),
    "key without equals": (
        flow({"id": "a", "wait": {"event": "e", "key": "input.id"}}),
        ["/steps/0/wait: step 'a', wait: key and equals belong together"],
    ),
    "an event's key over the execution": (
        flow({"id": "a", "wait": {"event": "e", "key": "trigger.id", "equals": "trigger.id"}}),
        ["/steps/0/wait/key: step 'a', wait, key: 'trigger' is not there yet: the data of the event are 'input'"],
    ),
    "$expr with company": (
        flow({"id": "a", "output": {"$expr": "1", "x": 2}}),
        ["/steps/0/output/$expr: step 'a', output: a map with $expr has no other key, and this has 'x'"],
    ),
    "no map": ([], ["/: the document has to be a map, and is a list"]),
}


@pytest.mark.parametrize(("document", "expected"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_its_place(document: Any, expected: list[str]) -> None:
    assert errors(document) == expected


def test_errors_of_a_language_have_their_place_in_the_text() -> None:
    (problem,) = findings_of(flow(act("a", when="trigger.x ==\n  ??"))).errors
    assert (problem.line, problem.column) == (2, 3)
    (problem,) = findings_of(flow({"id": "a", "output": "x {{ .y"})).errors
    assert (problem.line, problem.column) == (1, 3)
    assert problem.message == "step 'a', output: unclosed action"
    (problem,) = findings_of(flow(act("b"), act("a", when="true and\n steps.b.x == 1", depends_on="b"))).errors
    assert (problem.line, problem.column) == (2, 10)


def test_all_errors_come_at_once_and_are_bounded() -> None:
    found = findings_of(flow(*(act("a", when="nope == 1") for _ in range(150))))
    assert len(found.errors) == MAX_PROBLEMS
    assert found.more == 49  # ids that are there twice
    assert len(errors({"id": "no good", "x": 1, "steps": [{"id": "a", "wait": {}}], "timeout": 1})) == 4


def test_fields_that_go_writes_for_nothing_are_nothing() -> None:
    action = {
        "type": "",
        "agent": "x",
        "tool_name": "",
        "arguments": None,
        "workspace": "",
        "metadata": None,
        "task_type": "",
        "target_implementation": "",
        "payload": None,
        "retry": {"max_attempts": 0, "backoff": ""},
        "event_name": "",
        "idempotency_key": "",
        "correlation_id": "",
        "completion_event": {"enabled": False, "event_name": ""},
    }
    step = {"id": "a", "action": action, "on_success": "", "on_failure": "", "depends_on": None, "timeout": ""}
    trigger = {"event": "e", "source_agent": "", "condition": ""}
    graph = compiled({"name": "n", "version": 0, "trigger": trigger, "steps": [{**step, "retry": None}]})
    assert graph.version == 1
    assert graph.steps["a"].work == Action(agent="x")
    assert graph.trigger == Trigger(event="e")


def test_conditions_that_may_be_a_bool_are_taken() -> None:
    document = flow(
        act("a", when="inputs.ok"),
        act("b", when="inputs.topic == ''"),
        act("c", when="inputs?.ok"),
        act("d", when="inputs.rest"),
        act("e", for_each="inputs.list"),
        inputs={"ok": "boolean?", "topic": "string", "rest": "any", "list": "string[]"},
    )
    compiled(document)


def test_operations_name_unknown_keys_and_take_other_casings() -> None:
    found = findings_of(flow({"Id": "a", "Action": {"Agent": "x", "new": 1}, "more": 2}, extra=3), strict=False)
    assert found.errors == []
    assert [pointer(one) for one in found.ignored] == ["/extra", "/steps/0/more", "/steps/0/Action/new"]
    assert errors({"id": "a", "Steps": [act("a")]}) == [
        "/Steps: the workflow has no key 'Steps': did you mean 'steps'?",
        "/: the workflow has no steps",
    ]
    assert errors(flow({"id": "a", "ID": "b", "output": 1}), strict=False) == ["/steps/0/ID: step 'a' has 'id' twice"]


@pytest.mark.parametrize("text", [False, True])
def test_a_record_has_its_definition_as_a_map_or_as_text(text: bool) -> None:
    definition = {"name": "inner", "version": 2, "steps": [act("a")]}
    given = (
        '{"name": "inner", "version": 2, "steps": [{"id": "a", "action": {"agent": "worker"}}]}' if text else definition
    )
    graph = compiled(
        {"ID": "outer", "Version": 4, "Workspace": "prod", "Definition": given, "Active": True}, strict=False
    )
    assert (graph.id, graph.version, graph.workspace) == ("outer", 4, "prod")
    assert graph.source == {"id": "outer", "version": 4, "workspace": "prod", "steps": [act("a")]}
    assert errors({"id": "a", "definition": "{"}) == [
        "/definition: the definition is not JSON: Expecting property name enclosed in double quotes"
    ]
    assert errors({"id": "a", "definition": '{"steps": [], "steps": []}'}) == [
        "/definition: the definition is not JSON: the key 'steps' is there twice"
    ]
    assert errors({"id": "a", "definition": {"steps": 5}}) == [
        "/definition/steps: the workflow: steps has to be a list, and is a number"
    ]


def test_equal_content_has_an_equal_digest() -> None:
    one = compiled(flow(act("a"), version=1))
    assert one.digest == compiled({"version": 2, "steps": [act("a")], "name": "flow"}).digest
    assert one.digest == compiled({"Definition": flow(act("a")), "ID": "flow"}).digest
    assert one.digest != compiled(flow(act("b"))).digest
    assert one.digest != compiled(flow(act("a"), workspace="prod")).digest


def test_steps_that_can_never_run_are_warned_of() -> None:
    assert warnings(act("a", on_failure="b"), act("b", depends_on="a"), act("c", depends_on="b")) == [
        "step 'b' can never run: step 'a' would have to be both completed and failed",
        "step 'c' can never run: step 'a' would have to be both completed and failed",
    ]
    assert warnings(act("a", when=False), act("b", depends_on=["a"])) == [
        "step 'a' can never run: its condition is always false",
        "step 'b' can never run: step 'a' never does",
    ]
    assert warnings({"id": "a", "fail": "x"}, act("b", depends_on=["a"])) == [
        "step 'b' can never run: step 'a' ends the execution and is never completed"
    ]
    assert warnings(act("a", on_failure="b"), act("b"), act("c", depends_on=["a", "b"], join="any")) == []


def test_a_failed_step_can_be_read_where_it_leads() -> None:
    compiled(
        flow(
            act("a", on_error=[{"error": "X*", "result": {"$expr": "error"}}, {"run": "b"}]),
            {"id": "b", "output": "{{.steps.a.error}}"},
            outputs={"a": {"$expr": "steps.a.result"}},
        )
    )


def test_a_value_that_fails_names_its_place() -> None:
    graph = compiled(flow({"id": "a", "output": {"n": [{"$expr": "trigger.a.b"}]}}))
    value = graph.steps["a"].output
    assert value is not None
    with pytest.raises(EvaluationError, match=r"^output\.n\[0\]: 1:11: 'b' cannot be read from nil"):
        value.evaluate({"trigger": {}}, now=lambda: NOW)


def test_a_thousand_steps_are_the_most() -> None:
    steps = [act(f"s{index}", depends_on=[f"s{index - 1}"] if index else []) for index in range(1000)]
    assert len(compiled(flow(*steps)).steps) == 1000
    assert errors(flow(*steps, act("more"))) == ["/steps: the workflow has 1001 steps; at most 1000 are allowed"]
