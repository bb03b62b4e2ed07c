"""Files and data of operations become definitions, or all that is wrong with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from aether_trio.model.workflows.definition import (
    ActionType,
    EvaluationError,
    Graph,
    JoinMode,
    MachineDefinition,
    RuleDefinition,
    ScheduleDefinition,
)
from aether_trio.model.workflows.documents import kind_of_document
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.model.workflows.records import read_action
from aether_trio.services.workflows.documents.reader import Documents, read_file, read_files, read_json
from aether_trio.services.workflows.documents.tools import TOOLS

NOW = datetime(2030, 1, 1, tzinfo=UTC)

TOO_EARLY = "need not have ended by then: add it to depends_on"
ENDLESS = "these start each other without an end"
REPORT = """\
name: report
inputs:
  topic: string
  most: integer?
trigger: {event: asked, condition: 'input.topic != ""'}
steps:
  - id: search
    for_each: {items: 'split(trigger.topic, " ")', max_parallel: 3}
    action:
      agent: searcher
      arguments: {word: "{{ .item }}", most: {$expr: "trigger.most ?? 5"}}
    retry: {max_attempts: 3, initial: 2s}
    result: {url: string}
  - id: write
    depends_on: [search]
    action:
      agent: writer
      arguments:
        urls: {$expr: "map(steps.search.result, .url)"}
  - id: approve
    depends_on: [write]
    ask: Is "{{ .trigger.topic }}" good?
    timeout: 2d
  - id: publish
    depends_on: [approve]
    when: steps.approve.result.approved
    action: {type: emit_event, event_name: published}
outputs: {text: {$expr: steps.write.result}}
"""


def one(text: str, name: str = "a.yaml") -> Any:
    found = read_file(name, text)
    assert found.errors == ()
    (definition,) = found.definitions
    return definition


def errors(text: str, name: str = "a.yaml") -> list[str]:
    return list(read_file(name, text).errors)


def operation(kind: str, data: Any) -> list[str]:
    with pytest.raises(DefinitionErrors) as caught:
        read_json(kind, data)
    return list(caught.value.problems)


def test_a_workflow_as_a_file() -> None:
    graph = one(REPORT)
    assert isinstance(graph, Graph)
    assert list(graph.steps) == ["search", "write", "approve", "publish"]
    assert graph.input_schema == {
        "type": "object",
        "properties": {"topic": {"type": "string"}, "most": {"type": ["integer", "null"]}},
        "required": ["topic"],
    }
    search = graph.steps["search"]
    assert search.for_each is not None
    env = {"trigger": {"topic": "a b"}}
    assert search.for_each.items.evaluate(env, now=lambda: NOW) == ["a", "b"]
    arguments = search.work.arguments  # type: ignore[union-attr]
    assert arguments.evaluate({**env, "item": "x: {y}"}, now=lambda: NOW) == {"word": "x: {y}", "most": 5}
    read = graph.steps["write"].work.arguments  # type: ignore[union-attr]
    assert read.evaluate({"steps": {"search": {"result": [{"url": "u"}]}}}, now=lambda: NOW) == {"urls": ["u"]}


def test_all_errors_have_their_positions() -> None:
    text = (
        REPORT.replace("depends_on: [search]", "depends_on: [serch]")
        .replace("'input.topic != \"\"'", "'input.topik != \"\"'")
        .replace("timeout: 2d", "timout: 2d")
        .replace("when: steps.approve.result.approved", "when: steps.approve.result.approvd and )")
        .replace("map(steps.search.result, .url)", "map(steps.write.result, .url)")
    )
    assert errors(text, "report.yaml") == [
        "report.yaml:5:43: the trigger, condition: 'input' has no field 'topik': did you mean 'topic'?",
        "report.yaml:15:18: step 'write' depends on 'serch': did you mean 'search'?",
        f"report.yaml:19:34: step 'write', action, arguments.urls: step 'write' {TOO_EARLY}",
        "report.yaml:23:5: step 'approve' has no key 'timout': did you mean 'timeout'?",
        "report.yaml:26:44: step 'publish', when: ')' closes nothing here, or something before it is missing",
    ]


def test_several_documents_of_all_kinds() -> None:
    found = read_file(
        "all.yaml",
        """name: flow
steps: [{id: a, action: {agent: x}}]
---
rule_name: notify
source_event: done
destination_template: |
  agent: notifier
  arguments:
    who: {{ .input.who }}
---
id: nightly
schedule_type: cron
schedule_expr: 0 3 * * *
workflow_id: flow
timezone: Europe/Berlin
---
name: door
initial_state: open
states:
  open: {on: {close: closed}}
  closed: {on: {open: open}}
