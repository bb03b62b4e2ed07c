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
