"""What is defined stops with an error when its owner has lost the right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, Op, all_taken, client, let_only

CLERK = "the owner ag::w::clerk::1 may not act in workspace w"


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def lock(core: Core) -> None:
    """Lock the clerk."""
    core.authorizer._locks_changed([("1", ["ag::w::clerk::1", "", "us::root::1", 1, 0])], False)


def only_boss(core: Core) -> None:
    """Take all rights from the clerk."""
    let_only(core, boss="w")


STEPS: dict[str, dict[str, Any]] = {
    "action": {"action": {"agent": "hand", "tool_name": "x"}},
    "event": {"action": {"type": "emit_event", "event_name": "x"}},
    "workflow": {"workflow": "free", "input": {}},
    "ask": {"ask": {"question": "?"}},
    "continue_as": {"continue_as": {"workflow": "free", "input": {}}},
}


@pytest.mark.parametrize("stop", [only_boss, lock])
@pytest.mark.parametrize("kind", STEPS)
async def test_the_next_step_of_an_execution_needs_the_right(core: Core, world: World, kind: str, stop: Any) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "output": 1}]}, "free")
        async with client(core, "clerk") as clerk:
            steps = [{"id": "go", "wait": {"signal": "go"}}, {"id": "next", "depends_on": ["go"], **STEPS[kind]}]
            await clerk.create({"steps": steps})
            execution_id = await clerk.run()
        stop(core)
        await boss.do(101, execution_id, "go")
        found = await boss.execution(execution_id)
        assert found["execution"]["Status"] == "failed"
        assert CLERK in found["execution"]["ErrorMessage"]
        assert len(world.databases["tasks"].query("SELECT task_id FROM tasks")) == 1
        refused = await boss.ask(100, "flow", data={})
        assert CLERK in refused.error


async def test_triggers_and_schedules_need_the_right(core: Core, world: World) -> None:
    async def executions(boss: Client) -> int:
        return len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all"))

    async with client(core) as boss:
        async with client(core, "clerk") as clerk:
            await clerk.create({"steps": [{"id": "a", "output": 1}], "trigger": {"event": "made"}})
            schedule = {"id": "s", "schedule_type": "interval", "schedule_expr": "1m", "workspace": "w"}
            await clerk.do(Op.CREATE_SCHEDULE, data={**schedule, "workflow_id": "flow"})
            await clerk.emit("made", data={})
            await all_taken(core, world)
        assert await executions(boss) == 1
        only_boss(core)
        await boss.emit("made", data={})
        await all_taken(core, world)
        [dead] = await boss.tasks(workspace="w", task_type="workflow_trigger")
        assert CLERK in dead.error
        await trio.sleep(70)
        [shown] = await boss.do(Op.LIST_SCHEDULES)
        assert CLERK in shown["last_error"]
        assert await executions(boss) == 1


ELSEWHERE = "the owner ag::w::clerk::1 may not act in workspace v"
EMIT: dict[str, Any] = {"type": "emit_event", "event_name": "x", "workspace": "v"}


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("before", ["nothing", "computed", "done"])
async def test_an_event_for_another_workspace_needs_the_right_in_it(core: Core, before: str, more: bool) -> None:
    first: list[Any] = [] if before == "nothing" else [{"id": "a", "output": 1}]
    if before == "done":
        first = [{"id": "a", "wait": "1s"}]
    step = {"id": "tell", "action": EMIT, "depends_on": [one["id"] for one in first]}
    after: list[Any] = [{"id": "after", "depends_on": ["tell"], "action": {"agent": "hand", "tool_name": "x"}}]
    async with client(core, "clerk") as clerk:
        await clerk.create({"steps": [*first, step, *(after if more else ())]})
        let_only(core, clerk="w")
        found = await clerk.ended(await clerk.run())
        assert found["execution"]["Status"] == "failed"
        assert f"step 'tell': {ELSEWHERE}" in found["execution"]["ErrorMessage"]
        assert await clerk.tasks(workspace="w", task_type="workflow") == []


@pytest.mark.parametrize("right", [True, False])
async def test_an_event_that_undoes_a_step_needs_the_right(core: Core, right: bool) -> None:
    steps = [
        {"id": "a", "output": 1, "compensate": EMIT},
        {"id": "b", "depends_on": ["a"], "fail": "no"},
    ]
    async with client(core, "clerk") as clerk:
        await clerk.create({"steps": steps})
        let_only(core, clerk="w v" if right else "w")
        execution_id = await clerk.run()
        found = await clerk.ended(execution_id)
        [undone] = [one for one in found["steps"] if one["StepID"].startswith("a")]
        history = await clerk.do(105, execution_id)
        marks = [one for entry in history for one in entry.get("then", ()) if one["type"] == "MarkStep"]
        if right:
            assert undone["Status"] == "compensated"
            return
        assert undone["Status"] == "compensation_failed"
        assert ELSEWHERE in undone["ErrorMessage"]
        assert undone["ErrorType"] == "PERMISSION_DENIED"
        assert [(one["status"], one["error_type"]) for one in marks if one["place"][0] == "a"] == [
            ("compensation_failed", "PERMISSION_DENIED")
        ]
