"""Random joins on a whole core, also restarted, go as their model alone foretells."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.workflows.definition import JoinDefinition
from aether_trio.model.workflows.joins import JoinState, JoinStatus
from aether_trio.model.workflows.records import read_action
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.joins.arrivals import JoinArrival, Joins, read_state
from aether_trio.services.workflows.stored import join_rows
from aether_trio.storage.base import Program
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import World, deadlock_is_an_error
from tests.model.workflows.test_joins import Instances
from tests.services.workflows.helpers import Op, client

SEEDS = range(200 if os.environ.get("TESTS_FULL") == "1" else 6)
EVENTS = 25
Begin = Callable[[], Awaitable[Core]]
KEYS = ("k1", "k2")


def action(name: str) -> dict[str, Any]:
    return {"type": "create_task", "task_type": name, "target_implementation": "none", "agent": name}


def random_join(rng: random.Random) -> JoinDefinition:
    """Return a join; its times are no whole seconds, so that events are not at them."""
    join: dict[str, Any] = {
        "name": "j", "correlation_key": "input.key", "mode": rng.choice(("count", "set", "coalesce")),
        "member_key": "input.member", "expected_set": "input.set", "expected_count": "input.count",
        "linger": f"{rng.randrange(20)}s250ms", "on_complete": action("done"), "on_timeout": action("timed-out"),
    }  # fmt: skip
    optional = {
        "timeout": f"{rng.randrange(1, 60)}s500ms",
        "window": f"{rng.randrange(1, 20)}s30ms",
        "dedup_key": "input.dedup",
        "arm_on_event": "armed",
        "on_partial_failure": "abort",
    }
    join |= {name: value for name, value in optional.items() if rng.random() < 0.5}
    found = read_action({"type": "join", "join": join}, TOOLS, "join").join
    assert found is not None
    return found


def random_event(rng: random.Random, join: JoinDefinition) -> dict[str, Any]:
    members = [f"m{rng.randrange(5)}" for _ in range(3)]
    knows = rng.random() < 0.5
    return {
        "key": rng.choice(KEYS),
        "dedup": f"d{rng.randrange(8)}",
        "member": f"m{rng.randrange(6)}",
        "set": members if knows else None,
        "count": rng.randrange(1, 5) if knows else None,
    }


class Foretold:
    """The instances of a join as the model has them."""

    def __init__(self, join: JoinDefinition) -> None:
        self.join = join
        self.instances = {key: Instances(join) for key in KEYS}

    def pass_time(self, now_ms: int) -> None:
        for one in self.instances.values():
            while one.state is not None and one.state.due_ms <= now_ms:
                one.time(one.state.due_ms)

    def event(self, now_ms: int, name: str, data: dict[str, Any]) -> None:
        self.pass_time(now_ms)
        expects = data["set"] if self.join.mode == "set" else data["count"]
        dedup = data["dedup"] if self.join.dedup_key is not None else ""
        self.instances[data["key"]].event(now_ms, name=name, dedup=dedup, member=data["member"], expects=expects)

    def seen(self, key: str) -> tuple[Any, ...] | None:
        state = self.instances[key].state
        return None if state is None else _seen(state)

    def actions(self) -> list[str]:
        return sorted(agent for one in self.instances.values() for _, agent in one.actions)


def _seen(state: JoinState) -> tuple[Any, ...]:
    return state.status, state.arrived, state.expected, state.dirty, state.runs


def arrives(
    joins: Joins, join: JoinDefinition, name: str, data: dict[str, Any], number: int, tx: Transaction
) -> Program[int]:
    arrival = JoinArrival(
        owner="ag::w::boss::1", workspace="w", event=name, env={"input": data, "source": {}}, hops=(), key=f"e {number}"
    )
    yield from joins.arrived(tx, join, arrival)
    return tx.context.now_ms


async def seen(core: Core, key: str) -> tuple[Any, ...] | None:
    row = await core.tasks.engine.database.read(lambda: join_rows.load(join_rows.id_of("w", "j", key)))
    return None if row is None else _seen(JoinState.from_json(read_state(row)))


@asynccontextmanager
async def opened_in_turn(world: World) -> AsyncIterator[Begin]:
    """Opens a core on the same databases and clock, each time in place of the last."""
    clock = VirtualClock(trio.current_time)
    async with AsyncExitStack() as stack, AsyncExitStack() as life:
        await stack.enter_async_context(deadlock_is_an_error())

        async def begin() -> Core:
            await life.aclose()
            return await life.enter_async_context(world.open(clock=clock, workflow={"engine": "embedded"}))

        yield begin


@pytest.mark.parametrize("seed", SEEDS)
async def test_rows_and_timers_do_as_the_model(world: World, seed: int) -> None:
    async with opened_in_turn(world) as begin:
        await compare(begin, seed)


async def compare(begin: Begin, seed: int) -> None:
    rng = random.Random(seed)
    join = random_join(rng)
    foretold = Foretold(join)
    core = await begin()
    for number in range(EVENTS):
        name = "armed" if rng.random() < 0.3 else "event"
        data = random_event(rng, join)
        if name == "armed" and join.arm_on_event and data["count"] is None:
            continue  # it would be refused
        joins: Joins = core.tasks.engine._workflows._rules._joins  # type: ignore[attr-defined]
        now_ms = await core.tasks.engine.result(partial(arrives, joins, join, name, data, number))
        foretold.event(now_ms, name, data)
        key = data["key"]
        assert await seen(core, key) == foretold.seen(key), (number, data)
        if rng.random() < 0.1:
            core = await begin()
        if rng.random() < 0.05:
            before = await seen(core, key)
            async with client(core) as boss:
                answer = await boss.ask(Op.CANCEL_JOIN, "j", key)
            assert answer.success is (before is None or before[0] in ("open", "cancelled")), (before, answer.error)
            foretold.instances[key].cancel(core.tasks.engine.clock.now_ms())
        await trio.sleep(rng.choice((0, 0, 1, 2, 5, 20)))
        foretold.pass_time(core.tasks.engine.clock.now_ms())
        for key in KEYS:
            assert await seen(core, key) == foretold.seen(key), (number, key)
    await trio.sleep(200)
    async with client(core) as boss:
        open_ = await boss.do(Op.LIST_JOINS, status_filter=JoinStatus.OPEN)
        assert not open_ or not join.timeout_ms
        assert sorted(task.task_type for task in await boss.tasks(workspace="w", limit=1000)) == foretold_at_end(
            foretold, core
        )


def foretold_at_end(foretold: Foretold, core: Core) -> list[str]:
    foretold.pass_time(core.tasks.engine.clock.now_ms())
    return foretold.actions()
