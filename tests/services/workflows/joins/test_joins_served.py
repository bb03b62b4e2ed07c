"""Joins on a whole core, by rules: modes, duplicates, time, rights, restarts."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.workflows.definition import JoinDefinition
from aether_trio.model.workflows.records import read_action
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.action_dead_letters import ACTION_FAILED
from aether_trio.services.workflows.actions.event_dead_letters import RULE_FAILED
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.joins.arrivals import JoinArrival, Joins
from aether_trio.services.workflows.stored import join_rows
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Client, all_taken, client, let_only

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow={"engine": "embedded"}) as opened:
        yield opened


def job(name: str = "all", **more: Any) -> dict[str, Any]:
    """Return an action: a task of this type without a worker, of the event's data."""
    payload = {"$expr": "input"}
    return {"type": "create_task", "task_type": name, "target_implementation": "none", "payload": payload, **more}


def join(**more: Any) -> dict[str, Any]:
    """Return the destination of a rule: a join by `input.job`."""
    return {
        "type": "join",
        "join": {"name": "batch", "correlation_key": "input.job", "on_complete": job(), "timeout": "10m", **more},
    }


async def follow(boss: Client, destination: dict[str, Any], event: str = "done", name: str = "", **more: Any) -> None:
    rule = {"rule_name": name or event, "source_event": event, "workspace": "w", "destination_template": destination}
    await boss.do(Op.CREATE_RULE, data={**rule, **more})


async def jobs(boss: Client) -> list[str]:
    """Return the types of the tasks of actions."""
    found = await boss.tasks(workspace="w", limit=1000)
    return sorted(task.task_type for task in found if task.task_type not in (ACTION_FAILED, RULE_FAILED))


async def letters(boss: Client, kind: str = RULE_FAILED) -> list[pb.TaskInfo]:
    return await boss.tasks(workspace="w", task_type=kind)


async def got(boss: Client, key: str = "j1", name: str = "batch") -> dict[str, Any]:
    found: dict[str, Any] = await boss.do(Op.GET_JOIN, name, key)
    return found


def payloads(world: World, kind: str = "all") -> list[Any]:
    found = world.databases["tasks"].query(f"SELECT payload FROM tasks WHERE task_type = '{kind}'")
    return [json.loads(bytes(payload)) for (payload,) in found]


def rows(world: World, *tables: str) -> list[int]:
    query = world.databases["tasks"].query
    return [query(f"SELECT COUNT(*) FROM workflow_{table}")[0][0] for table in tables]


# -- modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("armed_at", [0, 2, 3])
async def test_the_example_of_ingest_and_decompose(core: Core, world: World, armed_at: int) -> None:
    shared = {"dedup_key": "input.item", "arm_on_event": "ingest_done", "expected_count": "input.total"}
    async with client(core) as boss:
        await follow(boss, join(**shared), "decompose_done")
        await follow(boss, join(**shared), "ingest_done")
        for number in range(4):
            if number == armed_at:
                await boss.emit("ingest_done", data={"job": "j1", "total": 3})
            if number < 3:
                for _ in range(2):
                    await boss.emit("decompose_done", data={"job": "j1", "item": f"i{number}"})
                await boss.emit("decompose_done", data={"job": "j2", "item": f"i{number}"})
        await all_taken(core, world)
        assert await jobs(boss) == ["all"]
        assert await letters(boss) == []
        found = await got(boss)
        assert (found["mode"], found["arrived"], found["expected"], found["status"]) == ("count", 3, 3, "fired")
        assert found["deadline_at"] is None
        assert found["linger_until"] > found["created_at"]
        [task] = await boss.tasks(workspace="w", task_type="all")
        rule = "ingest_done" if armed_at == 3 else "decompose_done"
        assert json.loads(task.metadata["_hops"]) == [f"rule:{rule}", "join:batch"]
        other = await got(boss, "j2")
        assert (other["arrived"], other["expected"], other["status"]) == (3, None, "open")
        # The other job times out.
        await trio.sleep(601)
        assert await jobs(boss) == ["all", "all"]
        assert (await got(boss, "j2"))["status"] == "timed_out"
        await trio.sleep(61)
        assert rows(world, "joins", "join_members", "timers") == [0, 0, 0]


