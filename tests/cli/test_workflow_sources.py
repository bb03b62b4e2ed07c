"""`aether workflows schedules`, `instances` and `joins` against a real gateway."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import Shell
from tests.cli.test_workflows import QuickShell
from tests.helpers.gateway import GatewayProcess

FILE = """
id: tick
inputs: {slot: string}
steps: [{id: one, output: 1}]
---
id: nightly
schedule_type: cron
schedule_expr: "30 6 * * *"
timezone: Europe/Berlin
workflow_id: tick
input: {slot: "{{.schedule.slot}}"}
---
id: often
schedule_type: interval
schedule_expr: 2h
workflow_id: tick
input: {slot: x}
---
id: order
initial_state: open
states:
  open:
    "on":
      pay: [{to: paid, when: input.amount >= data.sum}]
    timeout: 24h
    timeout_action: paid
  paid: {terminal: true}
---
rule_name: part_done
source_event: part.done
destination_template:
  type: join
  join:
    name: ingest
    correlation_key: input.job
    dedup_key: input.part
    expected_count: 3
    on_complete: {type: emit_event, event_name: all.done}
"""
PLACE = ("--workspace", "sources")


@pytest.fixture
def shell(gateway: GatewayProcess, tmp_path: Path) -> Shell:
    made = QuickShell(gateway)
    (tmp_path / "all.yaml").write_text(FILE)
    made.run("workflows", "apply", str(tmp_path / "all.yaml"), *PLACE)
    return made


def shown(shell: Shell, *arguments: str) -> Any:
    return json.loads(shell.out("workflows", *arguments, "--json", *PLACE))


def executions(shell: Shell) -> list[Any]:
    found: list[Any] = json.loads(shell.out("workflows", "executions", "--all", "--json", *PLACE))
    return found


def test_schedules_are_shown_paused_and_backfilled(shell: Shell) -> None:
    assert [one["id"] for one in shown(shell, "schedules", "list")] == ["nightly", "often"]
    table = shell.out("workflows", "schedules", "list", *PLACE)
    assert "cron 30 6 * * * Europe/Berlin" in table
    found = shown(shell, "schedules", "show", "nightly", "--next", "4")
    moments = [datetime.fromisoformat(one) for one in found["next"]]
    assert len(moments) == 4
    assert all(timedelta(hours=23) <= later - one <= timedelta(hours=25) for one, later in pairwise(moments))
    assert {one.minute for one in moments} == {30}
    first, second = (
        datetime.fromisoformat(one) for one in shown(shell, "schedules", "show", "often", "--next", "2")["next"]
    )
    assert second - first == timedelta(hours=2)
    text = shell.out("workflows", "schedules", "show", "nightly", *PLACE)
    assert text.count("next  20") == 3
    assert shell.out("workflows", "schedules", "pause", "nightly", "often", *PLACE) == (
        "schedule nightly is paused\nschedule often is paused\n"
    )
    assert "paused" in shell.out("workflows", "schedules", "list", *PLACE)
    assert shown(shell, "schedules", "show", "nightly")["next"] == []
    backfill = ("workflows", "schedules", "backfill")
    shell.fails(1, "`aether workflows schedules list` shows those", *backfill, "nightl", "--from", "2020-01-01", *PLACE)
    shell.fails(
        1, "`aether workflows schedules list` shows those", "workflows", "backfill", "x", "--from", "2020-01-01"
    )
    past = ("--from", "2025-03-28T00:00:00Z", "--to", "2025-03-31T00:00Z", *PLACE)
    shell.fails(1, "is paused: resume it first", *backfill, "nightly", *past)
    assert shell.out("workflows", "schedules", "resume", "nightly", "often", *PLACE) == (
        "schedule nightly goes on\nschedule often goes on\n"
    )
    assert shell.out(*backfill, "nightly", *past) == "3 slots of schedule nightly are filled\n"
    while len(found := executions(shell)) < 3 or any(one["status"] != "completed" for one in found):
        pass
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    shell.fails(1, "not in the future", *backfill, "often", "--from", "2025-01-01", "--to", tomorrow, *PLACE)
    shell.fails(2, "--from is before --to", *backfill, "often", "--from", tomorrow, *PLACE)
    shell.fails(2, "is no moment such as", *backfill, "often", "--from", "yesterday", *PLACE)
    shell.fails(1, "not found in workspace", "workflows", "schedules", "pause", "nothing", *PLACE)
    shell.fails(1, "there is no schedule nothing", "workflows", "schedules", "show", "nothing", *PLACE)


def test_instances_of_machines_are_created_moved_and_shown(shell: Shell) -> None:
    instances = ("workflows", "instances")
    assert "no instance of order" in shell.notice(*instances, "list", "order", *PLACE)
    made = shell.out(*instances, "create", "order", "o1", "--data", '{"sum": 5}', *PLACE)
    assert made == "instance o1 is in state open\n"
    shell.out(*instances, "create", "order", "o2", *PLACE)
    shell.fails(1, "has no transition for event 'fly' in state 'open'", *instances, "send", "o1", "fly", *PLACE)
    told = shell.out(*instances, "send", "o1", "pay", "--data", "-", *PLACE, stdin=b'{"amount": 7}')
    assert told == "instance o1 is in state paid, and has ended\n"
    found = shown(shell, "instances", "show", "o1")
    assert (found["current_state"], found["data"], found["transitions"]) == ("paid", {"sum": 5}, 2)
    assert {one["instance_id"] for one in shown(shell, "instances", "list", "order")} == {"o1", "o2"}
    assert [one["instance_id"] for one in shown(shell, "instances", "list", "-n", "1")] == ["o1"]
    table = shell.out(*instances, "list", *PLACE)
    assert "paid (ended)" in table
    assert '{"sum": 5}' in table
    assert "current state" in shell.out(*instances, "show", "order/o2", *PLACE)
    shell.fails(1, "not found in workspace", *instances, "show", "o3", *PLACE)
    shell.fails(1, "not found", *instances, "create", "nothing", "o3", *PLACE)
    shell.fails(2, "it is not JSON", *instances, "send", "o2", "pay", "--data", "{", *PLACE)


def test_joins_are_shown_and_cancelled(shell: Shell) -> None:
    joins = ("workflows", "joins")
    assert "no open join in the workspace sources" in shell.notice(*joins, "list", *PLACE)
    for job, part in (("j1", 1), ("j1", 1), ("j1", 2), ("j2", 1), ("j2", 2), ("j2", 3)):
        event = json.dumps({"event_names": ["part.done"], "data": {"job": job, "part": part}})
        shell.out("send", "event::*", event, "--type", "event", "--as", "ag::sources::worker::1")
    while {one["correlation_key"]: one["arrived"] for one in shown(shell, "joins", "list", "--status", "all")} != {
        "j1": 2,
        "j2": 3,
    }:
        pass
    assert "2 of 3" in shell.out(*joins, "list", *PLACE)
    assert shown(shell, "joins", "show", "ingest", "j2")["status"] == "fired"
    assert "correlation key  j1" in shell.out(*joins, "show", "ingest", "j1", *PLACE)
    assert shell.out(*joins, "cancel", "ingest", "j1", *PLACE) == "join ingest is cancelled\n"
    assert [one["correlation_key"] for one in shown(shell, "joins", "list", "--status", "cancelled")] == ["j1"]
    shell.fails(1, "not found in workspace", *joins, "show", "ingest", "j9", *PLACE)
