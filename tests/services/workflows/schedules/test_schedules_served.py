"""Schedules on a whole core: operations, executions and tasks that they start."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import cast

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.engine.hook import WorkflowHook
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.services.workflows.schedules.firing import Firing
from aether_trio.services.workflows.schedules.schedule_starts import ScheduleStarter
from aether_trio.services.workflows.stored.schedule_rows import StoredSchedule
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error, message_to
from tests.services.agents.cast import SetClock
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


async def test_a_schedule_whose_code_raises_holds_up_no_other(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ScheduleStarter._start

    def poisoned(self: ScheduleStarter, tx: Transaction, stored: StoredSchedule, firing: Firing) -> Program[str]:
        if stored.id == "poison":
            raise ZeroDivisionError
        return (yield from start(self, tx, stored, firing))

    monkeypatch.setattr(ScheduleStarter, "_start", poisoned)
    action = {"type": "emit_event", "event_name": "tick"}
    async with client(core) as boss:
        for name in ("poison", "sound"):
            schedule = {
                "id": name, "schedule_type": "interval", "schedule_expr": "10s", "action": action, "workspace": "w",
            }  # fmt: skip
            await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        await trio.sleep(65)
        found = {one["id"]: one["fired"] for one in await boss.do(Op.LIST_SCHEDULES)}
    assert found == {"poison": 0, "sound": 6}


YEAR_MS = 365 * 86_400_000


@pytest.mark.parametrize("restarts", [False, True])
async def test_after_a_clock_was_a_year_ahead_slots_go_on(world: World, restarts: bool) -> None:
    clock = SetClock(trio.current_time)
    schedule = {
        "id": "s", "schedule_type": "interval", "schedule_expr": "1m", "workspace": "w",
        "action": {"type": "emit_event", "event_name": "tick"},
    }  # fmt: skip

    async def fired(core: Core) -> int:
        async with client(core) as boss:
            [found] = await boss.do(Op.LIST_SCHEDULES)
            count: int = found["fired"]
            return count

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(deadlock_is_an_error())
        gateways = AsyncExitStack()
        stack.push_async_exit(gateways)
        core = await gateways.enter_async_context(world.open(clock=clock, workflow={"engine": "embedded"}))
        async with client(core) as boss:
            await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        await trio.sleep(65)
        clock.ahead_ms = YEAR_MS
        await trio.sleep(65)
        ahead = await fired(core)
        assert ahead > 1
        if restarts:
            await gateways.aclose()
        clock.ahead_ms = 0
        if restarts:
            core = await gateways.enter_async_context(world.open(clock=clock, workflow={"engine": "embedded"}))
        await trio.sleep(185)
        assert await fired(core) == ahead + 3


async def test_an_event_is_followed_by_what_its_schedule_starts(core: Core) -> None:
    definition = {"name": "flow", "steps": [{"id": "say", "output": {"$expr": "trigger.event.data.n"}}]}
    schedule = {
        "id": "remind", "schedule_type": "event_delayed", "schedule_expr": "5m", "event": "ordered",
        "workflow_id": "flow", "workspace": "w",
    }  # fmt: skip

    now_ms = core.tasks.engine.clock.now_ms()

    def taken(number: int, workspace: str, *names: str) -> TakenEvent:
        return TakenEvent(number, "event::receiver0", "ag::w::x::1", workspace, "x", names, {"n": number}, b"", now_ms)

    def page(tx: TaskTransaction) -> Program[None]:
        starter = cast("WorkflowHook", tx.context.workflows)._schedules
        events = [taken(1, "w", "other", "ordered"), taken(2, "v", "ordered"), taken(3, "w", "ordered")]
        waited = yield from starter.names_waited_for(events)
        for event in events:
            yield from starter.event_taken(tx, event, waited)

    async with client(core) as boss:
        await boss.create(definition)
        await boss.do(Op.CREATE_SCHEDULE, data=schedule)
        await core.tasks.engine.result(page)
        await trio.sleep(299)
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert (found["planned"], found["fired"]) == (2, 0)
        assert found["miss_policy"] == "fire_all"
        await trio.sleep(2)
        executions = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert sorted(one["TriggerData"]["event"]["data"]["n"] for one in executions) == [1, 3]
        assert executions[0]["TriggerData"]["event"]["source"]["principal"] == "ag::w::x::1"
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert (found["planned"], found["fired"], found["next_fire_at"]) == (0, 2, None)


async def test_schedules_are_applied_with_other_documents(core: Core) -> None:
    flow = {"name": "flow", "steps": [{"id": "say", "output": {"$expr": "trigger.schedule_id"}}]}
    schedule = {"id": "often", "schedule_type": "interval", "schedule_expr": "10s", "workflow_id": "flow"}
    async with client(core) as boss:
        data = {"documents": [flow, schedule]}
        applied = await boss.do(107, workspace="w", data=data)
        assert [(one["kind"], one["id"], one["change"]) for one in applied["applied"]] == [
            ("workflow", "flow", "created"), ("schedule", "often", "created"),
        ]  # fmt: skip
        again = await boss.do(107, workspace="w", data=data)
        assert {one["change"] for one in again["applied"]} == {"unchanged"}
        await trio.sleep(25)
        found = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert [one["Status"] for one in found] == ["completed", "completed"]
        changed = await boss.do(107, workspace="w", data={"documents": [flow, schedule | {"schedule_expr": "1h"}]})
        assert [one["change"] for one in changed["applied"]] == ["unchanged", "updated"]
        await trio.sleep(60)
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 2


async def test_an_event_starts_what_is_delayed(core: Core) -> None:
    flow = {"name": "flow", "steps": [{"id": "say", "output": {"$expr": "trigger.event.data.who"}}]}
    schedule = {
        "id": "later", "schedule_type": "event_delayed", "schedule_expr": "10m", "event": "signed.up", "workflow_id": "flow",
    }  # fmt: skip
    async with client(core) as boss:
        await boss.do(107, workspace="w", data={"documents": [flow, schedule]})
        event = {"source_agent": "x", "workspace": "w", "event_names": ["signed.up"], "data": {"who": "ann"}}
        boss.link.send(message_to("event::*", json.dumps(event).encode(), pb.EVENT))
        await trio.sleep(590)
        assert await boss.do(Op.LIST_EXECUTIONS, status_filter="all") == []
        await trio.sleep(20)
        [found] = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
        assert found["TriggerData"]["event"]["data"] == {"who": "ann"}


@pytest.mark.parametrize("starts", ["an event", "a workflow"])
async def test_a_loop_through_a_schedule_is_stopped_at_its_17th_hop(core: Core, starts: str) -> None:
    emit = {"type": "emit_event", "event_name": "tick", "payload": {"$expr": "trigger"}}
    flow = {"name": "flow", "steps": [{"id": "say", "action": emit}]}
    does = {"action": emit} if starts == "an event" else {"workflow_id": "flow"}
    schedule = {"id": "again", "schedule_type": "event_delayed", "schedule_expr": "1s", "event": "tick", **does}
    async with client(core) as boss:
        await boss.do(107, workspace="w", data={"documents": [flow, schedule]})
        await boss.emit("tick")
        await trio.sleep(60)
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert (found["fired"], found["planned"], found["missed"]) == (16, 0, 1)
        assert "stopped after 16 hops: schedule:again → schedule:again" in found["last_error"]
        await boss.emit("tick")  # one of a client begins a chain anew
        await trio.sleep(5)
        [found] = await boss.do(Op.LIST_SCHEDULES)
        assert found["fired"] > 17
        if starts == "a workflow":
            [last, *_] = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
            assert last["TriggerData"]["event"].keys() == {"name", "workspace", "data", "source"}
