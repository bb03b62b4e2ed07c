"""Test replays, migrations and drawings of `aether workflows` with a real gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.cli.test_workflows import QuickShell, waiting
from tests.helpers.gateway import GatewayProcess

FLOW = """
id: past
steps:
  - {id: one, output: {$expr: trigger.n}}
  - {id: go, wait: {signal: go}, depends_on: [one]}
  - {id: last, output: {$expr: steps.go.result}, depends_on: [go]}
"""


@pytest.fixture
def shell(gateway: GatewayProcess) -> Shell:
    return QuickShell(gateway)


def test_a_history_is_replayed_on_a_file_and_moved_to_a_version(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "past.yaml"
    file.write_text(FLOW)
    shell.out("workflows", "apply", str(file))
    execution = shell.out("workflows", "run", "past", "n=3").strip()
    waiting(shell, execution, "go")
    said = f"1 entry replays on {file} without a difference\n"
    assert shell.out("workflows", "history", execution, "--replay", str(file)) == said

    file.write_text(FLOW.replace("trigger.n", "trigger.n + 1"))
    done = shell.run("workflows", "history", execution, "--replay", str(file))
    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [
        f"{file}:4:5: step one: entry 1 (Started) parts from the history",
        '  recorded: KeepResult {"place": ["one", -1], "result": 3}',
        '  now:      KeepResult {"place": ["one", -1], "result": 4}',
        "0 entries before it replay",
    ]
    done = shell.run("workflows", "history", execution, "--replay", str(file), "--json")
    found = json.loads(done.stdout)
    assert (found["place"], found["divergence"]["now"]["result"]) == (f"{file}:4:5", 4)
    lines = shell.out("workflows", "apply", str(file), "--migrate").splitlines()
    assert lines == [
        "workflow past version 2 is updated in default",
        f"execution {execution} of past stays on version 1: its history parts from version 2 at entry 1, step one",
    ]
    file.write_text(FLOW.replace("steps.go.result", "steps.go.result + 1"))
    lines = shell.out("workflows", "apply", str(file), "--migrate").splitlines()
    assert lines[1:] == [f"execution {execution} of past goes on with version 3"]
    shell.out("workflows", "signal", execution, "go", "--data", "7")
    assert json.loads(shell.out("workflows", "wait", execution))["last"] == 8

    file.write_text(FLOW.replace("id: past", "id: other"))
    wrong = shell.run("workflows", "history", execution, "--replay", str(file))
    assert f"is one of workflow past, and {file} has other" in wrong.stderr.decode()


def test_a_workflow_and_an_execution_are_drawn(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "drawn.yaml"
    file.write_text(
        FLOW.replace("id: past", "id: drawn")
        + "  - {id: other, ask: 'Why?', for_each: [1], depends_on: [one], on_failure: rescue}\n"
        + "  - {id: rescue, output: 1}\n"
    )
    shell.out("workflows", "apply", str(file))
    graph = [
        "flowchart TD",
        '  s0["one"]',
        '  s1(["go"])',
        '  s2["last"]',
        '  s3{{"other (for each)"}}',
        '  s4["rescue"]',
        "  s0 --> s1",
        "  s1 --> s2",
        "  s0 --> s3",
        "  s3 -.->|failure| s4",
    ]
    assert shell.out("workflows", "show", "drawn", "--mermaid").splitlines() == graph
    execution = shell.out("workflows", "run", "drawn", "n=3").strip()
    waiting(shell, execution, "go")
    assert shell.out("workflows", "show", execution, "--mermaid").splitlines() == [
        *graph,
        "  classDef running fill:#cfe8ff",
        "  class s3 running",
        "  classDef waiting fill:#fff3bf",
        "  class s1 waiting",
        "  classDef completed fill:#d3f9d8",
        "  class s0 completed",
    ]
    wrong = shell.run("workflows", "show", execution, "--mermaid", "--json")
    assert wrong.returncode == 2
    drawn = json.loads(shell.out("workflows", "show", execution[:13], "--diagram", "json"))
    assert drawn["execution_id"] == execution
    assert drawn["nodes"][1] == {"id": "go", "kind": "wait", "about": "signal go", "status": "waiting"}
    assert drawn["edges"][0] == {"from": "one", "to": "go", "kind": "depends_on"}


def test_a_machine_is_drawn(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text("""
id: order
initial_state: new
states:
  new: {on: {pay: [{to: paid, when: input.sum > 1}, {to: new}]}, timeout: 2h, timeout_action: gone}
  paid: {terminal: true}
  gone: {terminal: true}
