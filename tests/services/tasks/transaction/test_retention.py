"""What is kept of names that clients chose goes at some age."""

from __future__ import annotations

import pytest
import trio

from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.tasks.transaction import retention
from tests.helpers.core import World, agent, barrier, connect, orchestrator
from tests.services.agents.ops import Op, info, operate, starter
from tests.services.tasks.peers import bury


def count(world: World, table: str, database: str = "tasks") -> int:
    [[number]] = world.databases[database].query(f"SELECT count(*) FROM {table}")
    return int(number)


async def test_a_dead_letter_goes_with_its_task_some_time_after_it_was_resolved(world: World) -> None:
    kept = {"resolved_retention_s": 2000.0}
    async with world.open(tasks=kept) as core, connect(core, agent("w", "c", "1")) as creator:
        letters = DeadLetters(core.tasks.engine)
        seen, unseen = await bury(creator), await bury(creator)
        assert await letters.resolve(seen, "us::operator::1", "seen")
        await trio.sleep(1900)
        assert len(await letters.page(resolved=True)) == 2
        await trio.sleep(800)
        assert [one.task_id for one in await letters.page(resolved=True)] == [unseen]
        assert await letters.show(seen) == (None, None)
        assert count(world, "tasks") == 1


async def test_who_was_away_for_long_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MEMORY_MS", 2_000_000)
    async with world.open(storage={"presence_retention_s": 2000.0}) as core:
        for number in range(250):
            async with connect(core, agent("w", "a", f"{number}")) as peer:
                await barrier(peer)
        async with connect(core, agent("w", "b", "1")) as peer:
            await barrier(peer)
            await trio.sleep(1)
            assert count(world, "task_memories") == count(world, "presence", "state") + 1 == 251
            await trio.sleep(1500)
            assert count(world, "task_memories") == count(world, "presence", "state") + 1 == 251
            await trio.sleep(1200)
            assert (count(world, "task_memories"), count(world, "presence", "state")) == (1, 0)


async def test_registrations_are_bounded(world: World) -> None:
    async with world.open(limits={"agent_registrations": 2}) as core, connect(core, orchestrator("o", "1")) as peer:
        for name in ("a", "b", "a"):
            assert (await operate(peer, Op.REGISTER, agent=info(name))).success
        refused = await operate(peer, Op.REGISTER, agent=info("c"))
        assert not refused.success
        assert refused.error.startswith("ERR_QUOTA_001")
        assert count(world, "agents") == 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_profiles_of_orchestrators_do_not_outlive_their_gateway(world: World) -> None:
    async with world.open() as core, connect(core, starter("1", "p")) as peer:
        await barrier(peer)
        await trio.sleep(1)
        rows = world.databases["tasks"].query("SELECT * FROM task_workers")
        profiles = world.databases["tasks"].query("SELECT * FROM orchestrator_profiles")
        assert (len(rows), len(profiles)) == (1, 1)
        # As a gateway leaves it that is killed: nothing that ends with the session is written.
        world.databases["tasks"].failing = True
    world.databases["tasks"].failing = False
    assert count(world, "orchestrator_profiles") == 1
    async with world.open():
        assert count(world, "orchestrator_profiles") == 0