async def test_a_count_begins_anew_after_its_linger(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=2, linger="5s", on_complete=job(payload={"n": {"$expr": "input.n"}})))
        for number in range(5):
            await boss.emit("done", data={"job": 7, "n": number})
        await all_taken(core, world)
        assert payloads(world) == [{"n": 1}]
        await trio.sleep(6)
        assert "not found" in (await boss.ask(Op.GET_JOIN, "batch", "7")).error
        await boss.emit("done", data={"job": 7, "n": 5})
        await boss.emit("done", data={"job": 7, "n": 6})
        await all_taken(core, world)
        assert sorted(one["n"] for one in payloads(world)) == [1, 6]


async def test_without_a_linger_each_instance_of_one_page_fires(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=1, linger="1ms"))
        for number in range(4):
            await boss.emit("done", data={"job": number})
            await trio.sleep(0.01)
            await boss.emit("done", data={"job": number})
        await all_taken(core, world)
        assert await jobs(boss) == ["all"] * 8


async def test_a_set_fires_when_each_member_is_there(core: Core, world: World) -> None:
    destination = join(mode="set", member_key="input.part", expected_set="input.parts")
    async with client(core) as boss:
        await follow(boss, destination)
        for part in ("a", "x", "a", 3):  # the set is not known yet
            await boss.emit("done", data={"job": "j1", "part": part})
        await boss.emit("done", data={"job": "j1", "part": "b", "parts": ["a", "b", "b", 3, "d"]})
        await boss.emit("done", data={"job": "j1", "part": "x"})
        await boss.emit("done", data={"job": "j1", "part": "b"})
        await all_taken(core, world)
        found = await got(boss)
        assert (found["mode"], found["arrived"], found["expected"], found["status"]) == ("set", 3, 4, "open")
        await boss.emit("done", data={"job": "j1", "part": "d"})
        await all_taken(core, world)
        assert (await got(boss))["status"] == "fired"
        assert await jobs(boss) == ["all"]


async def test_the_last_arming_event_says_the_set(core: Core, world: World) -> None:
    destination = join(mode="set", member_key="input.part", expected_set="input.parts", arm_on_event="parts")
    async with client(core) as boss:
        await follow(boss, destination)
        await follow(boss, destination, "parts")
        await boss.emit("done", data={"job": "j1", "part": "a"})
        await boss.emit("parts", data={"job": "j1", "parts": ["a", "b"]})
        await boss.emit("done", data={"job": "j1", "part": "d"})
        await boss.emit("parts", data={"job": "j1", "parts": ["a", "c", "d"]})
        await boss.emit("done", data={"job": "j1", "part": "b"})
        await all_taken(core, world)
        assert (await got(boss))["arrived"] == 2
        await boss.emit("done", data={"job": "j1", "part": "c"})
        await all_taken(core, world)
        assert await jobs(boss) == ["all"]


async def test_coalesced_events_fire_at_once_and_after_the_window(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(mode="coalesce", window="30s", dedup_key="input.n"))
        for number in (0, 0, 1, 2):
            await boss.emit("done", data={"job": "j1", "n": number})
        await all_taken(core, world)
        assert payloads(world) == [{"job": "j1", "n": 0}]
        found = await got(boss)
        assert (found["status"], found["dirty"], found["arrived"]) == ("open", True, 3)
        await trio.sleep(31)
        assert sorted(one["n"] for one in payloads(world)) == [0, 2]
        await trio.sleep(31)
        assert len(payloads(world)) == 2
        assert (await got(boss))["dirty"] is False
        await boss.emit("done", data={"job": "j1", "n": 3})
        await all_taken(core, world)
        assert sorted(one["n"] for one in payloads(world)) == [0, 2, 3]
        await trio.sleep(100)
        assert rows(world, "joins", "join_members", "timers") == [0, 0, 0]


@pytest.mark.parametrize(
    ("more", "kinds"),
    [({"on_timeout": job("late")}, ["late"]), ({}, ["all"]), ({"on_partial_failure": "abort"}, [])],
)
async def test_a_timeout_acts_once_by_its_policy(
    core: Core, world: World, more: dict[str, Any], kinds: list[str]
) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=5, timeout="1m", **more))
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        await trio.sleep(59)
        assert await jobs(boss) == []
        await trio.sleep(2)
        assert await jobs(boss) == kinds
        assert (await got(boss))["status"] == "timed_out"
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        assert await jobs(boss) == kinds