""",
    )
    assert found.errors == ()
    assert found.warnings == ()
    assert [type(each) for each in found.definitions] == [
        Graph,
        RuleDefinition,
        ScheduleDefinition,
        MachineDefinition,
    ]
    assert found.checked() == found.definitions
    assert found.places == ("all.yaml:1:1", "all.yaml:4:1", "all.yaml:11:1", "all.yaml:17:1")
    assert len({each.digest for each in found.definitions}) == 4
    for definition in found.definitions:  # what is stored and answered is the same document again
        source = json.loads(json.dumps(definition.source))
        kind = kind_of_document(source)
        again, ignored = read_json(kind, source)
        assert (type(again), again.digest, ignored) == (type(definition), definition.digest, [])


def test_one_file_has_its_right_documents_though_others_are_wrong() -> None:
    found = read_file("a.yaml", "name: a\nsteps: [{id: a, output: 1}]\n---\nname: b\nsteps: 5\n---\nname: c: d\n")
    assert [each.id for each in found.definitions] == ["a"]  # type: ignore[union-attr]
    assert found.errors == (
        "a.yaml:5:8: the workflow: steps has to be a list, and is a number",
        "a.yaml:7:8: mapping values are not allowed in this context: a text with ': ' needs quotes",
    )
    with pytest.raises(DefinitionErrors, match="5:8"):
        found.checked()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a.yaml:1:1: there is no document"),
        ("# nothing\n---\n", "a.yaml:1:1: there is no document"),
        (
            "just a text",
            "a.yaml:1:1: a document is a map, with keys such as id and steps, and this is a text",
        ),
        ("- id: a\n- id: b", "a.yaml:1:1: a document is a map, with keys such as id and steps, and this is a list"),
        (
            "some: thing",
            "a.yaml:1:1: it is not clear what this document is: write kind: and one of workflow, rule, schedule, machine, webhook",
        ),
        (
            "kind: flow\nsteps: []",
            "a.yaml:1:1: 'flow' is no kind of document: there are workflow, rule, schedule, machine, webhook",
        ),
        ("kind: workflow\nname: a", "a.yaml:1:1: the workflow has no steps"),
        ("name: a\nsteps: []", "a.yaml:2:8: the workflow has no steps"),
    ],
)
def test_what_is_no_document(text: str, says: str) -> None:
    assert errors(text) == [says]


def test_a_json_file_and_lists_of_documents() -> None:
    graph = one('{"name": "a",\n\t"steps": [{"id": "a", "output": 1}]}', "a.json")
    assert graph.id == "a"
    assert errors('{"name": "a",\n"steps": [,]}', "a.json") == ["a.json:2:11: it is not JSON: Expecting value"]
    assert errors('{"a": NaN}', "a.json") == ["a.json:1:1: it is not JSON: NaN is not JSON"]
    assert errors('[{"name": "a", "steps": [{"id": "a"}]}, 5]', "a.json") == [
        "a.json: /steps/0: step 'a' does nothing: it has no action, workflow, wait, ask, fail, continue_as and no output",
        "a.json: /: a document is a map, with keys such as id and steps, and this is a number",
    ]
    assert errors("[" * 100_000, "a.json") == ["a.json:1:1: it is not JSON: it is nested deeper than 64 levels"]


def test_a_definition_that_is_there_twice() -> None:
    flow = "name: a\nsteps: [{id: a, output: 1}]\n"
    found = read_files([("one.yaml", flow), ("two.yaml", f"# x\n{flow}---\n{flow}workspace: other\n")])
    assert found.errors == ("two.yaml:2:1: workflow 'a' is there twice: it is also at one.yaml:1:1",)


# -- rules -----------------------------------------------------------------------------------------

RULE = {
    "RuleName": "notify",
    "SourceEvent": "done",
    "SourceAgent": "worker",
    "Workspace": "prod",
    "TriggerCondition": "input.kind == 'report'",
    "TransformationStyle": "template-yaml",
    "DestinationTemplate": "agent: mailer\narguments:\n  to: {{ .input.to }}\n  n: {{ .input.n }}\n",
    "Priority": 5,
    "Active": True,
    "ID": 7,
    "CreatedAt": "2026-01-01T00:00:00Z",
}


def rule(**fields: Any) -> RuleDefinition:
    definition, ignored = read_json("rule", {"rule_name": "r", "source_event": "e", **fields})
    assert ignored == []
    assert isinstance(definition, RuleDefinition)
    return definition


def test_a_rule_in_both_casings() -> None:
    definition, ignored = read_json("rule", RULE)
    snake = {
        "rule_name": "notify",
        "source_event": "done",
        "source_agent": "worker",
        "workspace": "prod",
        "trigger_condition": "input.kind == 'report'",
        "transformation_style": "template-yaml",
        "destination_template": RULE["DestinationTemplate"],
        "priority": 5,
        "active": True,
    }
    assert ignored == []
    assert isinstance(definition, RuleDefinition)
    assert definition.source == snake
    other, _ = read_json("rule", snake)
    assert other.digest == definition.digest
    assert (definition.name, definition.source_event, definition.source_agent) == ("notify", "done", "worker")
    assert (definition.workspace, definition.priority, definition.active) == ("prod", 5, True)
    assert definition.condition is not None
    assert definition.condition.equalities() == ((("input", "kind"), "report"),)  # type: ignore[attr-defined]


HOSTILE = [
    "a: b",
    "x\nagent: root",
    "{a: 1}",
    "[1, 2]",
    "- x",
    "'",
    '"',
    "# no",
    "&a *a",
    "| x",
    "null",
    "true",
    "5",
    "{{ .input }}",
    "{$expr: input}",
    "\ue0000\ue001",
    "!!python/object:os.system x",
    "---\n...",
    "\u202e\x1b[31m",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_an_event_says_is_never_structure(text: str) -> None:
    definition, _ = read_json("rule", RULE)
    assert isinstance(definition, RuleDefinition)
    env = {"input": {"to": text, "n": 2.0}, "source": {}}
    document = definition.destination.evaluate(env, now=lambda: NOW)
    assert document == {"agent": "mailer", "arguments": {"to": text, "n": 2}}
    action = read_action(document, TOOLS, "rule")
    assert action.arguments is not None
    assert action.arguments.evaluate(env, now=lambda: NOW) == document["arguments"]
    tree = rule(destination_template={"agent": "mailer", "payload": ["{{ .input.to }}", {"$expr": "input"}]})
    document = tree.destination.evaluate(env, now=lambda: NOW)
    assert document == {"agent": "mailer", "payload": [text, {"to": text, "n": 2}]}


def test_an_expression_in_an_event_is_not_evaluated() -> None:
    tree = rule(destination_template={"agent": "mailer", "payload": {"$expr": "input"}})
    env = {"input": {"$expr": "1 + 1"}}
    action = read_action(tree.destination.evaluate(env, now=lambda: NOW), TOOLS, "rule")
    assert action.payload is not None
    assert action.payload.evaluate(env, now=lambda: NOW) == {"$expr": "1 + 1"}


def test_a_join() -> None:
    join = rule(
        destination_template="""\
