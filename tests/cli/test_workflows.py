"""Test `aether workflows` against a real gateway, with a worker."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aether_trio.cli.app import app
from aether_trio.client import connect_sync
from tests.cli.shell import AETHER, LIMIT_S, Shell, aether, on_terminal
from tests.helpers.gateway import GatewayProcess

REPORT = """
id: report
description: Searches and asks.
inputs: {topic: string, depth: integer?}
steps:
  - id: search
    action: {agent: finder, tool_name: search, arguments: {topic: "{{.trigger.topic}}"}}
  - id: review
    depends_on: [search]
    ask:
      question: "Publish {{.steps.search.result.title}}?"
      choices: [now, later]
      text: Remarks
      form:
        type: object
        properties: {stars: {type: integer}, where: {enum: [blog, paper]}}
        required: [stars]
outputs:
  title: "{{.steps.search.result.title}}"
  review: {$expr: steps.review.result}
"""
TITLE = "All \x1b[31m of it"
WAITS = """
id: waits
steps:
  - id: go
    wait: {signal: go}
outputs: {$expr: steps.go.result}
---
id: asks
steps:
  - id: each
    for_each: {$expr: '["a", "b"]'}
    ask: "May {{.item}}?"
---
id: fails
steps:
  - {id: one, output: 1}
  - {id: two, depends_on: [one], fail: "no luck"}