""")
    shell.out("workflows", "apply", str(file))
    assert shell.out("workflows", "show", "order", "--kind", "machine", "--mermaid").splitlines() == [
        "stateDiagram-v2",
        '  state "new" as s0',
        '  state "paid" as s1',
        '  state "gone" as s2',
        "  [*] --> s0",
        "  s0 --> s1 : pay (if)",
        "  s0 --> s0 : pay",
        "  s0 --> s2 : after 7200 s",
        "  s1 --> [*]",
        "  s2 --> [*]",
    ]


def test_a_part_of_an_execution_is_done_once_more(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "past.yaml"
    file.write_text(FLOW.replace("past", "forked"))
    shell.out("workflows", "apply", str(file))
    execution = shell.out("workflows", "run", "forked", "n=3").strip()
    waiting(shell, execution, "go")
    fork = shell.out("workflows", "fork", execution, "--from", "go", "n=8").strip()
    shell.out("workflows", "signal", fork, "go", "--data", "5")
    assert json.loads(shell.out("workflows", "wait", fork)) == {"one": 3, "go": 5, "last": 5}
    facts = dict(line.split(maxsplit=1) for line in shell.out("workflows", "show", fork).splitlines() if line)
    assert facts["fork"] == f"of    {execution} from step go"
    assert facts["input"] == '{"n": 8}'
    assert f"forks      {fork}" in shell.out("workflows", "show", execution)
    assert f"has begun as a fork of {execution} from step go" in shell.out("workflows", "history", fork)
    done = shell.run("workflows", "fork", fork, "--from", "first")
    assert done.returncode == 1
    assert "has no step 'first'" in done.stderr.decode()
    made = json.loads(shell.out("workflows", "fork", fork, "--from", "one", "--json"))
    assert (made["kept"], made["undone_by_both"]) == ([], [])


def test_dead_letters_of_a_rule_act_again(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    rule = "rule_name: tell\nsource_event: redriven\ndestination_template:\n  type: emit_event\n  event_name: told\n"
    file.write_text(rule + '  payload: "{{.input.who.name}}"\n')
    shell.out("workflows", "apply", str(file))
    for _ in range(2):
        shell.out("send", "event::*", "--type", "event", '{"event_names": ["redriven"], "data": {"who": null}}')
    while shell.out("dlq", "list", "--json").count("workflow_rule") < 2:
        pass
    done = shell.run("workflows", "redrive", "--rule", "tell")
    assert done.returncode == 1
    assert done.stdout.decode() == "0 dead letters have acted\n"
    assert done.stderr.decode().count("is dead again: ") == 2
    file.write_text(rule + '  payload: "{{.input.who}}"\n')
    shell.out("workflows", "apply", str(file))
    assert json.loads(shell.out("workflows", "redrive", "--all", "--json")) == {"acted": 2, "refused": []}
    none = shell.run("workflows", "redrive", "--rule", "tll")
    assert (none.returncode, none.stdout.decode()) == (0, "")
    assert "no dead letter of the rule tll in the workspace default" in none.stderr.decode()
    assert shell.run("workflows", "redrive").returncode == 2


def test_a_timeline_goes_on_where_it_has_stopped(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "timed.yaml"
    file.write_text(FLOW.replace("id: past", "id: timed"))
    shell.out("workflows", "apply", str(file))
    execution = shell.out("workflows", "run", "timed", "n=3").strip()
    waiting(shell, execution, "go")
    shell.out("workflows", "signal", execution, "go", "--data", json.dumps("a\x1b[31mb\u202ec"))
    shell.out("workflows", "wait", execution)
    whole = shell.out("workflows", "show", execution, "--timeline")
    assert "has started with" in whole
    assert "signal go by" in whole
    assert "\x1b" not in whole
    assert "\u202e" not in whole
    done = shell.run("workflows", "show", execution, "--timeline", "--limit", "1")
    more = done.stderr.decode().split("--after '")[1].split("'")[0]
    rest = shell.out("workflows", "show", execution, "--timeline", "--after", more)
    assert done.stdout.decode() + rest == whole
    lines = [
        json.loads(line) for line in shell.out("workflows", "show", execution, "--timeline", "--json").splitlines()
    ]
    assert [one["type"] for one in lines if one["source"] == "history"] == ["Started", "SignalReceived"]
    assert shell.run("workflows", "show", execution, "--timeline", "--items").returncode == 2


def test_files_meet_the_real_events(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("""
rule_name: foretold
source_event: foretold.event
trigger_condition: input.n > 1
destination_template: {agent: reader, tool_name: t, arguments: {text: "{{.input.text}}"}}
---
id: foretold
trigger: {event: foretold.event}
inputs: {n: number}
steps: [{id: one, output: 1}]
""")
    for n, text in ((1, "one"), (2, "two\x1b[31m")):
        event = {"event_names": ["foretold.event"], "data": {"n": n, "text": text}}
        shell.out("send", "event::*", "--type", "event", json.dumps(event))
    told = shell.out("workflows", "test", str(file), "--events", "1h").splitlines()
    assert [line.split(": ", 1)[1].split(" {")[0] for line in told if " of " in line and "would" in line][:3] == [
        "workflow foretold would start",
        "rule foretold would send",
        "workflow foretold would start",
    ]
    assert told[-1].endswith("3 would have had an effect")
    assert not any("\x1b" in line for line in told)
    found = json.loads(shell.out("workflows", "test", str(file), "--events", "1h", "--json"))
    assert (len(found["foretold"]), found["errors"]) == (3, 0)
    file.write_text(file.read_text().replace("n: number", "n: string"))
    assert shell.run("workflows", "test", str(file), "--events", "1h").returncode == 1
    assert shell.run("workflows", "test", str(file), "--events", "soon").returncode == 2
