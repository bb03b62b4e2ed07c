"""Flow control of workflows and rules on a whole core, on both storage engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import MIB
from aether_trio.services.workflows.documents import json_thread
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.agents.cast import SetClock
from tests.services.workflows.helpers import Client, Op, all_taken, client, worker


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def waits(flow: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return a workflow that waits for the signal "go", and gives its input."""
    steps = [{"id": "go", "wait": {"signal": "go"}}]
    found = {"name": "flow", "steps": steps, "outputs": {"$expr": "trigger"}, **more}
    return found if flow is None else {**found, "flow": flow}


async def status(boss: Client, *ids: str) -> list[str]:
    return [(await boss.execution(one))["execution"]["Status"] for one in ids]


async def go(boss: Client, execution_id: str) -> None:
    await boss.do(101, execution_id, "go")


async def test_executions_queue_by_key(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"concurrency": {"limit": 1, "key": "trigger.c"}}))
        one, two, three, other = [await boss.run({"c": c}) for c in ("a", "a", "a", "b")]
        assert await status(boss, one, two, three, other) == ["running", "queued", "queued", "running"]
        listed = await boss.do(Op.LIST_EXECUTIONS)
        assert {row["ExecutionID"] for row in listed} == {one, two, three, other}
        queued = await boss.do(Op.LIST_EXECUTIONS, status_filter="queued")
        assert [row["ExecutionID"] for row in queued] == [three, two] or len(queued) == 2
        refused = await boss.ask(101, two, "go")
        assert "has not begun" in refused.error
        await go(boss, one)
        assert await status(boss, one, two, three) == ["completed", "running", "queued"]
        await boss.do(Op.CANCEL_EXECUTION, three)
        await go(boss, two)
        assert await status(boss, two, three) == ["completed", "cancelled"]
        four = await boss.run({"c": "a"})
        assert await status(boss, four) == ["running"]


async def test_what_is_skipped_is_refused(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"singleton": True}))
        one = await boss.run()
        answer = await boss.ask(100, "flow", data={})
        assert "further ones are skipped" in answer.error
        await go(boss, one)
        await boss.run()


async def test_a_newer_one_replaces_the_running_and_the_waiting(core: Core) -> None:
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        document = waits({"concurrency": {"limit": 1, "on_limit": "replace"}})
        document["steps"].insert(0, {
            "id": "book", "action": {"agent": "hand", "tool_name": "book"},
            "compensate": {"agent": "hand", "tool_name": "unbook"},
        })  # fmt: skip
        document["steps"][1]["depends_on"] = ["book"]
        await boss.create(document)
        one = await boss.run({"n": 1})
        while (await boss.execution(one))["steps"][0]["Status"] != "completed":
            await trio.sleep(0.1)
        two = await boss.run({"n": 2})
        three = await boss.run({"n": 3})
        found = [await boss.ended(each) for each in (one, two)]
        assert [each["execution"]["Status"] for each in found] == ["cancelled", "cancelled"]
        assert "a newer one has replaced it" in found[1]["execution"]["ErrorMessage"]
        while await status(boss, three) != ["running"]:
            await trio.sleep(0.1)


async def test_higher_priorities_begin_first(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"concurrency": 1, "priority": "trigger.p"}))
        one, low, high = [await boss.run({"p": p}) for p in (0, 1, 2)]
        await go(boss, one)
        assert await status(boss, low, high) == ["queued", "running"]
        await go(boss, high)
        assert await status(boss, low) == ["running"]


async def test_a_throttle_lets_the_others_wait(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"throttle": {"limit": 2, "period": "10s"}}))
        ids = [await boss.run() for _ in range(5)]
        assert await status(boss, *ids) == ["running"] * 2 + ["queued"] * 3
        await trio.sleep(11)
        assert await status(boss, *ids) == ["running"] * 4 + ["queued"]
        await trio.sleep(10)
        assert await status(boss, *ids) == ["running"] * 5