type: join
join:
  name: items
  correlation_key: input.job
  mode: set
  expected_set: input.items
  member_key: input.item
  dedup_key: input.id
  window: 5s
  timeout: 1h
  on_complete:
    type: create_task
    task_type: finish
    payload: {job: "{{ .input.job }}"}
    retry: {max_attempts: 3}
  on_timeout: {agent: mourner}
"""
    )
    env = {"input": {"job": "input.x }", "items": ["a", "b"]}}
    action = read_action(join.destination.evaluate(env, now=lambda: NOW), TOOLS, "rule")
    assert action.type is ActionType.JOIN
    assert action.join is not None
    assert (action.join.name, action.join.mode) == ("items", JoinMode.SET)
    assert (action.join.timeout_ms, action.join.window_ms, action.join.linger_ms) == (3_600_000, 5_000, 60_000)
    assert action.join.correlation_key.evaluate(env, now=lambda: NOW) == "input.x }"
    assert action.join.on_complete is not None
    assert action.join.on_complete.payload is not None
    assert action.join.on_complete.payload.evaluate(env, now=lambda: NOW) == {"job": "input.x }"}
    assert action.join.on_complete.retry.max_attempts == 3


def test_a_destination_that_is_wrong_for_an_event_says_so() -> None:
    template = rule(destination_template="type: {{ .input.type }}\nagent: {{ .input.agent }}\n")
    env = {"input": {"type": "mail", "agent": "a b"}}
    with pytest.raises(EvaluationError, match=r"type is 'mail'; it has to be one of .*; .*agent 'a b' contains ' '"):
        read_action(template.destination.evaluate(env, now=lambda: NOW), TOOLS, "rule")
    with pytest.raises(EvaluationError, match=r"rule 'r', destination_template: the template gave \"x\" instead of"):
        rule(destination_template="{{ .input.x }}").destination.evaluate({"input": {"x": "x"}}, now=lambda: NOW)
    with pytest.raises(EvaluationError, match=r"rule 'r', destination_template: 1:11"):
        rule(destination_template="agent: {{ .input.x.y }}").destination.evaluate({"input": {}}, now=lambda: NOW)
    with pytest.raises(EvaluationError, match="mapping values are not allowed"):
        rule(destination_template="{{ if .input }}a: b: {{ .input.x }}{{ end }}").destination.evaluate(
            {"input": {"x": 1}}, now=lambda: NOW
        )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rule_name": ""}, "/rule_name: the rule has no rule_name"),
        ({"source_event": None}, "/source_event: rule 'r' has no source_event"),
        ({"destination_template": "a: {{ .x"}, "/destination_template: rule 'r', destination_template: "),
        ({"destination_template": "agent: x\nagnt: y"}, ""),
        (
            {"destination_template": "type: create_task"},
            "/destination_template: rule 'r', destination_template has no task_type",
        ),
        (
            {"destination_template": "a: b: c"},
            "/destination_template: rule 'r', destination_template is not YAML: mapping values",
        ),
        (
            {"destination_template": "agent: {{ .inputs.x }}"},
            "/destination_template: rule 'r', destination_template: there is no 'inputs' here: did you mean 'input'?",
        ),
        (
            {"destination_template": "payload: {$expr: '{{ .input.x }}'}"},
            "/destination_template: rule 'r', destination_template is a template, and $expr",
        ),
        (
            {"destination_template": {"agent": "x", "type": "join"}},
            "/destination_template: rule 'r', destination_template, join has to be a map",
        ),
        (
            {"destination_template": 5},
            "/destination_template: rule 'r', destination_template has to be a text or a map",
        ),
        ({"trigger_condition": "input.x =="}, "/trigger_condition: rule 'r', trigger_condition: "),
        ({"trigger_condition": "1 + 1"}, "/trigger_condition: rule 'r', trigger_condition: the condition gave 2"),
        (
            {"trigger_condition": "steps.x"},
            "/trigger_condition: rule 'r', trigger_condition: there are no 'steps' here",
        ),
        ({"transformation_style": "jsonnet"}, "/transformation_style: rule 'r': transformation_style is 'jsonnet'"),
        ({"workspace": "a b"}, "/workspace: rule 'r': workspace 'a b' contains ' '"),
        ({"priority": "high"}, "/priority: rule 'r': priority has to be a whole number, and is a text"),
    ],
)
def test_rules_that_are_wrong(fields: dict[str, Any], says: str) -> None:
    document = {"rule_name": "r", "source_event": "e", "destination_template": "agent: x", **fields}
    if not says:
        read_json("rule", document)  # operations ignore unknown keys
        return
    (problem,) = operation("rule", document)
    assert problem.startswith(says)


@pytest.mark.parametrize(
    "template",
    [
        "type: {{ .input.type }}",
        "{{ .input.all }}",
        "{{ if .input.x }}agent: x{{ else }}type: emit_event\nevent_name: e{{ end }}",
        "agent: x\npriority: {{ .input.n }}\narguments: {{ .input.a }}\n{{ .input.k }}: 1",
        {"agent": "{{ .input.agent }}", "priority": {"$expr": "input.n"}, "arguments": {"$expr": "input"}},
        {"type": {"$expr": "input.type"}},
        {
            "type": "join",
            "join": {"name": "x", "correlation_key": "input.x", "mode": "{{ .input.m }}", "timeout": "{{ .input.t }}"},
        },
    ],
)
def test_what_depends_on_the_event_is_not_refused(template: Any) -> None:
    rule(destination_template=template)


def test_rules_that_feed_each_other_are_warned_of() -> None:
    found = read_file(
        "loop.yaml",
        """rule_name: one
