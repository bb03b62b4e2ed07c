"""Joins and instances of machines that two nodes move at the same time."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.definition import JoinDefinition
from aether_trio.model.workflows.records import read_action
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.joins.arrivals import JoinArrival, Joins
from aether_trio.storage.base import Program
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.workflows.helpers import Client, Op, client

ITEMS = 30
ACTION = {"type": "create_task", "task_type": "all", "target_implementation": "none", "payload": 1}


def definition() -> JoinDefinition:
    join = {
        "name": "batch", "correlation_key": "input.job", "dedup_key": "input.item", "expected_count": ITEMS,
        "on_complete": ACTION, "timeout": "10m",
    }  # fmt: skip
    found = read_action({"type": "join", "join": join}, TOOLS, "join").join
    assert found is not None
    return found


async def test_no_arrival_of_two_nodes_is_lost_and_one_fires(postgres_engine: PostgresEngine) -> None:
    join = definition()

    def arrives(joins: Joins, node: int, item: int, tx: Transaction) -> Program[None]:
        env = {"input": {"job": "j1", "item": item}, "source": {}}
        key = f"event {node} {item}"
        arrival = JoinArrival(owner="ag::w::boss::1", workspace="w", event="done", env=env, hops=(), key=key)
        yield from joins.arrived(tx, join, arrival)

    async def all_arrive(core: Core, node: int) -> None:
        joins: Joins = core.tasks.engine._workflows._rules._joins  # type: ignore[attr-defined]
        for item in range(ITEMS):
            if item % 3 != node:  # each third one arrives on both
                await core.tasks.engine.result(partial(arrives, joins, node, item))

    async with two_nodes(postgres_engine) as cores, client(cores[0]) as boss:
        async with trio.open_nursery() as nursery:
            for node, core in enumerate(cores):
                nursery.start_soon(all_arrive, core, node)
        rows = await cores[0].tasks.engine.database.fetch("SELECT arrived, expected, status FROM workflow_joins")
        assert rows == [(ITEMS, ITEMS, "fired")]
        assert [task.task_type for task in await boss.tasks(workspace="w")] == ["all"]


async def test_events_for_an_instance_on_two_nodes_follow_each_other(postgres_engine: PostgresEngine) -> None:
    machine: dict[str, Any] = {
        "initial_state": "a",
        "states": {
            "a": {"on": {"add": {"to": "a", "assign": {"sum": {"$expr": "data.sum + input"}}, "action": ACTION}}},
        },
    }

    async def send(peer: Client) -> None:
        for number in range(15):
            await peer.do(Op.SEND_SM_EVENT, "o1", "add", data=number)

    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as cores,
        client(cores[0], "boss") as one,
        client(cores[1], "other") as two,
    ):
        data = {"id": "sum", "workspace": "w", "definition": machine}
        await one.do(Op.CREATE_STATE_MACHINE, data=data)
        await two.do(Op.CREATE_SM_INSTANCE, "sum", data={"instance_id": "o1", "data": {"sum": 0}})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            nursery.start_soon(send, two)
        found = await one.do(Op.GET_SM_INSTANCE, "o1")
        assert (found["data"], found["transitions"]) == ({"sum": 210}, 31)
        assert len(await two.tasks(workspace="w", task_type="all")) == 30


async def test_a_timeout_on_two_nodes_acts_once(postgres_engine: PostgresEngine) -> None:
    machine = {
        "initial_state": "a",
        "states": {"a": {"timeout": "300ms", "timeout_action": "b"}, "b": {"terminal": True, "entry_action": ACTION}},
    }
    async with (
        two_nodes(postgres_engine, workflow={"engine": "embedded"}) as cores,
        client(cores[0], "boss") as one,
        client(cores[1], "other") as two,
    ):
        await one.do(Op.CREATE_STATE_MACHINE, data={"id": "m", "workspace": "w", "definition": machine})
        for number in range(20):
            await (one, two)[number % 2].do(Op.CREATE_SM_INSTANCE, "m", data={"instance_id": f"o{number}"})
        while any(not each["completed_at"] for each in await one.do(Op.LIST_SM_INSTANCES, "m")):
            await trio.sleep(0.05)
        found = await one.do(Op.LIST_SM_INSTANCES, "m")
        assert {(each["current_state"], each["transitions"]) for each in found} == {("b", 2)}
        assert len(await two.tasks(workspace="w", task_type="all")) == 20