async def test_a_debounce_gathers_all_inputs(core: Core) -> None:
    steps = [{"id": "all", "output": {"$expr": "map(trigger.items, #.n)"}}]
    document = {"name": "flow", "inputs": {"n": "integer"}, "steps": steps, "flow": {"debounce": {"period": "5s"}}}
    async with client(core) as boss:
        await boss.create(document)
        ids = []
        for n in range(3):
            ids.append(await boss.run({"n": n}))
            await trio.sleep(3)
        assert len(set(ids)) == 1
        assert await status(boss, ids[0]) == ["queued"]
        wrong = await boss.ask(100, "flow", data={"n": "x"})
        assert "not as declared" in wrong.error
        found = await boss.ended(ids[0])
        assert found["steps"][0]["OutputData"] == [0, 1, 2]
        later = await boss.run({"n": 9})
        assert later != ids[0]
        await boss.do(Op.CANCEL_EXECUTION, later)
        again = await boss.run({"n": 10})
        assert (await boss.ended(again))["steps"][0]["OutputData"] == [10]


async def test_a_batch_begins_when_it_is_full(core: Core) -> None:
    steps = [{"id": "all", "output": {"$expr": "map(trigger.items, #.n)"}}]
    flow = {"batch": {"size": 2, "timeout": "1m", "key": "trigger.k"}}
    async with client(core) as boss:
        await boss.create({"name": "flow", "steps": steps, "flow": flow})
        one, two, three = [await boss.run({"n": n, "k": k}) for n, k in ((1, "a"), (2, "b"), (3, "a"))]
        assert one == three
        assert (await boss.ended(one))["steps"][0]["OutputData"] == [1, 3]
        assert await status(boss, two) == ["queued"]
        await trio.sleep(61)
        assert (await boss.ended(two))["steps"][0]["OutputData"] == [2]


async def test_rate_and_idempotency_drop(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"rate": {"limit": 2, "period": "1m"}, "idempotency": {"key": "trigger.id"}}))
        await boss.run({"id": 1})
        again = await boss.ask(100, "flow", data={"id": 1})
        assert "one with the same key" in again.error
        await boss.run({"id": 2})
        over = await boss.ask(100, "flow", data={"id": 3})
        assert "as the rate allows" in over.error
        await trio.sleep(61)
        await boss.run({"id": 3})


async def test_max_executions_lets_the_others_wait(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits(max_executions=2))
        ids = [await boss.run() for _ in range(4)]
        assert await status(boss, *ids) == ["running"] * 2 + ["queued"] * 2
        await go(boss, ids[1])
        assert await status(boss, *ids) == ["running", "completed", "running", "queued"]
        await boss.do(Op.CANCEL_EXECUTION, ids[0])
        assert await status(boss, ids[3]) == ["running"]


async def test_workflows_with_like_names_have_each_their_places(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits(max_executions=1), "x")
        await boss.create(waits(max_executions=1), "w/x")
        assert await status(boss, await boss.run({}, "x"), await boss.run({}, "w/x")) == ["running"] * 2


async def test_all_executions_have_a_bound(world: World) -> None:
    settings = {"engine": "embedded", "max_concurrent_executions": 1}
    async with deadlock_is_an_error(), world.open(workflow=settings) as core, client(core) as boss:
        await boss.create({**waits(), "name": "other"}, "other")
        await boss.create({"name": "flow", "steps": [{"id": "sub", "workflow": "other", "input": {}}]})
        one = await boss.run()  # the one below it takes no place
        steps = (await boss.execution(one))["steps"]
        two = await boss.run({}, "other")
        three = await boss.run({}, "other")
        assert await status(boss, one, two, three) == ["running", "queued", "queued"]
        await go(boss, steps[0]["TaskID"])
        assert await status(boss, one, two, three) == ["completed", "running", "queued"]
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
        while await status(boss, three) != ["running"]:
            await trio.sleep(0.1)


