"""Progress that cannot be written in time is dropped for the session that sent it."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.transaction import task_transaction
from aether_trio.services.tasks.write_batcher import MAX_WAITING
from tests.helpers.core import World, agent, connect, pump
from tests.services.tasks.peers import own, report

REPORTS = "SELECT COUNT(*) FROM task_events WHERE task_id = $1"


@pytest.mark.parametrize(("count", "summary"), [(MAX_WAITING + 10, ""), (700, "x" * 60_000)], ids=["many", "large"])
async def test_one_that_reports_without_a_pause_costs_no_other_session_a_report(
    core: Core, world: World, count: int, summary: str
) -> None:
    """A report is a heartbeat: a worker whose reports are dropped counts as dead."""
    database, writes = world.databases["tasks"], core.tasks.engine.writes
    async with connect(core, agent("w", "c", "1")) as noisy, connect(core, agent("w", "c", "2")) as worker:
        its, mine = await own(noisy), await own(worker)
        before = database.query(REPORTS, mine)
        database.before_write.close()
        noisy.send(*(report(its, summary=summary) for _ in range(count)))
        while not writes.dropped:
            await trio.sleep(0.01)
        await pump(count)
        worker.send(report(mine))
        await pump()
        database.before_write.open()
        await trio.sleep(10)
        assert database.query(REPORTS, mine) == [(before[0][0] + 1,)]
        noisy.send(report(its))
        await trio.sleep(10)
        written = database.query(REPORTS, its)[0][0]
        assert 10 < written < count


async def test_of_a_task_that_reports_for_ever_the_latest_events_are_kept(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_transaction, "KEPT_EVENTS", kept := 8)
    async with connect(core, agent("w", "c", "1")) as worker:
        task_id, other = await own(worker), await own(worker)
        for _ in range(5 * kept):
            worker.send(report(task_id))
            await trio.sleep(1)
        rows = world.databases["tasks"].query(
            "SELECT number FROM task_events WHERE task_id = $1 ORDER BY number", task_id
        )
        numbers = [number for (number,) in rows]
        assert numbers[-1] > 4 * kept
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "the latest, without a gap"
        assert kept <= len(numbers) < 2 * kept
        assert world.databases["tasks"].query(REPORTS, other)[0][0] >= 1, "those of another task are there"
