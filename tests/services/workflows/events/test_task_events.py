"""Changes of tasks are events for definitions that take them, and for no other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.delivery.outbox_publisher import OutboxPublisher
from aether_trio.services.workflows.actions.event_dead_letters import RULE_FAILED, TRIGGER_FAILED
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.tasks import peers
from tests.services.workflows.helpers import Client, Failed, all_taken, client, worker

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation
APPLY = 107


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def rule(event: str, name: str = "first", **more: Any) -> dict[str, Any]:
    """Return a rule of workspace w that creates a task "seen" with what it sees."""
    sees = {"input": {"$expr": "input"}, "source": {"$expr": "source"}}
    destination = {"type": "create_task", "task_type": "seen", "target_implementation": "none", "payload": sees}
    return {
        "rule_name": name, "source_event": event, "workspace": "w", "destination_template": destination,
        "trigger_condition": 'input.task_type == "job"', **more,
    }  # fmt: skip


async def create(boss: Client, **fields: Any) -> str:
    """Create a task of type "job" for the pool "hand"; return its id."""
    given = {"task_type": "job", "target_implementation": "hand", "workspace": "w", **fields}
    answer = await peers.create(boss.link, **given)
    assert answer.success, answer.error_message
    task_id: str = answer.task_id
    return task_id


async def seen(core: Core, world: World, count: int = 0) -> list[dict[str, Any]]:
    """Return what rules have seen, once `count` have acted and all is handled."""
    sql = """SELECT COALESCE(t.payload, p.payload) FROM tasks t LEFT JOIN task_payloads p ON p.task_id = t.task_id
        WHERE task_type = 'seen' ORDER BY created_ms, t.task_id"""
    while True:
        await all_taken(core, world)
        found = world.databases["tasks"].query(sql)
        if len(found) >= count:
            return [json.loads(payload) for (payload,) in found]
        await trio.sleep(0.2)


def events_in(world: World) -> list[dict[str, Any]]:
    """Return the events in the log."""
    found = world.log.query("SELECT data FROM messages ORDER BY message_key")
    messages = [pb.DownstreamMessage.FromString(data).msg for (data,) in found]
    return [json.loads(one.payload) for one in messages if one.message_type == pb.EVENT]


async def test_the_end_of_a_task_is_an_event(core: Core, world: World) -> None:
    async with client(core) as boss, worker(core, "hand", lambda task: {"words": 3}):
        await boss.do(APPLY, data={"documents": [rule("task.completed")]})
        task_id = await create(boss, metadata={"order": "o1"}, correlation_id="c1")
        [found] = await seen(core, world, 1)
        assert found["source"] == {
            "agent": "hand", "workspace": "w", "event": "task.completed", "principal": "ag::w::hand::1",
        }  # fmt: skip
        assert found["input"] == {
            "task_id": task_id, "task_type": "job", "status": "completed", "error": "", "error_type": "",
            "assigned_to": "ag::w::hand::1", "creator": "ag::w::boss::1", "correlation_id": "c1",
            "root_task_id": task_id, "parent_task_id": "", "attempt": 0, "metadata": {"order": "o1"},
            "result": {"words": 3},
        }  # fmt: skip


async def test_failures_say_whether_another_attempt_follows(core: Core, world: World) -> None:
    def fail(_: pb.TaskAssignment) -> None:
        raise Failed("out of ink")

    names = ["task.attempt_failed", "task.failed"]
    async with client(core) as boss, worker(core, "hand", fail):
        await boss.do(APPLY, data={"documents": [rule(name, name) for name in names]})
        await create(boss, retry_policy=pb.RetryPolicy(max_attempts=2, initial_delay_ms=1000))
        found = await seen(core, world, 2)
        assert [one["source"]["event"] for one in found] == names
        assert [(one["input"]["error"], one["input"]["attempt"]) for one in found] == [
            ("out of ink", 1),
            ("out of ink", 2),
        ]
        assert {one["source"]["agent"] for one in found} == {"hand"}


async def test_a_dead_letter_is_a_failure_too(core: Core, world: World) -> None:
    names = ["task.dlq", "task.failed"]
    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [rule(name, name) for name in names]})
        metadata = {"schedule_to_close_ms": "1000"}
        await create(boss, retry_policy=pb.RetryPolicy(max_attempts=1), metadata=metadata)
        found = await seen(core, world, 2)
        assert sorted(one["source"]["event"] for one in found) == names
        assert {(one["input"]["status"], one["input"]["error_type"]) for one in found} == {("dlq", "TIMEOUT")}


async def test_other_changes_of_a_task_are_events(core: Core, world: World) -> None:
    names = ["task.created", "task.running", "task.cancelled"]
    async with client(core) as boss, connect(core, agent("w", "hand", "1")) as hand:
        await boss.do(APPLY, data={"documents": [rule(name, name) for name in names]})
        task_id = await create(boss)
        await hand.next("task_assignment")
        hand.send(pb.UpstreamMessage(task_op=TaskOp(op=TaskOp.CLAIM, task_id=task_id, request_id="c")))
        await hand.next("task_op")
        await boss.operate(task_id, TaskOp.CANCEL)
        found = await seen(core, world, 3)
        assert {one["source"]["event"]: one["source"]["principal"] for one in found} == {
            "task.created": "ag::w::boss::1", "task.running": "ag::w::hand::1", "task.cancelled": "ag::w::boss::1",
        }  # fmt: skip


async def test_what_the_gateway_does_has_the_tasks_topic_as_its_source(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [rule("task.failed")]})
        task_id = await create(boss, metadata={"schedule_to_close_ms": "1000"})
        [found] = await seen(core, world, 1)
        assert found["source"]["agent"] == "orchestrator"
        assert found["source"]["principal"] == f"tk::w::{task_id}::events"


@pytest.mark.parametrize("workspace", ["w", "*"])
async def test_tasks_have_no_events_that_no_definition_takes(core: Core, world: World, workspace: str) -> None:
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        await create(boss)
        await boss.do(Op.CREATE_RULE, data=rule("task.completed", workspace="other"))
        await boss.do(Op.CREATE_RULE, data=rule("task.failed", workspace=workspace))
        await create(boss)
        [stored] = [one for one in await boss.do(Op.LIST_RULES) if one["Workspace"] == workspace]
        changed = rule("task.completed", workspace=workspace)
        await boss.do(Op.UPDATE_RULE, str(stored["ID"]), data=changed)
        await create(boss)
        assert len(await seen(core, world, 1)) == 1
        await boss.do(Op.UPDATE_RULE, str(stored["ID"]), data={**changed, "active": False})
        await create(boss)
        await boss.do(Op.UPDATE_RULE, str(stored["ID"]), data=changed)
        await boss.do(Op.DELETE_RULE, str(stored["ID"]))
        await create(boss)
        await all_taken(core, world)
        assert [one["event_names"] for one in events_in(world)] == [["task.completed"]]


STEP = {"id": "say", "output": 1}
TAKERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "trigger": (
        {"id": "flow", "trigger": {"event": "task.completed"}, "steps": [STEP]},
        {"id": "flow", "steps": [STEP]},
    ),
    "wait": ({"id": "flow", "steps": [{"id": "end", "wait": {"event": "task.completed"}}]}, None),
    "machine": (
        {
            "id": "m", "initial_state": "a", "states": {"a": {"on": {"end": "a"}}},
            "bus": [{"event": "task.completed", "key": "input.task_id", "send": "end"}],
        },
        {"id": "m", "initial_state": "a", "states": {"a": {}}},
    ),
    "schedule": (
        {"id": "s", "schedule_type": "event_delayed", "schedule_expr": "1m", "event": "task.completed", "workflow_id": "flow"},
        {"id": "s", "schedule_type": "interval", "schedule_expr": "1h", "workflow_id": "flow"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKERS)
async def test_each_kind_of_definition_takes_events_until_it_is_changed(core: Core, world: World, kind: str) -> None:
    taker, other = TAKERS[kind]
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        await boss.do(APPLY, data={"documents": [taker]}, workspace="w")
        if kind == "wait":
            execution_id = await boss.run()
        await create(boss)
        await all_taken(core, world)
        while not events_in(world):
            await trio.sleep(0.2)
        if kind == "wait":
            assert (await boss.ended(execution_id))["execution"]["Status"] == "completed"
            await boss.do(Op.DELETE_WORKFLOW, "flow")
        else:
            await boss.do(APPLY, data={"documents": [other]}, workspace="w")
        count = len(events_in(world))
        await create(boss)
        await all_taken(core, world)
        assert len(events_in(world)) == count


async def test_a_running_execution_waits_on_when_its_workflow_is_changed(core: Core, world: World) -> None:
    waits = {"id": "flow", "steps": [{"id": "end", "wait": {"event": "task.completed"}}]}
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        await boss.do(APPLY, data={"documents": [waits]}, workspace="w")
        execution_id = await boss.run()
        await boss.do(APPLY, data={"documents": [{"id": "flow", "steps": [STEP]}]}, workspace="w")
        task_id = await create(boss)
        found = await boss.ended(execution_id)
        assert found["execution"]["Status"] == "completed"
        result = json.loads((await boss.task(execution_id)).metadata["_result"])
        assert result["end"]["task_id"] == task_id, result


async def test_a_rule_that_creates_tasks_at_the_end_of_tasks_is_stopped(core: Core, world: World) -> None:
    again = {"type": "create_task", "task_type": "job", "target_implementation": "hand"}
    looping = rule("task.completed", destination_template=again)
    async with client(core) as boss, worker(core, "hand", lambda task: None) as done:
        await boss.do(APPLY, data={"documents": [looping]})
        await create(boss)
        while not (dead := await boss.tasks(workspace="w", task_type=RULE_FAILED)):
            await trio.sleep(1)
        assert "stopped after 16 hops: rule:first → rule:first" in dead[0].error
        assert len(done) == 17


async def test_a_workflow_that_begins_at_the_end_of_executions_is_stopped(core: Core, world: World) -> None:
    flow = {"id": "flow", "trigger": {"event": "task.completed"}, "steps": [STEP]}
    async with client(core) as boss:
        await boss.do(APPLY, data={"documents": [flow]}, workspace="w")
        await boss.run()
        while not (dead := await boss.tasks(workspace="w", task_type=TRIGGER_FAILED)):
            await trio.sleep(1)
        assert "stopped after 16 hops: workflow:flow → workflow:flow" in dead[0].error


async def test_a_completion_event_of_the_same_name_is_the_only_one(core: Core, world: World) -> None:
    async with client(core) as boss, worker(core, "hand", lambda task: None):
        await boss.do(APPLY, data={"documents": [rule("task.completed"), rule("ready", "second")]})
        await create(boss, completion_event=pb.TaskCompletionEvent(enabled=True))
        assert [one["source"]["event"] for one in await seen(core, world, 1)] == ["task.completed"]
        await create(boss, completion_event=pb.TaskCompletionEvent(enabled=True, event_name="ready"))
        assert sorted(one["source"]["event"] for one in await seen(core, world, 3)) == [
            "ready", "task.completed", "task.completed",
        ]  # fmt: skip


async def test_an_event_that_was_not_published_acts_after_a_crash(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway dies between its commit and the log, and once more behind the log."""

    async def stuck(_: OutboxPublisher) -> None:
        await trio.sleep_forever()

    async with deadlock_is_an_error():
        with monkeypatch.context() as patched:
            patched.setattr(OutboxPublisher, "_publish_all", stuck)
            async with (
                world.open(workflow={"engine": "embedded"}) as first,
                client(first) as boss,
                worker(first, "hand", lambda task: None),
            ):
                await boss.do(APPLY, data={"documents": [rule("task.completed")]})
                task_id = await create(boss)
                while (await boss.task(task_id)).status != pb.TASK_STATUS_COMPLETED:
                    await trio.sleep(0.2)
        rows = world.databases["tasks"].query("SELECT task_id, number, node, topic, frame FROM task_outbox")
        assert len(rows) == 1
        async with world.open(workflow={"engine": "embedded"}) as second, client(second):
            assert len(await seen(second, world, 1)) == 1
            sql = "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)"
            node = second.tasks.engine.nodes.node
            await world.databases["tasks"].execute(sql, *rows[0][:2], node, *rows[0][3:])
            second.tasks.engine.outbox_publisher.wake()
            assert len(await seen(second, world, 1)) == 1
            assert len(events_in(world)) == 2