async def test_steps_wait_for_their_turn_too(core: Core) -> None:
    async with client(core) as boss:
        await boss.create({**waits({"concurrency": 1}), "name": "sub"}, "sub")
        each = {
            "id": "each",
            "for_each": {"items": [1, 2, 3], "max_parallel": 0},
            "workflow": "sub",
            "input": {"n": {"$expr": "item"}},
        }
        await boss.create({"name": "flow", "steps": [each]})
        one = await boss.run()
        done = 0
        while done < 3:
            running = await boss.do(Op.LIST_EXECUTIONS, "sub", status_filter="running")
            below = [row for row in running if row["Status"] == "running"]
            assert len(below) <= 1
            for row in below:
                await go(boss, row["ExecutionID"])
                done += 1
            await trio.sleep(0.1)
        assert (await boss.ended(one))["execution"]["Status"] == "completed"


async def test_the_next_one_of_a_chain_keeps_its_place(core: Core) -> None:
    document = {
        "name": "flow",
        "flow": {"singleton": True},
        "steps": [
            {"id": "go", "wait": {"signal": "go"}},
            {"id": "next", "depends_on": ["go"], "continue_as": {"input": {"n": 2}}},
        ],
    }
    async with client(core) as boss:
        await boss.create(document)
        one = await boss.run()
        await go(boss, one)
        found = await boss.ended(one)
        assert found["execution"]["Status"] == "completed", found
        refused = await boss.ask(100, "flow", data={})
        assert "skipped" in refused.error
        (open_,) = await boss.do(Op.LIST_EXECUTIONS)
        await boss.do(Op.CANCEL_EXECUTION, open_["ExecutionID"])
        await boss.run()


async def test_what_is_queued_ends_with_its_definition(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"concurrency": 1}))
        ids = [await boss.run() for _ in range(4)]
        await boss.do(Op.DELETE_WORKFLOW, "flow", workspace="w")
        found = await boss.ended(ids[3])
        assert found["execution"]["Status"] == "cancelled"
        assert "was deactivated before it began" in found["execution"]["ErrorMessage"]
        assert await status(boss, *ids[:3]) == ["running", "cancelled", "cancelled"]
        await go(boss, ids[0])
        assert await status(boss, ids[0]) == ["completed"]


async def test_what_a_schedule_has_queued_ends_with_it(core: Core) -> None:
    async with client(core) as boss:
        await boss.create(waits({"concurrency": 1}))
        one = await boss.run()
        schedule = {
            "ID": "often",
            "Workspace": "w",
            "ScheduleType": "interval",
            "ScheduleExpr": "10s",
            "WorkflowID": "flow",
        }
        await boss.do(Op.UPSERT_SCHEDULE, data=schedule)
        await trio.sleep(25)
        by_hand = await boss.run()
        queued = [row["ExecutionID"] for row in await boss.do(Op.LIST_EXECUTIONS, status_filter="queued")]
        assert len(queued) == 3
        await boss.do(Op.DELETE_SCHEDULE, "often", workspace="w")
        for each in queued:
            if each != by_hand:
                assert "schedule often was deactivated" in (await boss.ended(each))["execution"]["ErrorMessage"]
        assert await status(boss, one, by_hand) == ["running", "queued"]


async def test_a_long_queue_of_short_executions_is_worked_off(core: Core) -> None:
    async with client(core) as boss:
        first = {"id": "go", "wait": {"signal": "go"}, "when": "trigger.n == 0"}
        await boss.create({"name": "flow", "steps": [first], "flow": {"concurrency": 1}})
        ids = [await boss.run({"n": n}) for n in range(70)]
        await go(boss, ids[0])
        for each in ids:
            assert (await boss.ended(each))["execution"]["Status"] == "completed"


# -- rules -----------------------------------------------------------------------------------------