source_event: a
destination_template: {type: emit_event, event_name: b}
---
rule_name: two
source_event: b
destination_template: |
  type: create_task
  task_type: t
  completion_event:
    enabled: true
    event_name: c
---
name: three
trigger: {event: c}
steps:
  - id: x
    action: {type: emit_event, event_name: a}
---
rule_name: elsewhere
source_event: a
source_agent: somewhere
destination_template: {type: emit_event, event_name: a}
---
rule_name: self
source_event: d
destination_template: {type: emit_event, event_name: d}
""",
    )
    assert found.errors == ()
    assert found.warnings == (
        f"loop.yaml:1:1: {ENDLESS}: rule 'one' → event 'b' → rule 'two' → event 'c' → workflow 'three' → event 'a' → rule 'one'",
        f"loop.yaml:25:1: {ENDLESS}: rule 'self' → event 'd' → rule 'self'",
    )


TYPED = """id: typed
inputs: {n: integer, name: "string?", rows: "number[]", of: {at: string}, any: any, yes: boolean, either: {anyOf: [{properties: {a: {type: number}}}, {properties: {b: {type: number}}}]}}
steps:
  - id: text
    output: "a text"
  - id: declared
    action: {agent: x, tool_name: y}
    result: {n: number}
  - id: each
    for_each: {$expr: trigger.rows}
    output: {n: 1}
  - id: handled
    output: 1
    on_error: {result: none}
  - id: last
    depends_on: [text, declared, each, handled]
    %s
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("output: {$expr: \"trigger.n + 'a'\"}", ["32: step 'last', output: '+' does not take a number and a text"]),
        ("when: trigger.n < trigger.name", ["21: step 'last', when: '<' does not take a number and a text"]),
        ("when: trigger.n + 1", ["11: step 'last', when gives a number, not true or false"]),
        ("when: trigger.yes and trigger.name", ["11: step 'last', when gives a text, not true or false"]),
        ("when: not trigger.of", ["11: step 'last', when: 'not' does not take a map"]),
        ("output: {$expr: upper(trigger.rows)}", ["35: step 'last', output: upper() does not take a list there"]),
        (
            "output: {$expr: first(trigger.rows) + trigger.of.at}",
            ["41: step 'last', output: '+' does not take a number and a text"],
        ),
        (
            "output: {$expr: steps.text.result - 1}",
            ["39: step 'last', output: '-' does not take a text and a number"],
        ),
        (
            "output: {$expr: steps.declared.result.n + steps.text.result}",
            ["45: step 'last', output: '+' does not take a number and a text"],
        ),
        (
            "output: {$expr: first(steps.each.result).n + steps.each.status}",
            ["48: step 'last', output: '+' does not take a number and a text"],
        ),
        (
            "output: [{$expr: trigger.n * trigger.name}, {$expr: -trigger.yes}]",
            [
                "32: step 'last', output[0]: '*' does not take a number and a text",
                "57: step 'last', output[1]: '-' does not take a bool",
            ],
        ),
        ("output: {$expr: trigger.n + (trigger.name ?? 1)}", []),
        ("output: {$expr: trigger.any + 'a'}", []),
        ("output: {$expr: steps.handled.result + 'a'}", []),
        ("output: {$expr: trigger.name == trigger.n}", []),
        ("output: {$expr: trigger.of.at contains 'a'}", []),
        ("output: {$expr: trigger.either.a + 'a'}", []),
        ("for_each: {items: {$expr: trigger.rows}}\n    output: {$expr: index % 2 + item}", []),
        ("when: trigger.yes", []),
    ],
)
def test_operations_that_fail_for_the_declared_types_are_errors(line: str, says: list[str]) -> None:
    if "output" not in line:
        line += "\n    output: 1"
    assert errors(TYPED % line) == [f"a.yaml:17:{one}" for one in says]