"""


class QuickShell(Shell):
    """A shell whose commands run in this process: no start of Python for each."""

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        env: dict[str, str | None] = {name: None for name in os.environ if name.startswith("AETHER_")}
        done = CliRunner().invoke(app, arguments, input=stdin, env=env | self.env, prog_name="aether")
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout_bytes, done.stderr_bytes)


@pytest.fixture
def shell(gateway: GatewayProcess) -> Shell:
    return QuickShell(gateway)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "report.yaml").write_text(REPORT)
    (tmp_path / "waits.yaml").write_text(WAITS)
    (tmp_path / ".hidden.yaml").write_text("x: 1")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@contextmanager
def finder(gateway: GatewayProcess, workspace: str) -> Iterator[Any]:
    """Connect a worker that does the tasks of steps of the agent "finder"."""
    address = f"aether://{gateway.address}"
    with connect_sync(address, workspace=workspace, implementation="finder", specifier="1") as worker:
        yield worker


def found_one(worker: Any) -> dict[str, Any]:
    """Do the next task, and return its arguments."""
    with next(worker.work(timeout=LIMIT_S)) as job:
        arguments: dict[str, Any] = json.loads(job.payload)["arguments"]
        job.complete({"title": TITLE})
    return arguments


def waiting(shell: Shell, execution: str, step: str) -> dict[str, Any]:
    """Wait until a step waits; return the execution."""
    while True:
        found: dict[str, Any] = json.loads(shell.out("workflows", "show", execution, "--json"))
        assert found["completed_at"] is None, found
        if any(one["step"] == step and one["waits_for"] for one in found["steps"]):
            return found


def shown(shell: Shell, *arguments: str) -> Any:
    return json.loads(shell.out("workflows", *arguments, "--json"))


def test_files_are_checked_without_a_gateway(files: Path) -> None:
    done = aether("workflows", "validate", str(files))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"workflow {name} is valid" for name in ("report", "waits", "asks", "fails")]
    (files / "bad.yaml").write_text(
        "id: bad\nsteps:\n  - id: one\n    output: 1\n  - {id: two, output: 2, depends_on: [on]}\n"
    )
    (files / "worse.json").write_text('{"id": "worse", "steps": 7}')
    (files / "bytes.yaml").write_bytes(b"id: \xff")
    done = aether("workflows", "validate", ".", cwd=files)
    assert (done.returncode, done.stdout) == (1, "")
    *errors, last = done.stderr.splitlines()
    assert last == "Error: 3 errors; nothing else was looked at"
    assert "bad.yaml:5:39: step 'two' depends on 'on': did you mean 'one'?" in errors
    assert any(one.startswith("worse.json: /steps: ") for one in errors)
    assert any("bytes.yaml: byte 5 is not UTF-8" in one for one in errors)
    done = aether("workflows", "validate", "bad.yaml", "--json", cwd=files)
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == ["bad.yaml:5:39: step 'two' depends on 'on': did you mean 'one'?"]


def test_applying_listing_and_showing_a_definition(shell: Shell, files: Path) -> None:
    place = ("--workspace", "study")
    assert "`aether workflows apply FILE` brings one" in shell.notice("workflows", "list", *place)
    would = "workflow report version 1 would be created in study\n"
    assert shell.out("workflows", "apply", str(files / "report.yaml"), "--dry-run", *place) == would
    assert shown(shell, "list", *place) == []
    assert shell.out("workflows", "apply", str(files), *place).splitlines() == [
        f"workflow {name} version 1 is created in study" for name in ("report", "waits", "asks", "fails")
    ]
    (files / "report.yaml").write_text(REPORT.replace("[now, later]", "[now]"))
    lines = shell.out("workflows", "apply", str(files), *place).splitlines()
    assert lines[0] == "workflow report version 2 is updated in study"
    assert lines[1] == "workflow waits version 1 is unchanged in study"

    assert {one["id"]: one["version"] for one in shown(shell, "list", *place)} == {
        "report": 2, "waits": 1, "asks": 1, "fails": 1,
    }  # fmt: skip
    head, *rows = shell.out("workflows", "list", *place).splitlines()
    assert head.split()[:4] == ["workflow", "version", "workspace", "steps"]
    assert [row.split()[:4] for row in rows if row.startswith("report")] == [["report", "2", "study", "2"]]
    assert "\x1b" not in "".join(rows)
    text = shell.out("workflows", "show", "report", *place)
    assert "topic: string, depth: integer?" in text
    assert "finder: search" in text
    assert "\x1b" not in text
    document = shown(shell, "show", "report", *place)["document"]
    assert document["steps"][1]["ask"]["choices"] == ["now"]

    assert "its executions go on" in shell.out("workflows", "delete", "report", *place)
    shell.fails(1, "`aether workflows list` shows those", "workflows", "run", "report", *place)
    shell.fails(1, "there is neither a workflow nor an execution none", "workflows", "show", "none", *place)
    done = shell.run("workflows", "apply", "-", *place, stdin=b"id: x\nsteps: [{id: a, otput: 1}]")
    assert done.returncode == 1
    assert b"standard input:2:17: step 'a' has no key 'otput': did you mean 'output'?" in done.stderr
    assert b"Error: 2 errors; nothing was applied" in done.stderr


def test_all_documents_are_applied_or_none(shell: Shell, files: Path) -> None:
    place = ("--workspace", "none")
    (files / "seven.yaml").write_text("id: seven\nversion: 7\nsteps: [{id: a, output: 1}]\n")
    shell.out("workflows", "apply", str(files / "seven.yaml"), *place)
    (files / "seven.yaml").write_text("id: seven\nversion: 7\nsteps: [{id: b, output: 1}]\n")
    shell.fails(1, "version 7 exists with other content", "workflows", "apply", str(files), *place)
    assert [one["id"] for one in shown(shell, "list", *place)] == ["seven"]
    shell.fails(2, "there is no file or directory", "workflows", "apply", str(files / "x"), *place)
    (files / "empty").mkdir()
    shell.fails(2, "has no file that ends with", "workflows", "apply", str(files / "empty"), *place)


def test_an_execution_is_run_answered_and_shown(gateway: GatewayProcess, shell: Shell, files: Path) -> None:
    place = ("--workspace", "lab")
    shell.out("workflows", "apply", str(files), *place)
    shell.fails(1, "'topic' is a required property", "workflows", "run", "report", *place)
    shell.fails(2, "declares no input 'tpic', but: topic, depth", "workflows", "run", "report", "tpic=x", *place)
    shell.fails(2, "it is not JSON", "workflows", "run", "report", "--input", "{", *place)
    run = ("workflows", "run", "report", "topic=12", *place)
    execution = shell.out(*run, "--input", '{"depth": 3}').strip()
    found = waiting(shell, execution, "search")
    assert found["input"] == {"topic": "12", "depth": 3}
    assert found["steps"][0]["waits_for"] == {"for": "worker", "pool": "finder"}
    assert [one["status"] for one in found["steps"]] == ["running", "pending"]
    assert "search: a worker of finder" in shell.out("workflows", "show", execution)
    with finder(gateway, "lab") as worker:
        assert found_one(worker) == {"topic": "12"}
    found = waiting(shell, execution, "review")
    question = found["steps"][1]["waits_for"]
    assert (question["for"], question["choices"], question["of"]) == ("answer", ["now", "later"], "")
    text = shell.out("workflows", "show", execution)
    assert "an answer: Publish" in text
    assert "\x1b" not in text
    answer = ("workflows", "answer", execution)
    shell.fails(2, "--approve, --reject, --choice or --data", *answer)
    shell.fails(1, "give one of them with --choice", *answer, "--choice", "never", "--data", '{"stars": 1}')
    shell.fails(1, "give the data as JSON with --data", *answer, "--choice", "now", "--data", '{"stars": "x"}')
    assert shell.out(*answer, "--choice", "now", "--text", "ok", "--data", '{"stars": 5}') == (
        f"review of execution {execution} is answered: now\n"
    )
    result = json.loads(shell.out("workflows", "wait", execution))
    assert result["title"] == TITLE
    assert (result["review"]["choice"], result["review"]["data"]) == ("now", {"stars": 5})
    shell.fails(1, "asks nothing now: it is completed", *answer, "review", "--approve")
    found = shown(shell, "show", execution)
    assert (found["status"], found["result"]) == ("completed", result)
    assert [(one["step"], one["status"]) for one in found["steps"]] == [
        ("search", "completed"), ("review", "completed"),
    ]  # fmt: skip
    lines = dict(line.split(maxsplit=1) for line in shell.out("workflows", "show", execution).splitlines() if line)
    assert lines["status"].startswith("completed after")
    assert execution in shell.out("workflows", "executions", "--all", *place)
    assert [one["execution_id"] for one in shown(shell, "executions", "--status", "completed", *place)] == [execution]
    assert "--all shows those that have ended" in shell.notice("workflows", "executions", *place)
    shell.out("workflows", "run", "report", "topic=x", *place)
    both = [one["execution_id"] for one in shown(shell, "executions", "--all", *place)]
    assert both[1] == execution
    terminal = "\n".join(shell.on_terminal(300, "workflows", "executions", "--all", "--limit", "1", *place))
    assert f"there are more than these 1: see --limit, --status and --workflow, or --after {both[0]}" in terminal
    assert execution not in terminal
    after = shown(shell, "executions", "--all", "--limit", "1", "--after", both[0], *place)
    assert [one["execution_id"] for one in after] == [execution]
    shell.fails(1, "after is what the message", "workflows", "executions", "--after", "x", *place)
    step = shell.out("workflows", "show", execution, "--step", "search")
    assert '{"title": "All \\u001b[31m of it"}' in step


def test_a_budget_is_answered_by_its_name(shell: Shell, tmp_path: Path) -> None:
    """The step that asks is `~budget`."""
    file = tmp_path / "bounded.yaml"
    steps = "".join(
        f"  - {{id: {one}, depends_on: [{before}], wait: 1ms}}\n" for before, one in (("", "a"), ("a", "b"))
    )
    file.write_text(f"id: bounded\nbudget: {{steps: 1}}\nsteps:\n{steps}")
    shell.out("workflows", "apply", str(file))
    execution = shell.out("workflows", "run", "bounded").strip()
    while "~budget" not in shell.out("workflows", "show", execution):
        pass
    shell.fails(1, "has no step 'budgt'", "workflows", "answer", execution, "budgt", "--choice", "go on")
    shell.out("workflows", "answer", execution, "budget", "--choice", "go on")
    shell.out("workflows", "wait", execution)


def test_a_question_is_answered_in_a_terminal(gateway: GatewayProcess, shell: Shell, files: Path) -> None:
    place = ("--workspace", "room")
    shell.out("workflows", "apply", str(files), *place)
    execution = shell.out("workflows", "run", "report", "topic=x", *place).strip()
    with finder(gateway, "room") as worker:
        found_one(worker)
    waiting(shell, execution, "review")
    typed = b"9\n2\nfine\nmany\n4\nroof\n\n"
    code, said = on_terminal(shell.env, 100, *AETHER, "workflows", "answer", execution, stdin=typed)
    assert code == 0, said
    assert b"Publish All \\x1b[31m of it?" in said
    assert b"a number from 1 to 2, or r" in said
    assert b"that is no integer" in said
    assert b"one of blog, paper" in said
    review = json.loads(shell.out("workflows", "wait", execution))["review"]
    assert (review["choice"], review["text"], review["data"]) == ("later", "fine", {"stars": 4})


def test_items_ask_one_by_one(shell: Shell, files: Path) -> None:
    shell.out("workflows", "apply", str(files), "--workspace", "items")
    execution = shell.out("workflows", "run", "asks", "--workspace", "items").strip()
    found = waiting(shell, execution, "each")
    assert [(one["step"], one["item"], one["items"]) for one in found["steps"]] == [
        ("each", None, {"waiting": 2}), ("each", 0, {}), ("each", 1, {}),
    ]  # fmt: skip
    shell.fails(2, "several steps ask; name one:", "workflows", "answer", execution, "--approve")
    shell.out("workflows", "answer", execution, "each[1]", "--reject")
    shell.out("workflows", "answer", execution, "--approve")
    assert [one["approved"] for one in json.loads(shell.out("workflows", "wait", execution))["each"]] == [True, False]
    assert "2/2" in shell.out("workflows", "show", execution)
    (item,) = shown(shell, "show", execution, "--step", "each[1]")["steps"]
    assert item["result"]["approved"] is False
    shell.fails(1, "`aether workflows show` lists its steps", "workflows", "show", execution, "--step", "no")


def test_signals_pauses_and_watching(shell: Shell, files: Path) -> None:
    shell.out("workflows", "apply", str(files), "--workspace", "watch")
    execution = shell.out("workflows", "run", "waits", "--workspace", "watch").strip()
    waiting(shell, execution, "go")
    with shell.running("workflows", "watch", execution) as process:
        assert "has started" in process.line()
        assert process.line().split()[1:] == ["go", "waiting"]
        assert shell.out("workflows", "pause", execution, "--reason", "lunch") == f"execution {execution} is paused\n"
        assert "is paused by us::admin" in process.line()
        assert shown(shell, "executions", "--workspace", "watch")[0]["status"] == "paused"
        shell.out("workflows", "resume", execution)
        assert "is resumed by us::admin" in process.line()
        once = ("--data", '{"x": 7}', "--idempotency-key", "1")
        for _ in range(2):
            shell.out("workflows", "signal", execution, "go", *once)
        code, lines, error = process.end()
    assert (code, error) == (0, "")
    assert "signal go by us::admin" in lines[0]
    assert lines[1].split()[1:] == ["go", "completed"]
    assert "completed after" in lines[-1]
    assert '{"x": 7}' in lines[-1]
    shell.fails(1, "`aether workflows show` says how", "workflows", "signal", execution, "go")
    entries = [json.loads(line) for line in shell.out("workflows", "history", execution, "--json").splitlines()]
    assert [one["number"] for one in entries] == list(range(1, len(entries) + 1))
    assert {"Started", "PauseAsked", "ResumeAsked", "SignalReceived"} <= {one["type"] for one in entries}
    text = shell.out("workflows", "history", execution, "--after", "1").splitlines()
    assert all(int(line.split()[0]) > 1 for line in text)


def test_ends_that_are_not_well(shell: Shell, files: Path) -> None:
    shell.out("workflows", "apply", str(files), "--workspace", "ends")
    place = ("--workspace", "ends")
    done = shell.run("workflows", "run", "fails", "--wait", *place)
    execution, error = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (1, b"")
    assert "has failed: step two: no luck" in error
    assert "`aether workflows retry` goes on with it" in error
    with shell.running("workflows", "watch", execution) as process:
        code, lines, _ = process.end()
    assert code == 1
    assert "failed after" in lines[-1]
    assert "step two: no luck" in lines[-1]
    assert shell.out("workflows", "retry", execution) == f"execution {execution} goes on\n"
    assert shell.run("workflows", "wait", execution).returncode == 1
    lasting = shell.out("workflows", "run", "waits", *place).strip()
    shell.fails(124, "has not ended within 0.1 s; it goes on", "workflows", "wait", lasting, "--timeout", "0.1")
    shell.fails(1, "only executions that have failed", "workflows", "retry", lasting)
    assert shell.out("workflows", "cancel", lasting) == f"execution {lasting} is cancelled\n"
    shell.fails(1, "`aether workflows show` says how", "workflows", "cancel", lasting)
    shell.fails(1, "`aether workflows executions --all`", "workflows", "cancel", "nothing")


OTHERS = """
id: flow
steps: [{id: a, output: 1}]
---
rule_name: notify
source_event: done
destination_template: "{agent: notifier, tool_name: tell, arguments: {who: x}}"
---
id: nightly
schedule_type: cron
schedule_expr: 0 3 * * *
workflow_id: flow
---
name: door
initial_state: open
states:
  open: {on: {close: {to: shut}}}
  shut: {on: {open: {to: open}}}