async def rule(boss: Client, flow: dict[str, Any], payload: Any, **more: Any) -> int:
    """Create a rule whose tasks are for the pool "absent", or as said."""
    document = {
        "rule_name": "act",
        "source_event": "happened",
        "flow": flow,
        "destination_template": {
            "type": "create_task", "task_type": "act", "target_implementation": "absent", "payload": payload, **more,
        },
    }  # fmt: skip
    made = await boss.do(Op.CREATE_RULE, data=document, workspace="w")
    found: int = made["ID"]
    return found


async def acts(boss: Client) -> list[pb.TaskInfo]:
    """List the tasks of the rule, the oldest first."""
    found = [one for one in await boss.tasks(workspace="w", limit=100) if one.task_type == "act"]
    return sorted(found, key=lambda one: one.created_at)


async def test_acts_of_a_rule_queue_by_key(core: Core, world: World) -> None:
    query = world.databases["tasks"].query
    async with client(core) as boss:
        number = await rule(boss, {"concurrency": {"limit": 1, "key": "input.c"}}, {"$expr": "input.n"})
        for n, c in ((1, "a"), (2, "a"), (3, "b"), (4, "a")):
            await boss.emit("happened", data={"n": n, "c": c})
            await all_taken(core, world)
            await trio.sleep(1)
        first, other = await acts(boss)
        await boss.operate(first.task_id, pb.TaskOperation.CANCEL)
        (third,) = [one for one in await acts(boss) if one.task_id not in (first.task_id, other.task_id)]
        await boss.do(Op.DELETE_RULE, str(number))
        while query("SELECT run_id FROM workflow_flow_runs WHERE waits > 0"):
            await trio.sleep(0.1)
        await boss.operate(third.task_id, pb.TaskOperation.CANCEL)
        await boss.operate(other.task_id, pb.TaskOperation.CANCEL)
        assert len(await acts(boss)) == 3
        assert not query("SELECT run_id FROM workflow_flow_runs")
        assert not query("SELECT place FROM workflow_flow_gates")


async def test_a_newer_act_of_a_rule_replaces_the_older(core: Core, world: World) -> None:
    async with client(core) as boss:
        await rule(boss, {"singleton": {"on_limit": "replace"}}, {"$expr": "input.n"})
        for n in range(3):
            await boss.emit("happened", data={"n": n})
            await all_taken(core, world)
        found = sorted(one.status for one in await acts(boss))
        assert found == [pb.TASK_STATUS_QUEUED] + [pb.TASK_STATUS_CANCELLED] * 2


async def test_a_rule_acts_once_on_all_events_of_a_window(core: Core, world: World) -> None:
    seen: list[Any] = []

    def handle(task: pb.TaskAssignment) -> None:
        seen.append(json.loads(task.payload))

    async with client(core) as boss, worker(core, "absent", handle):
        payload = {"last": {"$expr": "input.n"}, "all": {"$expr": "map(events, .input.n)"}}
        await rule(boss, {"debounce": {"period": "5s", "key": "input.c"}}, payload)
        for n, c in ((1, "a"), (2, "b"), (3, "a")):
            await boss.emit("happened", data={"n": n, "c": c})
            await trio.sleep(2)
        while len(seen) < 2:
            await trio.sleep(0.5)
        assert seen == [{"last": 2, "all": [2]}, {"last": 3, "all": [1, 3]}]


async def test_events_whose_act_is_refused_are_dead_letters_and_gathered_again(core: Core, world: World) -> None:
    async with client(core) as boss:
        flow = {"batch": {"size": 2, "timeout": "1m"}}
        number = await rule(boss, flow, {"$expr": "map(events, .input.n.m)"})
        for n in (1, 2):
            await boss.emit("happened", data={"n": n})
        await all_taken(core, world)
        letters = [one for one in await boss.tasks(workspace="w", limit=100) if one.task_type == "workflow_rule"]
        assert len(letters) == 2
        mended = {
            "ID": number, "rule_name": "act", "source_event": "happened", "workspace": "w", "flow": flow,
            "destination_template": {
                "type": "create_task", "task_type": "act", "target_implementation": "absent",
                "payload": {"$expr": "map(events, .input.n)"},
            },
        }  # fmt: skip
        await boss.do(Op.UPDATE_RULE, str(number), data=mended)
        for one in letters:
            answer = await boss.operate(one.task_id, pb.TaskOperation.RETRY)
            assert answer.success, answer
        assert len(await acts(boss)) == 1