def test_what_is_stored_is_read_without_a_check_of_types() -> None:
    steps = [{"id": "a", "output": {"$expr": "trigger.n + 'a'"}}]
    read_json("workflow", {"id": "flow", "inputs": {"n": "number"}, "steps": steps})


SELF = "workflow 'a' → workflow 'a'"


@pytest.mark.parametrize(
    ("steps", "circle"),
    [
        ("[{id: x, workflow: a}]", SELF),
        ("[{id: x, output: 1}, {id: y, workflow: a, depends_on: [x]}]", SELF),
        ("[{id: x, output: 1, on_success: y}, {id: y, workflow: a}]", SELF),
        ("[{id: x, for_each: [1], output: 1}, {id: y, workflow: a, depends_on: [x]}]", SELF),
        ("[{id: x, workflow: a, when: trigger.n > 0}]", ""),
        ("[{id: x, output: 1, when: trigger.n > 0}, {id: y, workflow: a, depends_on: [x]}]", ""),
        ("[{id: x, output: 1, when: trigger.n > 0, on_success: y}, {id: y, workflow: a}]", ""),
        ("[{id: x, workflow: a, for_each: {$expr: trigger.items}}]", ""),
        ("[{id: x, workflow: a, while: {condition: trigger.n > round}}]", ""),
        ("[{id: x, output: 1, on_failure: y}, {id: y, workflow: a}]", ""),
        ("[{id: x, output: 1, on_error: {run: y}}, {id: y, workflow: a}]", ""),
        ("[{id: x, fail: no, on_success: y}, {id: y, workflow: a}]", ""),
        ("[{id: x, workflow: b}]", ""),
        ("[{id: x, continue_as: {input: {}}}]", ""),
    ],
)
def test_a_workflow_that_calls_itself_for_ever_is_warned_of(steps: str, circle: str) -> None:
    found = read_file("a.yaml", f"id: a\nsteps: {steps}\n")
    assert found.errors == ()
    assert [one for one in found.warnings if ENDLESS in one] == ([f"a.yaml:1:1: {ENDLESS}: {circle}"] if circle else [])


def test_workflows_that_call_each_other_are_warned_of_also_through_events() -> None:
    found = read_file(
        "loop.yaml",
        """id: a
steps: [{id: x, workflow: b}]
---
id: b
workspace: "*"
steps: [{id: x, workflow: a}]
---
id: c
workspace: w
trigger: {event: go}
steps: [{id: x, workflow: d}]
---
id: d
workspace: w
steps: [{id: x, action: {type: emit_event, event_name: gone}}]
---
rule_name: r
workspace: w
source_event: gone
destination_template: {type: emit_event, event_name: go}
---
id: e
workspace: v
steps: [{id: x, workflow: f}]
---
id: f
workspace: w
steps: [{id: x, workflow: e}]
""",
    )
    assert found.errors == ()
    assert sorted(found.warnings) == [
        f"loop.yaml:1:1: {ENDLESS}: workflow 'a' → workflow 'b' → workflow 'a'",
        f"loop.yaml:8:1: {ENDLESS}: workflow 'c' → workflow 'd' → event 'gone' → rule 'r' → event 'go' → workflow 'c'",
    ]


