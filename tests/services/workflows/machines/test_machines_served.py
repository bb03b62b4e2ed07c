"""State machines on a whole core: operations, bus, timeouts, dead letters."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.workflows.actions.action_dead_letters import ACTION_FAILED
from aether_trio.services.workflows.actions.event_dead_letters import MACHINE_FAILED
from aether_trio.services.workflows.machines.moves import Machines
from aether_trio.services.workflows.rules import reactions
from aether_trio.services.workflows.stored import machine_rows
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client, let_agents, let_only

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation
APPLY = 107


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def job(name: str, **more: Any) -> dict[str, Any]:
    """Return an action: a task of this type without a worker."""
    return {"type": "create_task", "task_type": name, "target_implementation": "none", **more}


ORDER: dict[str, Any] = {
    "initial_state": "open",
    "states": {
        "open": {
            "entry_action": job("opened", payload={"$expr": "data"}),
            "exit_action": job("left"),
            "on": {
                "pay": [
                    {"to": "paid", "when": "input.amount >= 10", "assign": {"amount": {"$expr": "input.amount"}}},
                    "open",
                ],
                "cancel": "cancelled",
            },
            "timeout": "1h",
            "timeout_action": "cancelled",
        },
        "paid": {
            "entry_action": job("paid", payload={"all": {"$expr": "data"}, "in": {"$expr": "machine"}}),
            "on": {"ship": {"to": "shipped", "action": job("ship", payload={"$expr": "input"})}},
            "timeout": "1m",
        },
        "shipped": {"terminal": True},
        "cancelled": {"terminal": True, "entry_action": job("cancelled")},
    },
}


async def define(boss: Client, definition: dict[str, Any] = ORDER, name: str = "order", where: str = "w") -> Any:
    data = {"id": name, "workspace": where, "definition": definition}
    return await boss.do(Op.CREATE_STATE_MACHINE, data=data)


async def instance(boss: Client, name: str = "o1", data: Any = None, machine: str = "order") -> Any:
    return await boss.do(Op.CREATE_SM_INSTANCE, machine, data={"instance_id": name, "data": data})


async def jobs(boss: Client) -> list[str]:
    """Return the types of the tasks of actions."""
    found = [task for task in await boss.tasks(workspace="w") if task.task_type not in (ACTION_FAILED, MACHINE_FAILED)]
    return sorted(task.task_type for task in found)


async def letters(boss: Client, kind: str = ACTION_FAILED) -> list[pb.TaskInfo]:
    return await boss.tasks(workspace="w", task_type=kind)


def payloads(world: World) -> dict[str, Any]:
    """Return the payloads of tasks by the type of the task."""
    found = world.databases["tasks"].query("SELECT task_type, payload FROM tasks")
    return {kind: json.loads(bytes(payload)) for kind, payload in found if payload}


# -- operations ------------------------------------------------------------------------------------


async def test_a_machine_is_created_listed_and_deactivated(core: Core) -> None:
    async with client(core) as boss:
        made = await define(boss)
        assert made.pop("created_at") == made.pop("updated_at")
        definition = made.pop("definition")
        assert definition["initial_state"] == "open"
        assert made == {"id": "order", "workspace": "w", "active": True, "owner": "ag::w::boss::1"}
        assert (await define(boss))["id"] == "order", "equal content is no conflict"
        other = {"ID": "order", "Definition": json.dumps({**ORDER, "description": "x"}), "Workspace": "w"}
        assert "other content" in (await boss.ask(Op.CREATE_STATE_MACHINE, data=other)).error
        await define(boss, name="of_all", where="*")
        assert [one["id"] for one in await boss.do(Op.LIST_STATE_MACHINES)] == ["of_all", "order"]
        assert [one["id"] for one in await boss.do(Op.LIST_STATE_MACHINES, workspace="*")] == ["of_all"]
        assert (await boss.do(Op.GET_STATE_MACHINE, "order"))["definition"] == definition
        await boss.do(Op.DELETE_STATE_MACHINE, "order")
        assert [one["id"] for one in await boss.do(Op.LIST_STATE_MACHINES)] == ["of_all"]
        assert (await boss.do(Op.GET_STATE_MACHINE, "order"))["active"] is False
        assert (await boss.do(Op.CREATE_STATE_MACHINE, data=other))["definition"]["description"] == "x"
        assert "not found" in (await boss.ask(Op.GET_STATE_MACHINE, "none")).error
        assert "not found" in (await boss.ask(Op.DELETE_STATE_MACHINE, "none")).error


async def test_an_instance_goes_through_its_states(core: Core, world: World) -> None:
    async with client(core) as boss:
        await define(boss)
        made = await instance(boss, data={"who": "ann", "n": 5})
        assert made["timeout_at"] > made["created_at"]
        assert {name: made[name] for name in ("instance_id", "machine_id", "workspace", "current_state", "data")} == {
            "instance_id": "o1",
            "machine_id": "order",
            "workspace": "w",
            "current_state": "open",
            "data": {"who": "ann", "n": 5},
        }
        again = await boss.ask(Op.CREATE_SM_INSTANCE, "order", data={"InstanceID": "o1"})
        assert "has an instance 'o1'" in again.error
        little = await boss.do(Op.SEND_SM_EVENT, "o1", "pay", data={"amount": 2})
        assert (little["current_state"], little["data"]["n"], little["transitions"]) == ("open", 5, 2)
        paid = await boss.do(Op.SEND_SM_EVENT, "o1", data={"Event": "pay", "Data": {"amount": 20}})
        assert (paid["current_state"], paid["data"]) == ("paid", {"who": "ann", "n": 5, "amount": 20})
        refused = await boss.ask(Op.SEND_SM_EVENT, "o1", "pay")
        assert "no transition for event 'pay' in state 'paid'" in refused.error
        assert await boss.do(Op.GET_SM_INSTANCE, "o1") == paid
        done = await boss.do(Op.SEND_SM_EVENT, "o1", "ship", data=[1, 2])
        assert (done["current_state"], done["timeout_at"]) == ("shipped", None)
        assert done["completed_at"] == done["updated_at"]
        assert "has completed" in (await boss.ask(Op.SEND_SM_EVENT, "o1", "ship")).error
        assert await jobs(boss) == ["left", "left", "opened", "opened", "paid", "ship"]
        found = payloads(world)
        assert found["ship"] == [1, 2]
        assert found["paid"]["all"] == {"who": "ann", "n": 5, "amount": 20}
        assert found["paid"]["in"] == {"id": "order", "instance": "o1", "workspace": "w", "state": "paid"}
        [(due_ms, completed_ms)] = world.databases["tasks"].query(
            "SELECT t.due_ms, i.completed_ms FROM workflow_timers t, workflow_instances i"
        )
        assert due_ms == completed_ms + 7 * 86_400_000, "then it is forgotten"


async def test_lists_of_instances_are_bounded_and_of_the_machine(core: Core) -> None:
    async with client(core) as boss:
        await define(boss, {"initial_state": "a", "states": {"a": {"on": {"go": "a"}}}})
        await define(boss, {"initial_state": "b", "states": {"b": {}}}, "other")
        for number in range(105):
            await instance(boss, f"i{number}")
        await instance(boss, "x", machine="other")
        await trio.sleep(1)
        await boss.do(Op.SEND_SM_EVENT, "i3", "go")
        found = await boss.do(Op.LIST_SM_INSTANCES, "order")
        assert len(found) == 100
        assert found[0]["instance_id"] == "i3"
        assert [one["instance_id"] for one in await boss.do(Op.LIST_SM_INSTANCES, "other")] == ["x"]
        assert len(await boss.do(Op.LIST_SM_INSTANCES)) == 100
        assert await boss.do(Op.LIST_SM_INSTANCES, workspace="*") == []


async def test_machines_may_have_instances_of_one_id(core: Core) -> None:
    async with client(core) as boss:
        await define(boss)
        await define(boss, name="team/order")
        await instance(boss, "a/1")
        assert (await boss.do(Op.GET_SM_INSTANCE, "a/1"))["machine_id"] == "order"
        await instance(boss, "a/1", machine="team/order")
        refused = await boss.ask(Op.SEND_SM_EVENT, "a/1", "cancel")
        assert "order/a/1, team/order/a/1" in refused.error
        await boss.do(Op.SEND_SM_EVENT, "team/order/a/1", "cancel")
        assert (await boss.do(Op.GET_SM_INSTANCE, "order/a/1"))["current_state"] == "open"
        assert (await boss.do(Op.GET_SM_INSTANCE, "team/order/a/1"))["current_state"] == "cancelled"


async def test_a_machine_of_all_workspaces_acts_in_that_of_the_instance(core: Core) -> None:
    async with client(core) as boss:
        await define(boss, where="*")
        made = await instance(boss)
        assert made["workspace"] == "w"
        assert await jobs(boss) == ["opened"]
        # One of the workspace is nearer.
        await define(boss, {"initial_state": "near", "states": {"near": {}}})
        assert (await instance(boss, "o2"))["current_state"] == "near"
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "open"


WRONG: list[tuple[int, str, Any, str]] = [
    (Op.CREATE_STATE_MACHINE, "", {}, "definition"),
    (Op.CREATE_STATE_MACHINE, "", {"id": "x", "definition": {"initial_state": "q", "states": {"a": {}}}}, "'q'"),
    (Op.CREATE_STATE_MACHINE, "", {"id": "x y", "definition": ORDER}, "id"),
    (Op.CREATE_SM_INSTANCE, "order", {}, "instance_id is null"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "a\0b"}, "control character"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "x" * 1025}, "1024"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "\ud800"}, "surrogate"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "x", "data": "\ud800"}, "surrogate"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "x", "data": "x" * 600_000}, "bytes"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "x", "workspace": 7}, "workspace"),
    (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "x", "workspace": "a\0"}, "workspace"),
    (Op.CREATE_SM_INSTANCE, "", {"instance_id": "x", "machine_id": "a\0"}, "machine_id"),
    (Op.CREATE_SM_INSTANCE, "", {"instance_id": "x", "machine_id": "\ud800"}, "machine_id"),
    (Op.SEND_SM_EVENT, "o1", {"event": "\0\ud800"}, "surrogate"),
    (Op.SEND_SM_EVENT, "o1", {"event": "\0"}, "no transition"),
    (Op.CREATE_SM_INSTANCE, "none", {"instance_id": "x"}, "not found"),
    (Op.CREATE_SM_INSTANCE, "order", [], "object"),
    (Op.SEND_SM_EVENT, "o1", {}, "secondary_id"),
    (Op.SEND_SM_EVENT, "o1", {"event": 7}, "secondary_id"),
    (Op.SEND_SM_EVENT, "none", {"event": "pay"}, "not found"),
    (Op.SEND_SM_EVENT, "o1", {"event": "pay", "data": {}}, "have no order"),
    (Op.GET_SM_INSTANCE, "/" * 500, None, "not found"),
]


async def test_what_is_wrong_is_said(core: Core) -> None:
    async with client(core) as boss:
        await define(boss)
        await instance(boss)
        for op, about, data, error in WRONG:
            answer = await boss.ask(op, about, data=data)
            assert not answer.success
            assert error in answer.error
        assert len(await boss.do(Op.LIST_SM_INSTANCES)) == 1
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["transitions"] == 1


async def test_data_that_is_no_json_is_refused(core: Core) -> None:
    async with client(core) as boss:
        await define(boss)
        for data in (b"{", b"[" * 100_000 + b"]" * 100_000, b'{"instance_id": "x", "data": 1e999}'):
            answer = await boss.raw(Op.CREATE_SM_INSTANCE, "order", data)
            assert "JSON" in answer.error
        assert await boss.do(Op.LIST_SM_INSTANCES, "order") == []
        await instance(boss)
        deep = b"[" * 100 + b"]" * 100
        for op, about, data in (
            (Op.CREATE_SM_INSTANCE, "order", b'{"instance_id": "x", "data": ' + deep + b"}"),
            (Op.SEND_SM_EVENT, "o1", b'{"event": "cancel", "data": ' + deep + b"}"),
        ):
            assert "deeper than 64 levels" in (await boss.raw(op, about, data)).error
        [found] = await boss.do(Op.LIST_SM_INSTANCES, "order")
        assert found["current_state"] == "open"


async def test_data_that_a_transition_nests_deeper_each_time_is_bounded(core: Core) -> None:
    again = {"to": "a", "assign": {"last": {"$expr": "data"}}}
    async with client(core) as boss:
        await define(boss, {"initial_state": "a", "states": {"a": {"on": {"again": again}}}})
        await instance(boss)
        answers = [await boss.ask(Op.SEND_SM_EVENT, "o1", "again") for _ in range(70)]
        done = sum(answer.success for answer in answers)
        assert 60 < done < 70
        assert "deeper than 64 levels" in answers[-1].error
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["transitions"] == done + 1


async def test_texts_with_zero_bytes_in_data_are_kept(core: Core) -> None:
    async with client(core) as boss:
        await define(boss)
        data = {"a\0b": ["\0", "\u202e", {"deep": [[[[1.5]]]]}]}
        assert (await instance(boss, data=data))["data"] == data
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["data"] == data


# -- rights ----------------------------------------------------------------------------------------


async def test_operations_need_their_access(core: Core) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await define(boss)
        await instance(boss)
        let_agents(core, AccessLevel.NONE)
        let_only(core, boss="w")
        for op, about in ((Op.GET_STATE_MACHINE, "order"), (Op.GET_SM_INSTANCE, "o1"), (Op.SEND_SM_EVENT, "o1")):
            answer = await other.ask(op, about, data={"event": "cancel"} if op == Op.SEND_SM_EVENT else None)
            assert not answer.success
            assert "not found" in answer.error or "ERR_PERMISSION_DENIED" in answer.error
        let_only(core, AccessLevel.READ, other="w")
        assert (await other.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "open"
        for op, about, data in (
            (Op.SEND_SM_EVENT, "o1", {"event": "cancel"}),
            (Op.CREATE_SM_INSTANCE, "order", {"instance_id": "o2"}),
            (Op.DELETE_STATE_MACHINE, "order", None),
            (Op.CREATE_STATE_MACHINE, "x", {"definition": ORDER}),
        ):
            assert (await other.ask(op, about, data=data)).error.startswith("ERR_PERMISSION_DENIED")


async def test_the_owner_is_asked_at_each_action_and_a_refused_one_is_a_dead_letter(core: Core) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await define(boss)
        let_only(core, other="w")
        # What the sender may do does not count; the transition stands.
        assert (await instance(other))["current_state"] == "open"
        let_only(core, boss="w")
        [letter] = await letters(boss)
        assert letter.metadata["machine"] == "order"
        assert "the entry action of instance 'o1' failed: the owner ag::w::boss::1" in letter.error
        assert await jobs(boss) == []
        answer = await boss.operate(letter.task_id, TaskOp.RETRY)
        assert answer.success, answer.error
        assert await jobs(boss) == ["opened"]
        assert (await boss.task(letter.task_id)).status == pb.TASK_STATUS_COMPLETED


async def test_an_action_that_cannot_be_computed_is_a_dead_letter(core: Core) -> None:
    definition: dict[str, Any] = {
        "initial_state": "a",
        "states": {
            "a": {
                "on": {"go": [{"to": "a", "when": "false"}, {"to": "b", "action": job("x", payload={"$expr": "input.a.b"})}]},
                "exit_action": job("left"),
            },
            "b": {"entry_action": job("there")},
        },
    }  # fmt: skip
    async with client(core) as boss:
        await define(boss, definition)
        await instance(boss)
        assert (await boss.do(Op.SEND_SM_EVENT, "o1", "go", data={}))["current_state"] == "b"
        assert await jobs(boss) == ["left", "there"]
        [letter] = await letters(boss)
        assert "the transition action of instance 'o1' failed" in letter.error
        await boss.operate(letter.task_id, TaskOp.RETRY)
        assert (await boss.task(letter.task_id)).status != pb.TASK_STATUS_COMPLETED
        assert await jobs(boss) == ["left", "there"]
        mended = json.loads(json.dumps(definition).replace("input.a.b", "input.a?.b"))
        await boss.do(APPLY, data={"documents": [{"id": "order", **mended}]}, workspace="w")
        await boss.operate(letter.task_id, TaskOp.RETRY)
        assert (await boss.task(letter.task_id)).status == pb.TASK_STATUS_COMPLETED
        assert await jobs(boss) == ["left", "there", "x"]


# -- time ------------------------------------------------------------------------------------------


async def test_a_timeout_leads_to_its_state_once(core: Core) -> None:
    async with client(core) as boss:
        await define(boss)
        await instance(boss)
        await trio.sleep(3_599)
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "open"
        await trio.sleep(2)
        found = await boss.do(Op.GET_SM_INSTANCE, "o1")
        assert (found["current_state"], found["timeout_at"], found["transitions"]) == ("cancelled", None, 2)
        assert await jobs(boss) == ["cancelled", "left", "opened"]


async def test_a_timeout_without_a_state_is_cleared(core: Core, world: World) -> None:
    async with client(core) as boss:
        await define(boss)
        await instance(boss)
        paid = await boss.do(Op.SEND_SM_EVENT, "o1", "pay", data={"amount": 10})
        assert paid["timeout_at"]
        await trio.sleep(61)
        found = await boss.do(Op.GET_SM_INSTANCE, "o1")
        assert (found["current_state"], found["timeout_at"]) == ("paid", None)
        assert world.databases["tasks"].query("SELECT kind FROM workflow_timers") == []


QUICK: dict[str, Any] = {
    "initial_state": "a",
    "states": {
        "a": {"timeout": "1ms", "timeout_action": "b"},
        "b": {"timeout": "2ms", "timeout_action": "a"},
    },
}


async def test_a_quick_circle_of_timeouts_is_refused(core: Core) -> None:
    async with client(core) as boss:
        data = {"id": "quick", "workspace": "w", "definition": QUICK}
        for refused in (
            await boss.ask(Op.CREATE_STATE_MACHINE, data=data),
            await boss.ask(APPLY, data={"documents": [{"kind": "machine", "id": "quick", "workspace": "w", **QUICK}]}),
        ):
            assert not refused.success
            assert "state 'a': its timeouts lead to itself within 3 ms" in refused.error
            assert "(a → b → a)" in refused.error


async def test_a_quick_circle_of_timeouts_that_is_stored_takes_a_second_for_each_state(
    core: Core, world: World
) -> None:
    async with client(core) as boss:
        slow = {"a": {"timeout": "1h", "timeout_action": "b"}, "b": {"timeout": "1h", "timeout_action": "a"}}
        await define(boss, {**QUICK, "states": slow}, "quick")
        stored = json.dumps({**QUICK, "id": "quick", "workspace": "w"}).encode()
        changed = "UPDATE workflow_machines SET document = $1, digest = 'other' RETURNING 1"
        assert world.databases["tasks"].query(changed, stored)
        await instance(boss, machine="quick")
        await trio.sleep(60)
        found = await boss.do(Op.GET_SM_INSTANCE, "o1")
        assert 30 <= found["transitions"] <= 62


async def test_a_circle_of_a_timeout_and_an_event_takes_a_second(core: Core, world: World) -> None:
    emits = {"type": "emit_event", "event_name": "back", "payload": {"id": "o1"}}
    circle = {
        "initial_state": "a",
        "states": {
            "a": {"timeout": "1ms", "timeout_action": "b"},
            "b": {"entry_action": emits, "on": {"back": "a"}},
        },
        "bus": [{"event": "back", "key": "input.id"}],
    }
    async with client(core) as boss:
        await define(boss, circle, "quick")
        await instance(boss, machine="quick")
        await trio.sleep(60)
        found = await boss.do(Op.GET_SM_INSTANCE, "o1")
        assert 30 <= found["transitions"] <= 126


async def test_timeouts_go_on_after_a_restart(world: World) -> None:
    clock = VirtualClock(trio.current_time)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(deadlock_is_an_error())
        async with world.open(clock=clock, workflow={"engine": "embedded"}) as core, client(core) as boss:
            await define(boss)
            await instance(boss)
            await instance(boss, "o2")
        await trio.sleep(3_000)
        async with world.open(clock=clock, workflow={"engine": "embedded"}) as core, client(core) as boss:
            assert (await boss.do(Op.SEND_SM_EVENT, "o2", "pay", data={"amount": 10}))["current_state"] == "paid"
            await trio.sleep(601)
            assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "cancelled"
            assert (await boss.do(Op.GET_SM_INSTANCE, "o2"))["current_state"] == "paid"
            assert await jobs(boss) == ["cancelled", "left", "left", "opened", "opened", "paid"]


async def test_instances_of_a_machine_that_is_not_active_rest(core: Core, world: World) -> None:
    async with client(core) as boss:
        await define(boss)
        await instance(boss)
        await boss.do(Op.DELETE_STATE_MACHINE, "order")
        assert "not active" in (await boss.ask(Op.SEND_SM_EVENT, "o1", "cancel")).error
        assert "not active" in (await boss.ask(Op.CREATE_SM_INSTANCE, "order", data={"instance_id": "o2"})).error
        assert world.databases["tasks"].query("SELECT kind FROM workflow_timers") == []
        await trio.sleep(4_000)
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "open"
        await define(boss)
        await trio.sleep(1)
        assert (await boss.do(Op.GET_SM_INSTANCE, "o1"))["current_state"] == "cancelled"


# -- apply -----------------------------------------------------------------------------------------


async def test_machines_are_applied(core: Core) -> None:
    async def apply(**more: Any) -> tuple[str, list[str]]:
        found = await boss.do(APPLY, data={"documents": [{"id": "order", **ORDER, **more}]}, workspace="w")
        [one] = found["applied"]
        assert (one["kind"], one["workspace"], one["id"]) == ("machine", "w", "order")
        return one["change"], found["warnings"]

    async with client(core) as boss:
        assert await apply() == ("created", [])
        assert await apply() == ("unchanged", [])
        await instance(boss)
        assert await apply(description="x") == ("updated", [])
        change, warnings = await apply(initial_state="new", states={"new": {}})
        assert change == "updated"
        assert warnings == ["machine order: open instances are in states that it does not have: 1 in 'open'"]
        assert "does not have any more" in (await boss.ask(Op.SEND_SM_EVENT, "o1", "cancel")).error
        elsewhere = {"id": "x", "initial_state": "a", "states": {"a": {"entry_action": job("j", workspace="other")}}}
        let_only(core, boss="w")
        answer = await boss.ask(APPLY, data={"documents": [elsewhere]}, workspace="w")
        assert answer.error.startswith("ERR_PERMISSION_DENIED")


# -- the bus ---------------------------------------------------------------------------------------


def with_bus(*entries: dict[str, Any]) -> dict[str, Any]:
    return {**ORDER, "bus": list(entries)}


CREATES = {"event": "ordered", "key": "input.id", "creates": True}
PAYS = {"event": "payment", "key": "input.order", "send": "pay", "source_agent": "boss"}


async def test_events_of_the_bus_create_and_move_instances_by_key(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await define(boss, with_bus(CREATES, PAYS))
        await boss.emit("payment", data={"order": 7, "amount": 50})  # there is none yet
        await boss.emit("ordered", data={"id": 7, "who": "ann"})
        await boss.emit("ordered", data={"id": 7, "who": "bob"})  # it is there already
        await boss.emit("ordered", data={"id": "8"})
        await other.emit("payment", data={"order": 8, "amount": 50})
        await boss.emit("payment", data={"order": 7, "amount": 30})
        await boss.emit("payment", data={"order": 7, "amount": 40})  # not taken in this state
        await all_taken(core, world)
        found = {one["instance_id"]: one for one in await boss.do(Op.LIST_SM_INSTANCES, "order")}
        assert {key: (one["current_state"], one["data"]) for key, one in found.items()} == {
            "7": ("paid", {"id": 7, "who": "ann", "amount": 30}),
            "8": ("open", {"id": "8"}),
        }
        assert await jobs(boss) == ["left", "opened", "opened", "paid"]
        [paid] = await boss.tasks(workspace="w", task_type="paid")
        assert json.loads(paid.metadata["_hops"]) == ["machine:order"]
        assert await letters(boss, MACHINE_FAILED) == []


async def test_changes_of_the_bus_count_at_once(core: Core, world: World) -> None:
    async with client(core) as boss:
        await define(boss, with_bus(CREATES, {**CREATES, "event": "also"}))
        for documents, ids in (
            ([with_bus(CREATES)], ["1"]),
            ([with_bus(CREATES, {**CREATES, "event": "also"})], ["1", "b2"]),
        ):
            for document in documents:
                await boss.do(APPLY, data={"documents": [{"id": "order", **document}]}, workspace="w")
            number = len(ids)
            await boss.emit("also", data={"id": f"b{number}"})
            await boss.emit("ordered", data={"id": 1})
            await all_taken(core, world)
            found = await boss.do(Op.LIST_SM_INSTANCES, "order")
            assert sorted(one["instance_id"] for one in found) == ids
        await boss.do(Op.DELETE_STATE_MACHINE, "order")
        await boss.emit("ordered", data={"id": 2})
        await all_taken(core, world)
        assert len(await boss.do(Op.LIST_SM_INSTANCES, "order")) == 2


async def test_an_event_that_a_machine_cannot_take_is_a_dead_letter(core: Core, world: World) -> None:
    async with client(core) as boss:
        await define(boss, with_bus(CREATES))
        for data in ({"who": "ann"}, {"id": "x" * 2000}, {"id": "a\0"}, {"id": "fine", "more": "x" * 600_000}):
            await boss.emit("ordered", data=data)
        await boss.emit("ordered", data={"id": "sound"})
        await all_taken(core, world)
        found = await letters(boss, MACHINE_FAILED)
        assert len(found) == 4
        assert {one.metadata["machine"] for one in found} == {"w order 0"}
        assert [one["instance_id"] for one in await boss.do(Op.LIST_SM_INSTANCES, "order")] == ["sound"]
        changed = with_bus({**CREATES, "key": "input.id ?? input.who"})
        await boss.do(APPLY, data={"documents": [{"id": "order", **changed}]}, workspace="w")
        [letter] = [one for one in found if "null" in one.error]
        assert (await boss.operate(letter.task_id, TaskOp.RETRY)).success
        assert (await boss.task(letter.task_id)).status == pb.TASK_STATUS_COMPLETED
        assert (await boss.do(Op.GET_SM_INSTANCE, "ann"))["current_state"] == "open"


async def test_a_machine_takes_only_events_that_its_owner_may_read(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await define(boss, with_bus(CREATES), where="*")
        let_only(core, other="w")
        await other.emit("ordered", data={"id": 1})
        await all_taken(core, world)
        assert await other.do(Op.LIST_SM_INSTANCES, "order") == []
        let_only(core, boss="w", other="w")
        await other.emit("ordered", data={"id": 2})
        await all_taken(core, world)
        assert [one["instance_id"] for one in await other.do(Op.LIST_SM_INSTANCES, "order")] == ["2"]


async def test_a_machine_in_a_loop_with_itself_is_stopped(core: Core, world: World) -> None:
    definition: dict[str, Any] = {
        "initial_state": "a",
        "states": {
            "a": {
                "on": {"again": "a"},
                "entry_action": {"type": "emit_event", "event_name": "again", "payload": {"id": "x"}},
            }
        },
        "bus": {"event": "again", "key": "input.id"},
    }
    async with client(core) as boss:
        await define(boss, definition)
        await instance(boss, "x")
        await all_taken(core, world)
        found = await boss.do(Op.GET_SM_INSTANCE, "x")
        assert found["transitions"] == 17
        [letter] = await letters(boss)
        assert "stopped after 16 hops: machine:order" in letter.error


async def test_an_event_for_many_machines_goes_on_in_further_transactions(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactions, "TURN_COST", 10)
    monkeypatch.setattr("aether_trio.services.workflows.rules.event_handler.TURN_COST", 10)
    async with client(core) as boss:
        for number in range(4):
            await define(boss, with_bus(CREATES), f"m{number}")
        await boss.emit("ordered", data={"id": 1})
        await all_taken(core, world)
        assert len(await boss.do(Op.LIST_SM_INSTANCES)) == 4


# -- defects ---------------------------------------------------------------------------------------


async def test_an_operation_whose_commit_was_in_doubt_is_done_once(core: Core) -> None:
    machines = Machines(core.tasks.engine._workflows._reactions._actions)  # type: ignore[attr-defined]
    async with client(core) as boss:
        await define(boss)
        await instance(boss)
        [row] = await core.tasks.engine.database.read(lambda: machine_rows.with_id(["w"], "o1"))
        for _ in range(2):
            found = await core.tasks.engine.result(lambda tx: machines.send(tx, row, "pay", {"amount": 1}, "op-1"))
        assert found.transitions == 2
        stored = await core.tasks.engine.database.read(lambda: machine_rows.load("w", "order"))
        assert stored is not None
        for _ in range(2):
            made = await core.tasks.engine.result(lambda tx: machines.create(tx, stored, "w", "o2", None, "op-2"))
        assert made.transitions == 1
        assert len(await boss.do(Op.LIST_SM_INSTANCES)) == 2


async def test_a_large_machine_is_compiled_beside_the_event_loop(world: World) -> None:
    wide = {f"s{number}": {"entry_action": job("x", payload="y" * 200)} for number in range(100)}
    definition = {**ORDER, "states": {**ORDER["states"], **wide}}
    async with deadlock_is_an_error():
        async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
            await define(boss, definition)
        async with world.open(workflow={"engine": "embedded"}) as core, client(core) as boss:
            await instance(boss)
            assert (await boss.do(Op.SEND_SM_EVENT, "o1", "cancel"))["current_state"] == "cancelled"


async def test_completed_instances_are_forgotten(world: World) -> None:
    settings = {"workflow": {"engine": "embedded"}, "tasks": {"completed_retention_s": 60}}
    async with deadlock_is_an_error(), world.open(**settings) as core, client(core) as boss:
        await define(boss)
        for name in ("o1", "o2", "o3"):
            await instance(boss, name)
        await boss.do(Op.SEND_SM_EVENT, "o1", "cancel")
        await trio.sleep(40)
        await boss.do(Op.SEND_SM_EVENT, "o2", "cancel")
        assert {one["instance_id"] for one in await boss.do(Op.LIST_SM_INSTANCES)} == {"o1", "o2", "o3"}
        await trio.sleep(30)
        assert {one["instance_id"] for one in await boss.do(Op.LIST_SM_INSTANCES)} == {"o2", "o3"}
        await boss.do(Op.DELETE_STATE_MACHINE, "order")
        await trio.sleep(40)
        assert {one["instance_id"] for one in await boss.do(Op.LIST_SM_INSTANCES)} == {"o3"}
        assert world.databases["tasks"].query("SELECT key FROM workflow_timers WHERE kind = 'instance'") == []