async def test_an_act_that_makes_no_task_ends_at_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        document = {
            "rule_name": "act", "source_event": "happened",
            "flow": {"concurrency": 1, "throttle": {"limit": 1, "period": "5s"}},
            "destination_template": {"type": "emit_event", "event_name": "told", "payload": {"$expr": "input"}},
        }  # fmt: skip
        await boss.do(Op.CREATE_RULE, data=document, workspace="w")
        steps = [{"id": "one", "output": {"$expr": "trigger"}}]
        await boss.create({"name": "flow", "trigger": {"event": "told"}, "steps": steps})
        for n in range(3):
            await boss.emit("happened", data=n)
        await all_taken(core, world)
        assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 1
        while len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) < 3:
            await trio.sleep(1)


async def test_a_refused_start_by_an_event_is_no_dead_letter(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create(waits({"singleton": True}, trigger={"event": "happened"}))
        for _ in range(2):
            await boss.emit("happened", data={})
        await all_taken(core, world)
        found = await boss.tasks(workspace="w", limit=100)
        assert [one.task_type for one in found] == ["workflow_run"]


async def test_a_start_that_is_refused_takes_no_place(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RequestError(Code.PAYLOAD_TOO_LARGE, "too much")

    async with client(core) as boss:
        await boss.create(waits({"singleton": True}, trigger={"event": "happened"}))
        executions = core.tasks.engine._workflows._executions  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(executions._actions, "check_size", refuse)
            await boss.emit("happened", data={})
            await all_taken(core, world)
        assert [one.task_type for one in await boss.tasks(workspace="w")] == ["workflow_trigger"]
        await boss.run()


async def test_what_is_gathered_has_a_bound(core: Core, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_thread, "SMALL_BYTES", MIB)  # time would pass while a thread works
    async with client(core) as boss:
        await boss.create(waits({"batch": {"size": 5, "timeout": "1m"}}))
        large = "x" * 400_000
        one = await boss.run({"x": large})
        for _ in range(2):
            assert await boss.run({"x": large}) == one
        refused = await boss.ask(100, "flow", data={"x": large})
        assert "let batch or debounce end earlier" in refused.error
        assert await boss.run({"x": ""}) == one


async def test_functions_wait_for_their_turn(world: World) -> None:
    settings = {"engine": "embedded", "max_concurrent_executions": 1}
    async with (
        deadlock_is_an_error(),
        world.open(workflow=settings) as core,
        client(core) as boss,
        client(core, "hand") as hand,
    ):
        await hand.do(120, "act", data={})
        one, two, three = [await boss.run({"n": n}, "act") for n in range(3)]
        assert await status(boss, one, two, three) == ["running", "queued", "queued"]
        first = (await hand.link.next("task_assignment")).task_assignment
        assert first.task_id == one
        resumed = await boss.operate(two, pb.TaskOperation.RESUME)
        assert "waits for its turn" in resumed.error
        await boss.do(Op.CANCEL_EXECUTION, two)
        await hand.operate(one, pb.TaskOperation.CLAIM)
        await hand.operate(one, pb.TaskOperation.COMPLETE)
        assert await status(boss, one, two, three) == ["completed", "cancelled", "running"]
        history = await boss.do(105, three)
        assert history[0]["type"] == "Started"
        assert history[0]["input"] == {"n": 2}


@pytest.mark.parametrize("flow", [{"concurrency": {"limit": 1}}, {"batch": {"size": 3, "timeout": "1m"}}])
async def test_what_was_cancelled_before_it_began_begins_when_it_is_retried(core: Core, flow: dict[str, Any]) -> None:
    async with client(core) as boss:
        await boss.create(waits(flow))
        await boss.run({"n": 1})
        two = await boss.run({"n": 2})
        assert await status(boss, two) == ["queued"]
        await boss.do(Op.CANCEL_EXECUTION, two)
        assert await status(boss, two) == ["cancelled"]
        await boss.do(104, two)
        assert await status(boss, two) == ["running"]
        await go(boss, two)
        given = {"items": [{"n": 1}, {"n": 2}]} if "batch" in flow else {"n": 2}
        found = (await boss.execution(two))["execution"]
        assert (found["Status"], found["TriggerData"]) == ("completed", given)


async def test_a_function_that_was_cancelled_before_it_began_begins_when_it_is_retried(world: World) -> None:
    settings = {"engine": "embedded", "max_concurrent_executions": 1}
    async with (
        deadlock_is_an_error(),
        world.open(workflow=settings) as core,
        client(core) as boss,
        client(core, "hand") as hand,
    ):
        await hand.do(120, "act", data={})
        _, two = [await boss.run({"n": n}, "act") for n in range(2)]
        await boss.do(Op.CANCEL_EXECUTION, two)
        assert await status(boss, two) == ["cancelled"]
        await boss.do(104, two)
        assert await status(boss, two) == ["running"]
        history = await boss.do(105, two)
        assert [(one["type"], one["input"]) for one in history] == [("Started", {"n": 1})]
        await hand.operate(two, pb.TaskOperation.CLAIM)
        await hand.operate(two, pb.TaskOperation.COMPLETE)
        assert await status(boss, two) == ["completed"]


async def test_what_undoes_its_steps_for_long_is_kept_and_gives_its_place_back(world: World) -> None:
    settings = {"workflow": {"engine": "embedded"}, "tasks": {"cancelled_retention_s": 60}}
    document = waits({"concurrency": {"limit": 1}})
    document["steps"].insert(0, {"id": "book", "output": 1, "compensate": {"agent": "hand", "tool_name": "unbook"}})
    document["steps"][1]["depends_on"] = ["book"]
    async with deadlock_is_an_error(), world.open(**settings) as core, client(core) as boss:
        await boss.create(document)
        one, two = await boss.run(), await boss.run()
        await boss.do(Op.CANCEL_EXECUTION, one)
        await trio.sleep(300)
        assert await status(boss, one, two) == ["compensating", "queued"]
        async with worker(core, "hand", lambda task: 1) as undone:
            assert (await boss.ended(one))["execution"]["Status"] == "cancelled"
        assert len(undone) == 1
        assert await status(boss, two) == ["running"]
        await trio.sleep(120)
        assert "not found" in (await boss.ask(Op.GET_EXECUTION, one)).error


@pytest.mark.parametrize("restarts", ["", "before", "after"])
@pytest.mark.parametrize("flow", [{"throttle": {"limit": 1, "period": "1m"}}, {"debounce": {"period": "1m"}}])
async def test_a_clock_that_was_hours_ahead_delays_by_a_period_only(
    world: World, flow: dict[str, Any], restarts: str
) -> None:
    """Also if the gateway was restarted `before` the clock was set right, or after it."""
    clock = SetClock(trio.current_time)
    settings: dict[str, Any] = {"clock": clock, "workflow": {"engine": "embedded"}}

    async def begins(boss: Client, execution_id: str) -> None:
        clock.ahead_ms = 0
        await trio.sleep(70)
        assert await status(boss, execution_id) == ["completed"]

    async with deadlock_is_an_error():
        async with world.open(**settings) as core, client(core) as boss:
            await boss.create({"steps": [{"id": "a", "output": 1}], "flow": flow})
            await trio.sleep(30)
            clock.ahead_ms = 3 * 3_600_000
            await trio.sleep(30)
            await boss.run()
            two = await boss.run()
            assert await status(boss, two) == ["queued"]
            if not restarts:
                await begins(boss, two)
        if restarts:
            clock.ahead_ms *= restarts == "before"
            async with world.open(**settings) as core, client(core) as boss:
                await begins(boss, two)