@pytest.mark.parametrize(
    ("condition", "circle"),
    [
        ("", "rule 'next' → a task → rule 'next'"),
        ('trigger_condition: input.task_type == "pack"', "rule 'next' → a task of type 'pack' → rule 'next'"),
        ('trigger_condition: input.task_type in ["x", "pack"]', "rule 'next' → a task of type 'pack' → rule 'next'"),
        ('trigger_condition: input.task_type == "order"', ""),
        ("source_agent: packer", "rule 'next' → a task → rule 'next'"),
    ],
)
def test_rules_that_feed_each_other_through_tasks_are_found(condition: str, circle: str) -> None:
    text = f"""\
rule_name: next
source_event: task.completed
{condition}
destination_template: {{type: create_task, task_type: pack, target_implementation: packer}}
"""
    found = read_file("loop.yaml", text)
    assert found.errors == ()
    assert found.warnings == ((f"loop.yaml:1:1: {ENDLESS}: {circle}",) if circle else ())


def test_workflows_that_begin_at_the_end_of_tasks_are_found() -> None:
    text = """\
id: flow
trigger: {event: task.completed}
steps: [{id: one, output: 1}]
---
id: other
trigger: {event: task.completed, condition: 'input.task_type == "job"'}
steps: [{id: one, action: {agent: a}}]
---
rule_name: again
source_event: task.failed
destination_template: {type: create_task, task_type: job, target_implementation: hand}
"""
    found = read_file("loop.yaml", text)
    assert found.errors == ()
    assert found.warnings == (f"loop.yaml:1:1: {ENDLESS}: workflow 'flow' → a task → workflow 'flow'",)


# -- schedules -------------------------------------------------------------------------------------


def schedule(**fields: Any) -> dict[str, Any]:
    return {"id": "s", "schedule_type": "interval", "schedule_expr": "90s", "workflow_id": "w", **fields}


def test_a_schedule() -> None:
    definition, ignored = read_json(
        "schedule",
        schedule(
            name="every now and then",
            workspace="prod",
            action={"agent": "x", "arguments": {"at": "{{ .schedule.fired_at }}"}},
            input={"by": {"$expr": "schedule.name"}},
            miss_policy="fire_all",
            max_concurrent=2,
            timezone="Europe/Berlin",
            jitter="30s",
            next_fire_at="2026-01-01T00:00:00Z",
            active_task_id="",
        ),
    )
    assert ignored == []
    assert isinstance(definition, ScheduleDefinition)
    assert (definition.id, definition.workspace, definition.workflow_id) == ("s", "prod", "w")
    assert (definition.miss_policy, definition.max_concurrent, definition.jitter_ms) == ("fire_all", 2, 30_000)
    assert definition.input is not None
    assert definition.input.evaluate({"schedule": {"name": "n"}}, now=lambda: NOW) == {"by": "n"}
    assert "next_fire_at" not in definition.source
    assert read_json("schedule", schedule(action={}))[0].action is None  # type: ignore[union-attr]
    text, _ = read_json("schedule", schedule(action='{"agent": "x"}'))
    assert text.action.agent == "x"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schedule_type": "crn"}, "/schedule_type: schedule 's': schedule_type is 'crn'; it has to be one of"),
        ({"schedule_type": None}, "/schedule_type: schedule 's' has no schedule_type"),
        ({"schedule_expr": "soon"}, "/schedule_expr: schedule 's': "),
        ({"schedule_type": "cron", "schedule_expr": "* * * *"}, "/schedule_expr: schedule 's': "),
        (
            {"schedule_type": "cron", "schedule_expr": "* * * * *", "timezone": "Europe/Berln"},
            "/timezone: schedule 's': the timezone 'Europe/Berln' is unknown: did you mean Europe/Berlin? (line 1, column 1)",
        ),
        ({"workflow_id": None}, "/: schedule 's' needs an action or a workflow_id"),
        (
            {"workflow_id": None, "action": {"agent": "x"}, "input": 1},
            "/input: schedule 's' has an input, but no workflow_id",
        ),
        (
            {"miss_policy": "later"},
            "/miss_policy: schedule 's': miss_policy is 'later'; it has to be one of skip, fire_once, fire_all",
        ),
        ({"jitter": -1}, "/jitter: schedule 's': jitter has to be a duration with a unit"),
        ({"event": "e"}, "/event: schedule 's': an event is for schedule_type event_delayed"),
        ({"action": "{"}, "/action: schedule 's', action is not JSON"),
        ({"input": "{{ .steps.x }}"}, "/input: schedule 's', input: there is no 'steps' here"),
    ],
)
def test_schedules_that_are_wrong(fields: dict[str, Any], says: str) -> None:
    (problem,) = operation("schedule", schedule(**fields))
    assert problem.startswith(says)


def test_a_delayed_schedule_reads_the_event_that_it_follows() -> None:
    fields = {"schedule_type": "event_delayed", "schedule_expr": "5m", "event": "e"}
    wrong = {"data": {"$expr": "trigger.event.data.order"}, "who": {"$expr": "trigger.event.source.principle"}}
    (problem,) = operation("schedule", schedule(**fields, input=wrong))
    assert "'trigger.event.source' has no field 'principle': did you mean 'principal'?" in problem
    (problem,) = operation("schedule", schedule(input={"$expr": "trigger.event.data"}))
    assert "'trigger' has no field 'event'" in problem
    read_json("schedule", schedule(**fields, input={"at": "{{.trigger.event.data.order}}"}))