async def test_messages_and_events_are_actions_too(core: Core, world: World) -> None:
    emit = {"type": "emit_event", "event_name": "joined", "payload": {"job": {"$expr": "input.job"}}}
    async with client(core) as boss:
        await follow(boss, join(expected_count=1, on_complete=emit))
        await follow(boss, job("after"), "joined")
        template = (
            "type: join\njoin:\n  name: text\n  correlation_key: input.job\n  expected_count: 1\n"
            "  on_complete: {agent: hand, tool_name: '{{.input.job}}', arguments: {brace: '{{`{{`}}'}}\n"
        )
        await follow(boss, template, name="second")  # type: ignore[arg-type]
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        assert await jobs(boss) == ["after"]
        assert payloads(world, "after") == [{"job": "j1"}]
        found = world.log.query("SELECT data FROM messages ORDER BY message_key")
        messages = [pb.DownstreamMessage.FromString(data).msg for (data,) in found]
        [control] = [json.loads(one.payload) for one in messages if one.message_type == pb.CONTROL]
        assert control == {"tool_name": "j1", "arguments": {"brace": "{{"}, "metadata": {}}


# -- operations ------------------------------------------------------------------------------------


async def test_joins_are_listed_and_cancelled(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=2))
        for name in ("j1", "j2"):
            await boss.emit("done", data={"job": name})
        await all_taken(core, world)
        await trio.sleep(1)
        found = await boss.do(Op.CANCEL_JOIN, "batch", "j1")
        assert found["status"] == "cancelled"
        again = await boss.ask(Op.CANCEL_JOIN, "batch", "j1")
        assert again.success
        assert json.loads(again.data)["linger_until"] == found["linger_until"]
        none = await boss.ask(Op.CANCEL_JOIN, "batch", "none")
        assert none.success
        assert "not found" in none.message
        listed = await boss.do(Op.LIST_JOINS)
        assert [(one["correlation_key"], one["status"]) for one in listed] == [("j1", "cancelled"), ("j2", "open")]
        assert set(listed[0]) == {
            "join_name", "workspace", "correlation_key", "mode", "arrived", "expected", "dirty", "status",
            "deadline_at", "linger_until", "created_at", "updated_at",
        }  # fmt: skip
        assert [one["correlation_key"] for one in await boss.do(Op.LIST_JOINS, status_filter="open")] == ["j2"]
        assert "status_filter" in (await boss.ask(Op.LIST_JOINS, status_filter="odd")).error
        assert await boss.do(Op.LIST_JOINS, workspace="other") == []
        for op in (Op.GET_JOIN, Op.CANCEL_JOIN):
            assert "secondary_id" in (await boss.ask(op, "batch")).error
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        await trio.sleep(700)
        assert await jobs(boss) == ["all"]  # of j2, by its timeout


async def test_what_has_fired_or_timed_out_is_not_cancelled(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=2))
        for name in ("j1", "j1", "j2"):
            await boss.emit("done", data={"job": name})
        await all_taken(core, world)
        fired = await boss.do(Op.GET_JOIN, "batch", "j1")
        assert fired["status"] == "fired"
        refused = await boss.ask(Op.CANCEL_JOIN, "batch", "j1")
        assert not refused.success
        assert "'j1' has fired at " in refused.error
        assert await boss.do(Op.GET_JOIN, "batch", "j1") == fired
        await trio.sleep(601)  # the timeout of j2
        late = await boss.ask(Op.CANCEL_JOIN, "batch", "j2")
        assert "'j2' has timed out at " in late.error


