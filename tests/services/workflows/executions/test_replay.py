"""Histories are replayed on documents, and executions move to new versions."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Failed, asked, client, worker

TABLES = ("workflow_executions", "workflow_steps", "workflow_history", "workflow_timers", "tasks")


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def step(name: str, *after: str, tool: str = "double", n: str = "1", **more: Any) -> dict[str, Any]:
    action = {"agent": "hand", "tool_name": tool, "arguments": {"n": {"$expr": n}}}
    return {"id": name, "action": action, "depends_on": list(after), **more}


FLOW: dict[str, Any] = {
    "id": "flow",
    "steps": [
        step("first", n="trigger.n", output={"twice": {"$expr": "result.n"}}),
        step("each", "first", n="item", for_each={"$expr": "1..5"}, output={"$expr": "result.n + 1"}),
        step("round", "first", n="round", **{"while": "round < 3"}),
        {"id": "sum", "depends_on": ["each", "round"], "output": {"$expr": "sum(steps.each.result)"}},
        {"id": "below", "workflow": "below", "input": {"$expr": "steps.sum.result"}, "depends_on": ["sum"]},
        {"id": "go", "wait": {"signal": "go"}, "depends_on": ["below"]},
        step("last", "go", tool="last", n="steps.go.result + steps.round.result.n"),
    ],
    "outputs": {"all": {"$expr": "[steps.first.result, steps.each.result, steps.below.result]"}},
}
BELOW = {"id": "below", "steps": [{"id": "in", "output": {"$expr": "trigger * 10"}}]}


def doubled(task: pb.TaskAssignment) -> Any:
    if asked(task)["n"] == 99:
        raise Failed("too much")
    return {"n": asked(task)["n"] * 2}


async def signalled(boss: Client, execution_id: str) -> None:
    while {one["StepID"]: one["Status"] for one in (await boss.execution(execution_id))["steps"]}["go"] != "waiting":
        pass
    await boss.do(101, execution_id, "go", data=4)


def rows(world: World) -> dict[str, list[Any]]:
    """Return all rows of the tables that executions write."""
    query = world.databases["tasks"].query
    return {table: sorted(query(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


async def rows_at_rest(world: World) -> dict[str, list[Any]]:
    """Return the rows once confirmations and children's events are written."""
    query = world.databases["tasks"].query
    while True:
        before = rows(world)
        await trio.sleep(5)
        # Virtual time does not wait for a statement that is on its way to the server.
        if rows(world) == before and not query("SELECT 1 FROM task_child_events"):
            return before


async def test_an_ended_execution_replays_and_nothing_is_written(core: Core, world: World) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(BELOW, "below")
        await boss.create(FLOW)
        execution_id = await boss.run({"n": 3})
        await signalled(boss, execution_id)
        ended = await boss.ended(execution_id)
        assert ended["execution"]["Status"] == "completed"
        assert ended["execution"]["Metadata"]["entries"] > 10
        before, calls = await rows_at_rest(world), len(seen)
        found = await boss.do(113, execution_id, data={"document": FLOW})
        assert found == {"entries": ended["execution"]["Metadata"]["entries"], "version": 0, "divergence": None}
        dry = await boss.do(113, execution_id, data={"dry_run": True})
        assert dry == {**found, "version": 1}

        changed = copy.deepcopy(FLOW)
        changed["steps"][6]["action"]["tool_name"] = "other"
        changed["steps"].insert(
            0, {"id": "new", "when": "steps.go.status == 'completed'", "output": 1, "depends_on": ["last"]}
        )
        parted = (await boss.do(113, execution_id, data={"document": changed}))["divergence"]
        assert (parted["step"], parted["happening"]["type"]) == ("last", "SignalReceived")
        assert parted["recorded"]["action"]["tool_name"] == "last"
        assert parted["now"]["action"]["tool_name"] == "other"

        changed = copy.deepcopy(FLOW)
        changed["steps"][1]["output"] = {"$expr": "result.n + 2"}
        parted = (await boss.do(113, execution_id, data={"document": changed}))["divergence"]
        assert (parted["step"], parted["recorded"]["result"] + 1) == ("each", parted["now"]["result"])

        changed = copy.deepcopy(FLOW)
        del changed["steps"][6]
        parted = (await boss.do(113, execution_id, data={"document": changed}))["divergence"]
        assert (parted["recorded"]["type"], parted["now"]["type"]) == ("DoAction", "EndExecution")
        wrong = await boss.ask(113, execution_id, data={"document": {"id": "flow", "steps": [{"id": "a"}]}})
        assert "does nothing" in wrong.error
        assert rows(world) == before
        assert len(seen) == calls


