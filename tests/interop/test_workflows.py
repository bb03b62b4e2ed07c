"""The published SDK and the embedded workflow engine, on every storage.

On three nodes the caller, the workers and the engine are on different ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, answered, declined, in_asyncio
from tests.interop.tasks import steps

Op = pb.WorkflowOperation


@pytest.fixture
def world(any_target: str) -> World:
    """The peers of one scenario, on each engine."""
    return World(any_target)


async def ask(peer: Peer, op: int, **fields: Any) -> Any:
    """Ask for an operation that succeeds; return its JSON."""
    data = fields.pop("data", None)
    if data is not None:
        fields["data"] = json.dumps(data).encode()
    answer = answered(await peer.client.workflow_op(Op(op=op, **fields), timeout=30), f"workflow operation {op}")
    return json.loads(answer.data) if answer.data else None


@contextlib.asynccontextmanager
async def working(peer: Peer, handle: Callable[[dict[str, Any]], Any]) -> AsyncIterator[list[Any]]:
    """Have an SDK client do the tasks that it is assigned, as its users do."""
    seen: list[Any] = []

    async def work() -> None:
        while True:
            task = await peer.assignments.get()
            seen.append(task)
            result = handle(json.loads(task.payload))
            await peer.client.report_progress(
                task.task_id, state="done", completion=1.0, metadata={"result": json.dumps(result)}
            )
            await steps.op(peer, "complete", task.task_id)

    worker = asyncio.create_task(work())
    try:
        yield seen
    finally:
        worker.cancel()


async def ended(peer: Peer, execution_id: str) -> Any:
    """Wait for the end of an execution."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        found = await ask(peer, Op.GET_EXECUTION, id=execution_id)
        if found["execution"]["Status"] in ("completed", "failed", "cancelled"):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