def test_a_column_of_a_schedules_expression_is_a_position() -> None:
    text = "id: s\nschedule_type: cron\nschedule_expr: 0 25 * * *\nworkflow_id: w\n"
    (problem,) = errors(text)
    assert problem.startswith("a.yaml:3:18: schedule 's': ")


def test_a_schedule_that_never_fires_is_warned_of() -> None:
    found = read_file("a.yaml", "id: s\nschedule_type: event_delayed\nschedule_expr: 5m\nworkflow_id: w\n")
    assert found.warnings == ("a.yaml:1:1: schedule 's' never fires: event_delayed needs an event",)


WAITS = "name: w\nsteps:\n  - id: a\n    wait: {event: %s}\n"
FOLLOWS = "rule_name: r\nsource_event: %s\ndestination_template: {agent: x}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FOLLOWS % "task.complete", "a.yaml:2:15: rule 'r': the gateway emits no event 'task.complete': did you mean 'task.completed'?"),
        (FOLLOWS % "kv.putt:a/*", "a.yaml:2:15: rule 'r': the gateway emits no event 'kv.putt:a/*': changes of keys are kv.put:KEY and kv.delete:KEY"),
        (FOLLOWS % "kv.put:a/*", ""),
        (FOLLOWS % "task.reviewed", ""),
        (WAITS % "task.failled", "a.yaml:4:19: step 'a', wait: the gateway emits no event 'task.failled': did you mean 'task.failed'?"),
        (WAITS % "kv.put:a", "a.yaml:4:19: step 'a', wait: changes of keys are for rules and triggers: let a rule emit an event for this"),
        (
            "id: s\nschedule_type: event_delayed\nschedule_expr: 5m\nevent: kv.delete:a\nworkflow_id: w\n",
            "a.yaml:4:8: schedule 's': changes of keys are for rules and triggers: let a rule emit an event for this",
        ),
        (
            "id: m\ninitial_state: a\nstates: {a: {on: {go: b}}, b: {terminal: true}}\nbus: [{event: task.done, key: input.id, send: go}]\n",
            "",
        ),
        (
            "name: w\ntrigger: {event: task.completd}\nsteps: [{id: a, output: 1}]\n",
            "a.yaml:2:18: the trigger: the gateway emits no event 'task.completd': did you mean 'task.completed'?",
        ),
        (
            FOLLOWS.replace("{agent: x}", "{type: join, join: {name: j, correlation_key: input.k, on_complete: {agent: x}}}") % "e",
            "a.yaml:3:42: rule 'r', destination_template, join fires only if another rule says how many it expects: expected_count",
        ),
    ],
)  # fmt: skip
def test_what_never_comes_is_warned_of(text: str, says: str) -> None:
    found = read_file("a.yaml", text)
    assert (list(found.errors), list(found.warnings)) == ([], [says] if says else [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: w\nsteps:\n  - {id: a, output: {$expr: max(1, 2)}}\n", "this has '2)'; put quotes around an expression with a comma"),
        ("name: w\nsteps:\n  - {id: a, action: {agent: x}, retry: often}\n", "step 'a': retry has to be a number of attempts, or a map with max_attempts"),
        ("name: w\ninputs: {t: string}\nsteps:\n  - {id: a, for_each: {$expr: trigger.t}, output: 1}\n", "step 'a', for_each: items is a text, not a list"),
        ('name: w\nsteps: [{id: a, output: "1}]\n', "what begins at 2:25 has no end"),
        (FOLLOWS % "e" + "trigger_condition: source.principl == 'x'\n", "'source' has no field 'principl': did you mean 'principal'?"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(text: str, says: str) -> None:
    (problem,) = errors(text)
    assert problem.endswith(says)


# -- machines --------------------------------------------------------------------------------------

MACHINE = """name: order
initial_state: new
bus: {event: payment, key: input.order, send: paid, creates: true}
states:
  new:
    on:
      paid: {to: done, when: input.amount >= data.price, assign: {by: "{{ .input.by }}"}}
      cancel:
        - {to: refused, when: data.final == true}
        - gone
    timeout: 24h
    timeout_action: gone
    entry_action: {agent: x}
  done: {terminal: true, entry_action: {type: create_task, task_type: ship, payload: {$expr: data}}}
  refused: {terminal: true}
  gone: {terminal: true}
"""


def test_a_machine() -> None:
    machine = one(MACHINE)
    assert isinstance(machine, MachineDefinition)
    new = machine.states["new"]
    assert [each.to for each in new.on["cancel"]] == ["refused", "gone"]
    (paid,) = new.on["paid"]
    assert paid.when is not None
    assert paid.when.evaluate({"input": {"amount": 5.0}, "data": {"price": 4.0}}, now=lambda: NOW) is True
    assert (new.timeout_ms, new.timeout_action) == (86_400_000, "gone")
    assert machine.states["done"].terminal
    (bus,) = machine.bus
    assert (bus.event, bus.send, bus.key_source, bus.creates) == ("payment", "paid", "input.order", True)
    definition, ignored = read_json(
        "machine",
        {
            "id": "m",
            "workspace": "w",
            "definition": {"name": "n", "initial_state": "a", "states": {"a": {"on": {}, "entry_action": {}}}},
        },
    )
    assert ignored == []
    assert isinstance(definition, MachineDefinition)
    assert (definition.id, definition.workspace) == ("m", "w")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("initial_state: new", "initial_state: nw", "a.yaml:2:16: the machine begins in 'nw': did you mean 'new'?"),
        (
            "timeout_action: gone",
            "timeout_action: gon",
            "a.yaml:12:21: state 'new' goes to 'gon': did you mean 'gone'?",
        ),
        ("- gone", "- gne", "a.yaml:10:11: state 'new', event 'cancel' goes to 'gne': did you mean 'gone'?"),
        ("to: done", "to: don", "a.yaml:7:18: state 'new', event 'paid' goes to 'don': did you mean 'done'?"),
        ("    timeout: 24h\n", "", "a.yaml:11:21: state 'new' has a timeout_action, but no timeout"),
        (
            "data.price",
            "dta.price",
            "a.yaml:7:46: state 'new', event 'paid', when: there is no 'dta' here: did you mean 'data'?",
        ),
        ("key: input.order, ", "", "a.yaml:3:6: the machine, bus has no key"),
        (
            "send: paid, creates: true",
            "send: payd",
            "a.yaml:3:47: the machine, bus: no state has the event 'payd': did you mean 'paid'?",
        ),
        ("initial_state: new\n", "", "a.yaml:1:1: the machine has no initial_state"),
        ("assign: {", "assign: [{", "a.yaml:7:"),
    ],
)
def test_machines_that_are_wrong(before: str, after: str, says: str) -> None:
    (problem,) = errors(MACHINE.replace(before, after))
    assert problem.startswith(says)


def test_states_without_a_use_are_warned_of() -> None:
    found = read_file(
        "a.yaml",
        "name: m\ninitial_state: a\nstates:\n  a: {on: {x: [b, c]}}\n  b: {terminal: true, on: {x: a}}\n  c:\n  d: {on: {x: a}}\n",
    )
    assert found.errors == ()
    assert found.warnings == (
        "a.yaml:4:19: state 'a', event 'x': this is never taken, as the one before has no condition",
        "a.yaml:5:6: state 'b' is terminal, so its events are never taken",
        "a.yaml:6:5: state 'c' is never left, and is not terminal",
        "a.yaml:7:6: state 'd' is never reached",
    )


# -- operations ------------------------------------------------------------------------------------


def test_an_operation_says_what_it_has_ignored() -> None:
    text = b'{"ID": "a", "Colour": 1, "Definition": {"steps": [{"id": "x", "output": 1, "note": 2}]}}'
    definition, ignored = read_json("workflow", text)
    assert isinstance(definition, Graph)
    assert ignored == ["/Colour", "/Definition/steps/0/note"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "/: the data is not JSON: Expecting property name"),
        (b"\xff", "/: the data is not JSON: it is not UTF-8"),
        (b"[" * 100_000, "/: the data is not JSON: it is nested deeper than 64 levels"),
        (b'{"a": 1, "a": 2}', "/: the data is not JSON: the key 'a' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "/: the data is not JSON: "),
        (b'{"a": 1e999}', "/a: inf is not a number of JSON"),
        (b'{"a": "\\u0000"}', "/a: a text has a zero byte"),
        (b'{"a": "\\ud800"}', "/a: a text has a lone surrogate"),
        (b'{"\\u0000": 1}', "/: the key '\\x00' has a zero byte"),
        (b'{"%s": 1}' % (b"k" * 2000), "/: the key 'kkk"),
        (b"[]", "/: the document has to be a map, and is a list"),
        (b"5", "/: the document has to be a map, and is a number"),
        (b" " * 2_000_000, "/: the document has more than 1048576 bytes"),
        (b'{"id": 18446744073709551616}', "/id: a whole number has more than 64 bits"),
    ],
)
def test_hostile_data_of_operations(data: bytes, says: str) -> None:
    problem, *_ = operation("workflow", data)
    assert problem.startswith(says)


def test_an_unknown_kind() -> None:
    assert operation("flow", {}) == [
        "/: 'flow' is no kind of document; there are workflow, rule, schedule, machine, webhook"
    ]


def test_nothing_that_a_terminal_obeys_is_in_a_message() -> None:
    found = read_file("a\x1b.yaml", 'name: a\nsteps: [{id: a, output: 1, "\\u202e\\e[31m\\n": 2}]')
    (problem,) = found.errors
    assert problem.startswith("a\\x1b.yaml:2:28: step 'a' has no key '\\u202e\\x1b[31m\\n'; known are id, ")
    assert Documents(()).checked() == ()