async def test_operations_need_their_access(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await follow(boss, join(expected_count=2))
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        let_only(core, boss="w")
        assert "not found" in (await other.ask(Op.GET_JOIN, "batch", "j1")).error
        assert (await other.ask(Op.LIST_JOINS)).error.startswith("ERR_PERMISSION_DENIED")
        let_only(core, AccessLevel.READ, other="w")
        assert (await got(other))["status"] == "open"
        assert (await other.ask(Op.CANCEL_JOIN, "batch", "j1")).error.startswith("ERR_PERMISSION_DENIED")
        assert (await got(boss))["status"] == "open"


# -- what goes wrong -------------------------------------------------------------------------------


async def test_an_arrival_that_cannot_be_is_a_dead_letter_and_leaves_nothing(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(dedup_key="input.item", expected_count="input.total"))
        await follow(boss, join(mode="set", member_key="input.m", expected_set="input.set", name="s"), name="set")
        await follow(boss, {**join(), "workspace": "*"}, "elsewhere")
        for data in (
            {"job": None}, {"job": ""}, {"job": "a\0b"}, {"job": "x" * 1025}, {"job": "j", "item": None},
            {"job": "j", "item": "i", "total": "many"}, {"job": "j", "item": "i", "total": -1},
        ):  # fmt: skip
            await boss.emit("done", data={"m": "m", **data})
        await boss.emit("done", data={"job": "k", "item": 1, "total": 5, "m": "m", "set": "text"})
        await boss.emit("done", data={"job": "k", "item": 2, "m": "m", "set": ["a", None]})
        await boss.emit("elsewhere", data={"job": "j"})
        await all_taken(core, world)
        found = await letters(boss)
        told = [one.error for one in found if one.metadata["name"] == "done"]
        assert len(told) == 7
        assert sum("correlation_key" in one for one in told) == 4
        assert sum("dedup_key" in one for one in told) == 1
        assert sum("expected_count" in one for one in told) == 2
        assert sum("expected_set" in one.error for one in found if one.metadata["name"] == "set") == 2
        assert sum("workspace" in one.error for one in found if one.metadata["name"] == "elsewhere") == 1
        assert [(one["join_name"], one["correlation_key"], one["arrived"]) for one in await boss.do(Op.LIST_JOINS)] == [
            ("batch", "k", 2), ("s", "j", 1),
        ]  # fmt: skip
        # 7 events were refused by the first: their ids are free.
        await boss.emit("done", data={"job": "j", "item": "i", "total": 1, "m": "n"})
        await all_taken(core, world)
        assert (await got(boss, "j"))["status"] == "fired"


async def test_rules_with_two_modes_for_one_join_are_told(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=2))
        await follow(boss, join(mode="coalesce"), "other")
        await boss.emit("done", data={"job": "j1"})
        await boss.emit("other", data={"job": "j1"})
        await all_taken(core, world)
        [letter] = await letters(boss)
        assert "is of mode count, not coalesce" in letter.error
        assert (await got(boss))["arrived"] == 1


async def test_rules_share_what_each_declares(core: Core, world: World) -> None:
    async with client(core) as boss:
        whole = join(expected_count=2, timeout="1m", on_timeout=job("late"))
        await follow(boss, whole)
        part = {"type": "join", "join": {"name": "batch", "correlation_key": "input.job"}}
        await follow(boss, part, "other")
        await boss.emit("done", data={"job": "j1", "n": 1})
        await boss.emit("other", data={"job": "j1", "n": 2})
        await boss.emit("done", data={"job": "j2", "n": 3})
        await all_taken(core, world)
        assert payloads(world) == [{"job": "j1", "n": 1}]
        await trio.sleep(61)
        assert payloads(world, "late") == [{"job": "j2", "n": 3}]