async def test_a_failed_and_retried_execution_replays(core: Core) -> None:
    flow = {
        "id": "flow",
        "steps": [
            step("kept", n="2", output={"$expr": "result.n"}),
            step("tried", "kept", n="99", on_error=[{"error": "*too*", "result": 1}]),
            {"id": "bad", "depends_on": ["tried"], "fail": "no luck"},
        ],
    }
    async with client(core) as boss, worker(core, "hand", doubled):
        await boss.create(flow)
        execution_id = await boss.run()
        assert (await boss.ended(execution_id))["execution"]["Status"] == "failed"
        await boss.do(104, execution_id)
        entries = 0
        while (found := await boss.ended(execution_id))["execution"]["Metadata"]["entries"] != entries:
            entries = found["execution"]["Metadata"]["entries"]
        found = await boss.do(113, execution_id, data={"document": flow})
        assert (found["divergence"], found["entries"]) == (None, entries)


async def test_an_execution_moves_to_a_version_on_which_its_history_replays(core: Core, world: World) -> None:
    async with client(core) as boss, worker(core, "hand", doubled) as seen:
        await boss.create(BELOW, "below")
        await boss.create(FLOW)
        execution_id = await boss.run({"n": 3})
        while {one["StepID"]: one["Status"] for one in (await boss.execution(execution_id))["steps"]}[
            "go"
        ] != "waiting":
            pass
        other = copy.deepcopy(FLOW)
        other["steps"][0]["output"] = {"twice": 0}
        await boss.create(other, version=2)
        refused = await boss.do(113, execution_id)
        assert refused["version"] == 2
        assert refused["divergence"]["step"] == "first"
        assert (await boss.execution(execution_id))["execution"]["WorkflowVersion"] == 1

        mended = copy.deepcopy(FLOW)
        mended["steps"][6]["action"]["tool_name"] = "mended"
        await boss.create(mended, version=3)
        before = await rows_at_rest(world)
        assert (await boss.do(113, execution_id, data={"dry_run": True}))["divergence"] is None
        assert rows(world) == before
        moved = await boss.ask(113, execution_id)
        assert (moved.error, moved.message) == ("", f"execution {execution_id} goes on with version 3")
        await boss.do(101, execution_id, "go", data=4)
        ended = await boss.ended(execution_id)
        assert (ended["execution"]["Status"], ended["execution"]["WorkflowVersion"]) == ("completed", 3)
        assert asked(seen[-1]) == {"n": 8}
        assert b'"mended"' in seen[-1].payload
        assert (await boss.do(113, execution_id, data={"document": mended}))["divergence"] is None
        again = await boss.ask(113, execution_id)
        assert again.error == f"execution {execution_id} has ended: it is completed"


async def test_only_who_may_see_an_execution_replays_it(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(BELOW, "below")
        execution_id = await boss.run(3, "below")
        missing = await boss.ask(113, "no-such", data={"document": BELOW})
        assert missing.error == "execution 'no-such' not found"
        wrong = await boss.ask(113, execution_id, data={"other": 1})
        assert wrong.error == "unknown keys: 'other'"
        assert (await boss.ask(113, execution_id, data={"dry_run": 1})).error == "dry_run is true or false"
