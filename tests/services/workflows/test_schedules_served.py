"""Schedules on a whole core: operations, executions and tasks that they start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import client, worker

Op = pb.WorkflowOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


async def test_a_schedule_starts_executions_of_its_workflow(core: Core) -> None:
    definition = {"name": "flow", "steps": [{"id": "say", "output": {"$expr": "trigger.schedule_id"}}]}
    async with client(core) as boss:
        await boss.create(definition)
        schedule = {
            "id": "often",
            "schedule_type": "interval",
            "schedule_expr": "10s",
            "workflow_id": "flow",
            "workspace": "w",
        }
        made = await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        assert made["next_fire_at"]
        again = await boss.ask(Op.CREATE_SCHEDULE, data=schedule)
        assert "upsert it" in again.error
        await trio.sleep(35)
        found = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert len(found) == 3
        assert {one["Status"] for one in found} == {"completed"}
        assert found[0]["TriggerData"]["schedule_id"] == "often"
        await boss.do(110, "often")
        await trio.sleep(30)
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 3
        await boss.do(111, "often")
        await trio.sleep(11)
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 4
        await boss.do(Op.DELETE_SCHEDULE, "often")
        assert await boss.do(Op.LIST_SCHEDULES) == []


async def test_a_schedule_waits_for_its_running_task(core: Core) -> None:
    action = {"type": "create_task", "task_type": "job", "target_implementation": "hand", "payload": {"n": 1}}
    schedule = {
        "id": "job", "schedule_type": "interval", "schedule_expr": "1m", "action": action, "workspace": "w",
        "max_concurrent": 1,
    }  # fmt: skip
    async with client(core) as boss:
        await boss.do(Op.UPSERT_SCHEDULE, data=schedule)
        await trio.sleep(250)
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert found["fired"] == 1
        first = found["active_task_id"]
        assert (await boss.task(first)).status == pb.TASK_STATUS_QUEUED
        async with worker(core, "hand", lambda task: None) as seen:
            await trio.sleep(1)
            assert [task.task_id for task in seen] == [first]
            assert seen[0].task_type == "job"
            await trio.sleep(120)
            assert len(seen) >= 2


async def test_a_schedule_acts_only_as_its_owner_may(core: Core) -> None:
    async with client(core) as boss:
        wrong = await boss.ask(
            Op.CREATE_SCHEDULE, data={"id": "x", "schedule_type": "cron", "schedule_expr": "61 * * * *"}
        )
        assert not wrong.success
        action = {"type": "create_task", "task_type": "job", "target_implementation": "hand"}
        schedule = {"id": "all", "schedule_type": "interval", "schedule_expr": "1m", "action": action}
        await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        await trio.sleep(70)
        found = [one for one in await boss.do(Op.LIST_SCHEDULES) if one["id"] == "all"]
        assert found[0]["last_error"]
        assert found[0]["fired"] == 0
