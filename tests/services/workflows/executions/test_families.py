"""Sub-workflows begin in bursts, and only so many of one tree, on both engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.executions.families import AT_ONCE
from tests.helpers.core import World, deadlock_is_an_error
from tests.services.workflows.helpers import Op, client

ENGINE = {"engine": "embedded"}


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    """A core whose workflow engine is the embedded one."""
    async with deadlock_is_an_error(), world.open(workflow=ENGINE) as opened:
        yield opened


def tree(leaf: dict[str, Any], width: int = 3) -> dict[str, Any]:
    """Return a workflow that calls itself `trigger.left` deep, and does `leaf` there."""
    below = {"left": {"$expr": "trigger.left - 1"}}
    steps: list[dict[str, Any]] = [
        {"id": f"s{number}", "workflow": "flow", "input": below, "when": "trigger.left > 0"} for number in range(width)
    ]
    return {"steps": [*steps, {"id": "leaf", "when": "trigger.left == 0", **leaf}]}


def statuses(world: World) -> Counter[str]:
    rows = world.databases["tasks"].query("SELECT status, COUNT(*) FROM workflow_executions GROUP BY status")
    return Counter(dict(rows))


def put_off(world: World) -> int:
    return int(world.databases["tasks"].query("SELECT COUNT(*) FROM workflow_put_off")[0][0])


def nothing_is_left(world: World) -> bool:
    query = world.databases["tasks"].query
    return not put_off(world) and not query("SELECT kind FROM workflow_timers WHERE kind = 'put_off'")


@pytest.fixture
def most_in_one(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[int]]:
    """Count by transaction what begins in it, and what is cancelled."""
    counts: dict[str, Counter[int]] = {}
    seen: list[Transaction] = []
    for name in ("_begin", "stop"):
        counted = counts[name] = Counter()
        made = getattr(Executions, name)

        def count(
            self: Executions, tx: Transaction, *args: Any, made: Any = made, by: Counter[int] = counted, **more: Any
        ) -> Any:
            seen.append(tx)
            by[id(tx)] += 1
            return made(self, tx, *args, **more)

        monkeypatch.setattr(Executions, name, count)
    return counts


async def test_a_tree_of_executions_begins_in_bursts(
    core: Core, world: World, most_in_one: dict[str, Counter[int]]
) -> None:
    async with client(core) as boss:
        await boss.create(tree({"output": 1}))
        found = await boss.ended(await boss.run({"left": 4}))
        assert found["execution"]["Status"] == "completed", found
    assert statuses(world) == {"completed": 1 + 3 + 9 + 27 + 81}
    assert max(most_in_one["_begin"].values()) <= AT_ONCE
    assert nothing_is_left(world)


async def test_a_killed_gateway_loses_none_that_were_put_off(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open(workflow=ENGINE) as core, client(core) as boss:
            await boss.create(tree({"output": 1}))
            execution_id = await boss.run({"left": 4})
            assert put_off(world)
            world.fail()
        begun = statuses(world)
        assert begun["queued"]
        async with world.open(workflow=ENGINE) as core, client(core) as boss:
            assert (await boss.ended(execution_id))["execution"]["Status"] == "completed"
    assert statuses(world) == {"completed": 121}
    assert nothing_is_left(world)


async def test_cancelling_reaches_what_was_put_off(
    core: Core, world: World, most_in_one: dict[str, Counter[int]]
) -> None:
    async with client(core) as boss:
        await boss.create(tree({"wait": {"signal": "never"}}))
        execution_id = await boss.run({"left": 4})
        assert put_off(world)
        await boss.do(Op.CANCEL_EXECUTION, execution_id)
        assert (await boss.ended(execution_id))["execution"]["Status"] == "cancelled"
        while put_off(world):
            await trio.sleep(0.05)
    assert set(statuses(world)) == {"cancelled"}
    assert statuses(world).total() < 121
    assert nothing_is_left(world)
    # A whole tree that runs is cancelled in bursts, too.
    async with client(core) as boss:
        execution_id = await boss.run({"left": 4})
        while put_off(world):
            await trio.sleep(0.05)
        assert statuses(world)["running"] == 121
        await boss.do(Op.CANCEL_EXECUTION, execution_id)
        assert (await boss.ended(execution_id))["execution"]["Status"] == "cancelled"
    assert set(statuses(world)) == {"cancelled"}
    assert max(most_in_one["stop"].values()) <= AT_ONCE
    assert nothing_is_left(world)


async def test_an_execution_has_a_bound_of_those_below_it(world: World) -> None:
    async with deadlock_is_an_error(), world.open(workflow={**ENGINE, "max_descendants": 30}) as core:
        async with client(core) as boss:
            await boss.create(tree({"output": 1}))
            within = await boss.run({"left": 3})
            found = await boss.ended(within)
            assert "may start 30 (workflow.max_descendants)" in found["execution"]["ErrorMessage"]
            assert within in found["execution"]["ErrorMessage"]
            assert found["execution"]["Status"] == "failed"
            while put_off(world):
                await trio.sleep(0.05)
        assert not {"running", "queued"} & set(statuses(world))
        assert statuses(world).total() <= 1 + 3 + 30
        async with client(core) as boss:
            assert (await boss.ended(await boss.run({"left": 2})))["execution"]["Status"] == "completed"
            each = {"for_each": {"items": {"$expr": "1..40"}, "max_parallel": 0}, "workflow": "leaf", "input": {}}
            await boss.create({"steps": [{"id": "a", "output": 1}]}, "leaf")
            await boss.create({"steps": [{"id": "each", **each}]}, "map")
            found = await boss.ended(await boss.run({}, "map"))
            assert found["execution"]["Status"] == "completed", "what it starts itself is not counted"


async def test_a_chain_does_not_leave_its_family(world: World) -> None:
    below = {"left": {"$expr": "trigger.left - 1"}}
    steps = [{"id": name, "workflow": "again", "input": below, "when": "trigger.left > 0"} for name in ("a", "b")]
    again = {
        "steps": [{"id": "next", "continue_as": {"workflow": "flow", "input": {"left": {"$expr": "trigger.left"}}}}]
    }
    async with deadlock_is_an_error(), world.open(workflow={**ENGINE, "max_descendants": 10}) as core:
        async with client(core) as boss:
            await boss.create(again, "again")
            await boss.create({"steps": steps})
            await boss.run({"left": 10})
            while {"running", "queued"} & set(statuses(world)):
                await trio.sleep(0.05)
        query = world.databases["tasks"].query
        assert query("SELECT MAX(executions), COUNT(DISTINCT family) FROM workflow_families") == [(10, 1)]
        assert statuses(world)["failed"]
        assert nothing_is_left(world)


async def test_an_endless_chain_lets_others_work(core: Core, world: World) -> None:
    async with client(core) as boss:
        await boss.create({"steps": [{"id": "a", "output": 1}]}, "other")
        await boss.create({"steps": [{"id": "next", "continue_as": {"input": {}}}]})
        await boss.run()
        other = await boss.execution(await boss.run({}, "other"))
        assert other["execution"]["Status"] == "completed"
        while statuses(world).total() < 2 * AT_ONCE:
            await boss.execution(other["execution"]["ExecutionID"])
        await boss.do(Op.DELETE_WORKFLOW, "flow", workspace="w")
        while {"running", "queued"} & set(statuses(world)):
            await trio.sleep(0.05)
    assert nothing_is_left(world)


async def test_signals_go_with_a_chain_that_is_put_off(core: Core, world: World) -> None:
    again = {"input": {"n": {"$expr": "trigger.n + 1"}}}
    steps = [
        {"id": "go", "wait": {"signal": "go"}, "when": "trigger.n == 0"},
        {"id": "first", "depends_on": ["go"], "continue_as": again},
        {"id": "next", "when": "trigger.n > 0 && trigger.n < 60", "continue_as": again},
        {"id": "done", "when": "trigger.n == 60", "wait": {"signal": "done"}},
    ]
    async with client(core) as boss:
        await boss.create({"steps": steps})
        first = await boss.run({"n": 0})
        await boss.do(101, first, "done", data={"sum": 7})
        await boss.do(101, first, "go")
        while statuses(world)["completed"] < 61:
            await trio.sleep(0.05)
    assert nothing_is_left(world)


async def test_begins_are_due_though_the_clock_is_set_back(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open(workflow=ENGINE) as core, client(core) as boss:
            await boss.create(tree({"output": 1}))
            execution_id = await boss.run({"left": 4})
            world.fail()
        tasks = world.databases["tasks"]
        tasks.renew()
        assert tasks.query("SELECT 1 FROM workflow_timers WHERE kind = 'put_off'")
        tasks.query("UPDATE workflow_timers SET due_ms = due_ms + 36000000 RETURNING 1")
        async with world.open(workflow=ENGINE) as core, client(core) as boss:
            assert (await boss.ended(execution_id))["execution"]["Status"] == "completed"