@in_asyncio
async def test_a_graph_in_the_references_form_runs_with_sdk_workers(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    definition = {
        "name": "order",
        "version": 1,
        "trigger": {"event": "order.made", "source_agent": "*", "condition": "input.sum > 3"},
        "steps": [
            {"id": "check", "action": {"agent": world.impl, "tool_name": "check", "arguments": {"sum": "{{.trigger.sum}}"}}},
            {
                "id": "ship",
                "action": {"agent": world.impl, "tool_name": "ship", "arguments": {"ok": "{{.steps.check.result.ok}}"}},
                "depends_on": ["check"],
                "retry": {"max_attempts": 3, "backoff": "constant"},
                "timeout": "5m",
            },
        ],
    }  # fmt: skip
    made = await ask(
        boss, Op.CREATE_WORKFLOW, data={"ID": "order", "Version": 1, "Workspace": world.ws, "Definition": definition}
    )
    assert made["ID"] == "order"
    listed = await ask(boss, Op.LIST_WORKFLOWS, workspace=world.ws)
    assert [one["ID"] for one in listed] == ["order"]
    assert (await ask(boss, Op.GET_WORKFLOW, id="order", workspace=world.ws))["Definition"]["steps"][1]["id"] == "ship"
    async with working(hand, lambda call: {"ok": call["arguments"] == {"sum": 5}, "tool": call["tool_name"]}) as seen:
        started = await ask(boss, 100, id="order", workspace=world.ws, data={"sum": 5})
        found = await ended(boss, started["execution_id"])
    assert found["execution"]["Status"] == "completed", found
    assert [json.loads(task.payload)["tool_name"] for task in seen] == ["check", "ship"]
    assert json.loads(seen[1].payload)["arguments"] == {"ok": True}
    for task in seen:
        assert task.task_type == "workflow"
        assert task.metadata["workflow"] == "true"
        assert task.metadata["execution_id"] == started["execution_id"]
    run = await steps.task(boss, started["execution_id"])
    assert run.status == pb.TASK_STATUS_COMPLETED
    assert json.loads(run.metadata["_result"])["ship"] == {"ok": False, "tool": "ship"}
    await ask(boss, Op.DELETE_WORKFLOW, id="order", workspace=world.ws)
    declined(await boss.client.workflow_op(Op(op=100, id="order", workspace=world.ws), timeout=30), "it is deactivated")


@in_asyncio
async def test_an_execution_is_cancelled_with_its_tasks(world: World) -> None:
    boss, _hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    definition = {"name": "long", "steps": [{"id": "one", "action": {"agent": world.impl, "tool_name": "x"}}]}
    await ask(boss, Op.CREATE_WORKFLOW, data={"ID": "long", "Workspace": world.ws, "Definition": definition})
    started = await ask(boss, 100, id="long", workspace=world.ws)
    found = await ask(boss, Op.GET_EXECUTION, id=started["execution_id"])
    running = await ask(boss, Op.LIST_EXECUTIONS, workspace=world.ws, status_filter="running")
    assert [one["ExecutionID"] for one in running] == [started["execution_id"]]
    # As any task: the SDK's own call cancels it.
    await steps.op(boss, "cancel", started["execution_id"])
    found = await ended(boss, started["execution_id"])
    assert found["execution"]["Status"] == "cancelled"
    await steps.reaches(boss, found["steps"][0]["TaskID"], pb.TASK_STATUS_CANCELLED)
    again = await boss.client.workflow_op(Op(op=Op.CANCEL_EXECUTION, id=started["execution_id"]), timeout=30)
    assert "has ended" in declined(again, "it has ended").error


@in_asyncio
async def test_109_a_schedules_are_kept_and_fire(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    action = {"type": "create_task", "task_type": "tick", "target_implementation": world.impl, "payload": {"n": 1}}
    args = ("every", "Every", "interval", "1s", world.ws)
    created = answered(await boss.client.create_schedule(*args, action=action, timeout=30), "create")
    assert json.loads(created.data)["next_fire_at"]
    declined(await boss.client.create_schedule(*args, action=action, timeout=30), "it exists")
    task = await asyncio.wait_for(hand.assignments.get(), LIMIT_S)
    assert task.task_type == "tick"
    upserted = answered(
        await boss.client.upsert_schedule(*args[:3], "1h", world.ws, action=action, timeout=30), "upsert"
    )
    assert json.loads(upserted.data)["schedule_expr"] == "1h"
    listed = answered(await boss.client.list_schedules(world.ws, timeout=30), "list")
    assert [one["id"] for one in json.loads(listed.data)] == ["every"]
    answered(await boss.client.delete_schedule("every", world.ws, timeout=30), "delete")
    listed = answered(await boss.client.list_schedules(world.ws, timeout=30), "list")
    assert json.loads(listed.data) == []


@in_asyncio
async def test_a_machine_is_moved_by_operations_events_and_its_timeout(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    action = {"type": "create_task", "task_type": "paid", "target_implementation": world.impl, "payload": {"n": 1}}
    definition = {
        "name": "order",
        "initial_state": "open",
        "states": {
            "open": {"on": {"pay": "paid", "cancel": "done"}},
            "paid": {"entry_action": action, "timeout": "100ms", "timeout_action": "done"},
            "done": {"terminal": True},
        },
        "bus": [{"event": "payment", "key": "input.order", "send": "pay"}],
    }
    where = {"workspace": world.ws}
    await ask(boss, Op.CREATE_STATE_MACHINE, data={"id": "order", **where, "definition": definition})
    assert [one["id"] for one in await ask(boss, Op.LIST_STATE_MACHINES, **where)] == ["order"]
    for name in ("o1", "o2"):
        made = await ask(boss, Op.CREATE_SM_INSTANCE, id="order", **where, data={"instance_id": name, "data": {}})
        assert made["current_state"] == "open"
    sent = await ask(boss, Op.SEND_SM_EVENT, id="o1", secondary_id="cancel", **where)
    assert sent["current_state"] == "done"
    await boss.client.send_event(json.dumps({"event_names": ["payment"], "data": {"order": "o2"}}).encode())
    task = await asyncio.wait_for(hand.assignments.get(), LIMIT_S)
    assert (task.task_type, json.loads(task.payload)) == ("paid", {"n": 1})
    deadline = time.monotonic() + LIMIT_S
    while (await ask(boss, Op.GET_SM_INSTANCE, id="o2", **where))["current_state"] != "done":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert len(await ask(boss, Op.LIST_SM_INSTANCES, id="order", **where)) == 2
    await ask(boss, Op.DELETE_STATE_MACHINE, id="order", **where)
    assert await ask(boss, Op.LIST_STATE_MACHINES, **where) == []


@in_asyncio
async def test_rules_lead_events_to_a_join(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    where = {"workspace": world.ws}
    template = f"""
type: join
join:
  name: batch
  correlation_key: input.job
  dedup_key: input.item
  arm_on_event: ingest_done
  expected_count: input.total
  timeout: 10m
  on_complete:
    type: create_task
    task_type: all
    target_implementation: {world.impl}
    payload: {{job: "{{{{.input.job}}}}"}}
"""
    for event in ("decompose_done", "ingest_done"):
        rule = {"RuleName": event, "SourceEvent": event, "Workspace": world.ws, "DestinationTemplate": template}
        await ask(boss, Op.CREATE_RULE, data=rule)
    items = [{"job": "j", "item": number} for number in (0, 1, 1, 2)]
    for data in (*items, {"job": "other", "item": 0}):
        payload = {"event_names": ["decompose_done"], "data": data}
        await boss.client.send_event(json.dumps(payload).encode())
    total = {"event_names": ["ingest_done"], "data": {"job": "j", "total": 3}}
    await boss.client.send_event(json.dumps(total).encode())
    task = await asyncio.wait_for(hand.assignments.get(), LIMIT_S)
    assert (task.task_type, json.loads(task.payload)) == ("all", {"job": "j"})
    found = await ask(boss, Op.GET_JOIN, id="batch", secondary_id="j", **where)
    assert (found["arrived"], found["expected"], found["status"]) == (3, 3, "fired")
    listed = await ask(boss, Op.LIST_JOINS, **where, status_filter="open")
    assert [one["correlation_key"] for one in listed] == ["other"]
    cancelled = await ask(boss, Op.CANCEL_JOIN, id="batch", secondary_id="other", **where)
    assert cancelled["status"] == "cancelled"
    assert hand.assignments.empty()


async def send_event(peer: Peer, world: World, name: str, data: Any) -> None:
    """Send an event as users of the SDK do."""
    event = {"source_agent": "anything", "workspace": world.ws, "event_names": [name], "data": data}
    await peer.client.send_event(json.dumps(event).encode())


@in_asyncio
async def test_109_q_rules_are_kept_and_an_event_creates_a_task(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    destination = f"type: create_task\ntask_type: shout\ntarget_implementation: {world.impl}\npayload:\n  who: {{{{.input.who}}}}\n"
    rule = {
        "RuleName": f"shout-{world.run}",
        "SourceEvent": "said",
        "SourceAgent": "*",
        "Workspace": world.ws,
        "TriggerCondition": 'input.who != "ann"',
        "DestinationTemplate": destination,
    }
    made = await ask(boss, Op.CREATE_RULE, data=rule)
    assert made["RuleName"] == rule["RuleName"]
    rule_id = str(made["ID"])
    assert (await ask(boss, Op.GET_RULE, id=rule_id))["DestinationTemplate"] == destination
    for who in ("ann", "bob: [1]"):
        await send_event(boss, world, "said", {"who": who})
    task = await asyncio.wait_for(hand.assignments.get(), LIMIT_S)
    assert task.task_type == "shout"
    # msgpack of a map with one entry; what was printed is a text, whatever it looks like.
    assert b"bob: [1]" in task.payload
    changed = await ask(boss, Op.UPDATE_RULE, id=rule_id, data=made | {"TriggerCondition": "", "Active": True})
    assert changed["TriggerCondition"] == ""
    await send_event(boss, world, "said", {"who": "ann"})
    task = await asyncio.wait_for(hand.assignments.get(), LIMIT_S)
    assert b"ann" in task.payload
    listed = await ask(boss, Op.LIST_RULES, workspace=world.ws)
    assert [str(one["ID"]) for one in listed if one["Workspace"] == world.ws] == [rule_id]
    await ask(boss, Op.DELETE_RULE, id=rule_id)
    declined(await boss.client.workflow_op(Op(op=Op.GET_RULE, id=rule_id), timeout=30), "it is deleted")


@in_asyncio
async def test_an_event_starts_a_graph_and_another_one_wakes_it(world: World) -> None:
    boss, hand = await world.open(world.agent("boss", impl=f"{world.impl}-boss"), world.agent("hand"))
    wait = {"event": "paid", "key": "input.order", "equals": "trigger.order"}
    definition = {
        "name": "order",
        "trigger": {"event": "ordered", "condition": "input.sum > 3"},
        "steps": [
            {"id": "pay", "wait": wait},
            {"id": "ship", "action": {"agent": world.impl, "tool_name": "ship"}, "depends_on": ["pay"]},
        ],
    }
    await ask(boss, Op.CREATE_WORKFLOW, data={"ID": "order", "Workspace": world.ws, "Definition": definition})
    for order, sum_ in ((1, 3), (2, 4), (3, 5)):
        await send_event(boss, world, "ordered", {"order": order, "sum": sum_})
    await send_event(boss, world, "paid", {"order": 3})
    async with working(hand, lambda call: "shipped") as seen:
        deadline = time.monotonic() + LIMIT_S
        while True:
            running = await ask(boss, Op.LIST_EXECUTIONS, workspace=world.ws, status_filter="running")
            if seen and len(running) == 1:
                break
            assert time.monotonic() < deadline, running
            await asyncio.sleep(0.05)
    assert [one["TriggerData"] for one in running] == [{"order": 2, "sum": 4}]
    assert len(seen) == 1