async def test_an_action_is_done_for_the_owner_of_its_rule(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await follow(boss, join(expected_count=2, on_complete=job(workspace="v")))
        await follow(other, {"type": "join", "join": {"name": "batch", "correlation_key": "input.job"}}, "last")
        let_only(core, boss="w", other="w v")
        await boss.emit("done", data={"job": "j1"})
        await boss.emit("last", data={"job": "j1"})
        await all_taken(core, world)
        assert (await got(boss))["status"] == "fired"
        assert await other.tasks(workspace="v") == []
        # The rule's owner may use v later.
        let_only(core, boss="w v", other="w")
        await trio.sleep(2)
        assert [task.task_type for task in await boss.tasks(workspace="v")] == ["all"]
        assert await letters(boss, ACTION_FAILED) == []
        assert rows(world, "join_actions") == [0]


async def test_an_action_that_stays_refused_is_a_dead_letter(core: Core, world: World) -> None:
    async with client(core) as boss:
        await follow(boss, join(expected_count=1, on_complete=job(workspace="v")))
        let_only(core, boss="w")
        await boss.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        await trio.sleep(600)
        assert await letters(boss, ACTION_FAILED) == []
        await trio.sleep(300)
        [letter] = await letters(boss, ACTION_FAILED)
        assert "the action of join 'batch' with key 'j1' failed: the owner ag::w::boss::1" in letter.error
        assert letter.metadata["join"] == "batch"
        assert rows(world, "join_actions", "timers") == [0, 0]
        await boss.operate(letter.task_id, TaskOp.RETRY)
        assert (await boss.task(letter.task_id)).status != pb.TASK_STATUS_COMPLETED
        let_only(core, boss="w v")
        await boss.operate(letter.task_id, TaskOp.RETRY)
        assert (await boss.task(letter.task_id)).status == pb.TASK_STATUS_COMPLETED
        [task] = await boss.tasks(workspace="v")
        assert task.task_type == "all"
        assert {"job": "j1"} in payloads(world)


async def test_an_owner_without_rights_in_the_workspace_has_no_arrivals(core: Core, world: World) -> None:
    async with client(core) as boss, client(core, "other") as other:
        await follow(boss, join(expected_count=1))
        let_only(core, AccessLevel.READ, boss="w")
        let_only(core, other="w")
        await other.emit("done", data={"job": "j1"})
        await all_taken(core, world)
        assert await other.do(Op.LIST_JOINS) == []
        [letter] = await letters(other)
        assert "may not act in workspace w" in letter.error


async def test_a_join_in_a_loop_with_itself_is_stopped(core: Core, world: World) -> None:
    emit = {"type": "emit_event", "event_name": "done", "payload": {"job": {"$expr": "input.job + 'x'"}}}
    async with client(core) as boss:
        await follow(boss, join(expected_count=1, on_complete=emit))
        await boss.emit("done", data={"job": "j"})
        await all_taken(core, world)
        found = await letters(boss, ACTION_FAILED) + await letters(boss)
        assert len(found) == 1
        assert "stopped after 16 hops" in found[0].error


# -- time and nodes --------------------------------------------------------------------------------


async def test_joins_go_on_after_a_restart(world: World) -> None:
    clock = VirtualClock(trio.current_time)
    opened = partial(world.open, clock=clock, workflow={"engine": "embedded"})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(deadlock_is_an_error())
        async with opened() as core, client(core) as boss:
            await follow(boss, join(expected_count=3, dedup_key="input.item"))
            for item in ("a", "b"):
                await boss.emit("done", data={"job": "j1", "item": item})
            await boss.emit("done", data={"job": "j2", "item": "a"})
            await all_taken(core, world)
        await trio.sleep(300)
        async with opened() as core, client(core) as boss:
            for item in ("a", "b", "c"):
                await boss.emit("done", data={"job": "j1", "item": item})
            await all_taken(core, world)
            assert payloads(world) == [{"job": "j1", "item": "c"}]
            await trio.sleep(301)
            assert len(payloads(world)) == 2
            assert (await got(boss, "j2"))["status"] == "timed_out"


async def test_arrivals_of_several_transactions_at_once_are_all_counted(core: Core, world: World) -> None:
    """As of nodes that go on with events that start much; each is a transaction."""
    joins = Joins(core.tasks.engine._workflows._reactions._actions, strict=True)  # type: ignore[attr-defined]
    document = join(expected_count=40, dedup_key="input.item")
    action = read_action(json.loads(json.dumps(document).replace('{"$expr": "input"}', "1")), TOOLS, "join")
    definition = action.join
    assert isinstance(definition, JoinDefinition)
    items = [*range(40), *range(20)]
    random.Random(5).shuffle(items)

    def arrives(number: int, item: int, tx: Transaction) -> Program[None]:
        env = {"input": {"job": "j1", "item": item}, "source": {}}
        arrival = JoinArrival(
            owner="ag::w::boss::1", workspace="w", event="done", env=env, hops=(), key=f"event {number}"
        )
        yield from joins.arrived(tx, definition, arrival)

    async with client(core) as boss:
        async with trio.open_nursery() as nursery:
            for number, item in enumerate(items):
                nursery.start_soon(core.tasks.engine.result, partial(arrives, number, item))
        found = await got(boss)
        assert (found["arrived"], found["status"]) == (40, "fired")
        assert await jobs(boss) == ["all"]
        row = await core.tasks.engine.database.read(lambda: join_rows.load(join_rows.id_of("w", "batch", "j1")))
        assert row is not None
        assert row.expected == 40
