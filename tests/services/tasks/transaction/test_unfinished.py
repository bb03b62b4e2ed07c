"""What one transaction leaves to the next is not lost when the gateway ends."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction import sessions, task_transaction
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.services.agents.cast import SetClock
from tests.services.tasks.peers import Op, operate, own, wait_for

WAITING = "SELECT COUNT(*) FROM tasks WHERE status = 'waiting_dependency'"


async def test_those_that_a_killed_gateway_has_not_woken_are_woken_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_transaction, "WAKE_PAGE", 2)
    database = world.databases["tasks"]
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as creator:
            first, other = [await own(creator) for _ in range(2)]
            for depends_on in ([first], [first], [first], [first], [first], [first, other], [other]):
                assert (await wait_for(creator, await own(creator), *depends_on)).success
            # From here on it does nothing more.
            monkeypatch.setattr(core.tasks.engine.follow_ups, "put", lambda *_: 0)
            assert (await operate(creator, Op.COMPLETE, first)).success
            assert database.query(WAITING) == [(5,)]
        async with world.open():
            while database.query(WAITING) != [(2,)]:
                await trio.sleep(1)
            await trio.sleep(10)
            assert database.query(WAITING) == [(2,)]  # `other` has not ended


async def test_those_that_an_unanswered_commit_has_not_woken_are_woken(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repeated transaction finds that it was made, and has no effects."""
    monkeypatch.setattr(task_transaction, "WAKE_PAGE", 2)
    database = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as creator:
        first = await own(creator)
        for _ in range(5):
            assert (await wait_for(creator, await own(creator), first)).success
        database.unanswered_writes = 1
        assert (await operate(creator, Op.COMPLETE, first)).success
        while database.query(WAITING) != [(0,)]:
            await trio.sleep(1)


async def test_tasks_that_wait_for_a_deleted_task_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_transaction, "WAKE_PAGE", 2)
    database = world.databases["tasks"]
    clock = SetClock(trio.current_time)
    async with deadlock_is_an_error(), world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
        first = await own(creator)
        for _ in range(4):
            assert (await wait_for(creator, await own(creator), first)).success
        # What was to wake the others is lost.
        monkeypatch.setattr(core.tasks.engine.follow_ups, "put", lambda *_: 0)
        assert (await operate(creator, Op.COMPLETE, first)).success
        await trio.sleep(60)
        assert database.query(WAITING) == [(2,)]
        clock.ahead_ms = 8 * 86_400_000
        while database.query(WAITING) != [(0,)]:
            await trio.sleep(1)


async def test_those_that_were_missing_are_excused_once_though_the_clock_is_set_back(core: Core) -> None:
    """Otherwise a gateway with a page of them would not start before that moment."""
    async with connect(core, agent("w", "c", "1")) as creator:
        await own(creator)
        engine = core.tasks.engine
        began_ms = engine.clock.now_ms() + 3_600_000  # an hour later, by the clock of then
        await engine.database.execute("UPDATE tasks SET disconnected_ms = $1", began_ms - 1)
        found = [await engine.result(partial(sessions.restart_graces, before_ms=began_ms)) for _ in range(2)]
        assert found == [1, 0]