"""


def test_rules_schedules_and_machines_are_applied_listed_and_deleted(shell: Shell, tmp_path: Path) -> None:
    place = ("--workspace", "kinds")
    (tmp_path / "all.yaml").write_text(OTHERS)
    apply = ("workflows", "apply", str(tmp_path), *place)
    names = {"rule": "notify", "schedule": "nightly", "machine": "door"}
    assert shell.out(*apply).splitlines() == [
        "workflow flow version 1 is created in kinds",
        *(f"{kind} {name} is created in kinds" for kind, name in names.items()),
    ]
    assert shell.out(*apply).count("is unchanged in kinds") == 4
    for kind, name in names.items():
        those = ("--kind", kind, *place)
        head, row = shell.out("workflows", "list", *those).splitlines()
        assert (head.split()[0], row.split()[:2]) == (kind, [name, "kinds"])
        assert len(shown(shell, "list", *those)) == 1
        assert name in shell.out("workflows", "show", name, *those)
        assert shell.out("workflows", "delete", name, *those) == f"{kind} {name} is deleted\n"
        assert shell.notice("workflows", "list", *those) == f"no {kind} in the workspace kinds\n"
        shell.fails(1, f"`aether workflows list --kind {kind}`", "workflows", "delete", name, *those)


def test_a_webhook_is_applied_rotated_and_deleted(shell: Shell, tmp_path: Path) -> None:
    place = ("--workspace", "hooks")
    (tmp_path / "shop.yaml").write_text("kind: webhook\nname: shop\nevent: order.paid\n")
    made, secret = shell.out("workflows", "apply", str(tmp_path), *place).splitlines()
    assert made == "webhook shop is created in hooks"
    assert secret.startswith("the secret of webhook shop, which is not shown again: whsec_")
    assert shell.out("workflows", "apply", str(tmp_path), *place) == "webhook shop is unchanged in hooks\n"
    first = shell.out("workflows", "rotate", "shop", *place, "--idempotency-key", "1")
    assert first.startswith("whsec_")
    assert shell.out("workflows", "rotate", "shop", *place, "--idempotency-key", "1") == first
    assert shell.out("workflows", "rotate", "shop", *place) != first
    (tmp_path / "shop.yaml").write_text(
        "kind: webhook\nname: shop\nevent: order.paid\nsecrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]\n"
    )
    assert shell.out("workflows", "apply", str(tmp_path), *place) == "webhook shop is updated in hooks\n"
    assert shell.out("workflows", "apply", str(tmp_path), *place) == "webhook shop is unchanged in hooks\n"
    those = ("--kind", "webhook", *place)
    listed = shell.out("workflows", "list", *those)
    assert "/hooks/hooks/shop" in listed
    assert "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" not in listed + shell.out("workflows", "show", "shop", *those)
    assert shell.out("workflows", "delete", "shop", *those) == "webhook shop is deleted\n"
    assert shell.notice("workflows", "list", *those) == "no webhook in the workspace hooks\n"
    shell.fails(1, "webhook 'shop' not found", "workflows", "rotate", "shop", *place)
