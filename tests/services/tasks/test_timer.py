"""An outage of the database longer than a timeout ends no task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.tasks.timer import FLUSH_S, TaskTimer
from aether_trio.services.tasks.transaction import due
from aether_trio.services.tasks.transaction.due import SilenceExcuse
from aether_trio.services.tasks.transaction.task_transaction import Mutation
from aether_trio.services.tasks.write_batcher import NO_BACKLOG, Backlog
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.helpers.inline import InlineDatabase
from tests.services.agents.cast import SetClock, assignment, cast, echo, fail, launch, running, starts
from tests.services.tasks.peers import Op, begin, create, operate, report

HEARTBEAT = {"heartbeat_timeout_ms": "4000"}
FAILURES = "SELECT task_id, retry_count FROM tasks"
STATUS = "SELECT status, epoch FROM tasks"


@asynccontextmanager
async def open_pair(world: World) -> AsyncIterator[tuple[Core, MemoryLink, MemoryLink]]:
    """A gateway, a client that creates tasks, and a worker."""
    async with (
        world.open() as core,
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1")) as worker,
    ):
        yield core, creator, worker


def delay_writes(core: Core, monkeypatch: pytest.MonkeyPatch, wait: Callable[[], Awaitable[object]]) -> None:
    """Have what sessions do and report written only after a `wait`, a group at a time.

    The database answers all others.
    """
    writes = core.tasks.engine.writes
    perform = writes._perform

    async def late(mutation: Mutation) -> None:
        await wait()
        await perform(mutation)

    monkeypatch.setattr(writes, "_perform", late)


@asynccontextmanager
async def connect_again(core: Core, hello: pb.UpstreamMessage, tasks: InlineDatabase) -> AsyncIterator[MemoryLink]:
    """A client that connects until it is let in, every ten seconds.

    The database is away for four minutes.
    """
    since = trio.current_time()
    while tasks.failing:
        async with connect(core, hello, wait_ack=False) as refused:
            assert (await refused.wait_end()).status is Status.UNAVAILABLE
        tasks.failing = trio.current_time() - since < 240
        await trio.sleep(10)
    async with connect(core, hello) as link:
        yield link


@pytest.mark.parametrize("away_s", [6, 61])
async def test_a_worker_that_reports_while_the_database_is_away_keeps_its_task(world: World, away_s: int) -> None:
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), open_pair(world) as (_, creator, worker):
        task_id = (await create(creator, metadata=HEARTBEAT)).task_id
        await begin(worker, task_id)
        await trio.sleep(0.3)
        tasks.failing = True
        for _ in range(away_s // 3):
            worker.send(report(task_id))
            await trio.sleep(3)
        await trio.sleep(0.6)  # what is due is looked at before reports are written again
        tasks.failing = False
        for _ in range(5):
            await trio.sleep(3)
            assert tasks.query(STATUS) == [("running", 1)]
            worker.send(report(task_id))
        await trio.sleep(10)
        assert tasks.query(STATUS) == [("failed", 1)]  # it is silent now


async def test_a_worker_can_say_that_it_is_done_when_the_database_is_back(world: World) -> None:
    """A node that cannot look for changes of rights owes the answer until it can."""
    tasks = world.databases["tasks"]

    async def mend() -> None:
        await trio.sleep(60)
        tasks.failing = False

    async with deadlock_is_an_error(), open_pair(world) as (_, creator, worker), trio.open_nursery() as nursery:
        task_id = (await create(creator, metadata=HEARTBEAT)).task_id
        await begin(worker, task_id)
        tasks.failing = True
        nursery.start_soon(mend)
        while not (await operate(worker, Op.COMPLETE, task_id)).success:
            assert tasks.failing
            await trio.sleep(2.9)
        assert tasks.query(STATUS) == [("completed", 1)]


@pytest.mark.parametrize("claims", [True, False])
@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_worker_that_comes_back_when_the_database_does_keeps_its_task(world: World, claims: bool) -> None:
    """Its gateway lets no participant in meanwhile, so it comes again and again."""
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        async with connect(core, agent("w", "i", "1")) as worker:
            task_id = (await create(creator)).task_id
            if claims:
                await begin(worker, task_id)
            worker.cut()
            await trio.sleep(1)
        tasks.failing = True
        async with connect_again(core, agent("w", "i", "1", resume_session_id="before"), tasks):
            await trio.sleep(60)
            assert tasks.query(STATUS) == [("running" if claims else "assigned", 1)]


async def test_an_agent_that_connects_when_the_database_is_back_is_not_started_twice(world: World) -> None:
    """A token cannot be looked at meanwhile, so its agent comes again and again."""
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), world.open() as core, cast(core) as (orchestrator, _):
        await launch(orchestrator, "1")
        token = (await assignment(orchestrator)).launch_params["auth_token"]
        tasks.failing = True
        async with connect_again(core, echo(credentials={"token": token}), tasks):
            await trio.sleep(1)
            # The orchestrator's assignment, and the agent's.
            assert tasks.query(STATUS) == [("running", 2)]
            assert orchestrator.waiting("task_assignment") == []


async def test_a_report_that_is_never_written_ends_no_silence_and_holds_up_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write stalls: other deadlines fall due, and the worker keeps its task."""
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), open_pair(world) as (core, creator, worker):
        deadlines = (HEARTBEAT, {"start_to_close_ms": "4000"})
        ids = [(await create(creator, metadata=deadline)).task_id for deadline in deadlines]
        await begin(worker, *ids)
        stalled = trio.Event()
        delay_writes(core, monkeypatch, stalled.wait)
        worker.send(report(ids[0]))
        await trio.sleep(30)
        assert dict(tasks.query(FAILURES)) == {ids[0]: 0, ids[1]: 1}
        stalled.set()
        await trio.sleep(30)
        assert dict(tasks.query(FAILURES)) == {ids[0]: 1, ids[1]: 1}  # it is silent now


async def test_a_stalled_write_holds_up_no_page_of_other_deadlines(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "PAGE", 5)
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), open_pair(world) as (core, creator, worker):
        reported = (await create(creator, metadata=HEARTBEAT)).task_id
        await begin(worker, reported)
        for _ in range(50):
            await create(creator, target_implementation="none", metadata={"schedule_to_close_ms": "10000"})
        stalled = trio.Event()
        delay_writes(core, monkeypatch, stalled.wait)
        worker.send(report(reported))
        await trio.sleep(10 + FLUSH_S + 1)
        assert dict(tasks.query("SELECT status, count(*) FROM tasks GROUP BY status")) == {"dlq": 50, "running": 1}
        stalled.set()


@pytest.mark.parametrize("reports_on", ["another worker's task", "another task", "no task"])
async def test_reports_that_are_written_late_excuse_no_silence_about_another_task(
    world: World, monkeypatch: pytest.MonkeyPatch, reports_on: str
) -> None:
    tasks = world.databases["tasks"]
    async with (
        deadlock_is_an_error(),
        open_pair(world) as (core, creator, worker),
        connect(core, agent("w", "noisy", "1")) as noisy,
    ):
        implementation, reporter = ("noisy", noisy) if reports_on == "another worker's task" else ("i", worker)
        silent = (await create(creator, metadata=HEARTBEAT)).task_id
        other = (await create(creator, target_implementation=implementation, metadata=HEARTBEAT)).task_id
        await begin(worker, silent)
        await begin(reporter, other)
        delay_writes(core, monkeypatch, partial(trio.sleep, 0.4))
        for _ in range(120):
            reporter.send(*[report("unknown" if reports_on == "no task" else other)] * 100)
            await trio.sleep(0.25)
        assert dict(tasks.query(FAILURES)) == {silent: 1, other: int(reports_on == "no task")}


async def test_writes_that_time_out_excuse_only_who_reports(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PostgreSQL ends a write that waits for a lock, while it answers all others."""
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), open_pair(world) as (core, creator, worker):
        ids = [(await create(creator, metadata=HEARTBEAT)).task_id for _ in range(2)]
        await begin(worker, *ids)

        async def time_out() -> None:
            await trio.sleep(5)
            raise StorageUnavailable("canceling statement due to lock timeout")

        delay_writes(core, monkeypatch, time_out)
        worker.send(report(ids[0]))
        await trio.sleep(60)
        assert dict(tasks.query(FAILURES)) == {ids[0]: 0, ids[1]: 1}


async def test_an_agent_whose_process_has_ended_is_not_excused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The join of the second agent is not written when the grace of the first ends."""
    async with deadlock_is_an_error(), world.open() as core, running(core) as (orchestrator, _, started, asked):
        await fail(orchestrator, asked.task_id, "its process has ended")
        calls, stalled, fired = 0, trio.Event(), 0

        async def all_but_the_first() -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                await stalled.wait()

        delay_writes(core, monkeypatch, all_but_the_first)
        timer = core.tasks.engine.timer
        fire = timer._fire

        async def counted(excuse: SilenceExcuse) -> int:
            nonlocal fired
            fired += 1
            assert fired < 100, "it falls due again and again"
            return await fire(excuse)

        monkeypatch.setattr(timer, "_fire", counted)
        started.cut()
        async with connect(core, echo(), wait_ack=False):
            await trio.sleep(20)
            assert [status for status, _ in await starts(core)] == ["failed"]
            stalled.set()


async def begin_and_lose(core: Core, creator: MemoryLink, number: int) -> None:
    """A worker begins so many tasks and loses its connection."""
    async with connect(core, agent("w", "i", "1")) as worker:
        await begin(worker, *[(await create(creator)).task_id for _ in range(number)])
        worker.cut()
        await trio.sleep(1)


@pytest.mark.parametrize("failing_writes", [0, 1], ids=["for good", "and fails once more"])
async def test_a_database_that_comes_back_was_away_all_the_time(world: World, failing_writes: int) -> None:
    """A worker that does not come back has its grace from then on."""
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        await begin_and_lose(core, creator, 1)
        tasks.failing = True
        await trio.sleep(60)
        tasks.failing, tasks.fail_writes = False, failing_writes
        await trio.sleep(28)
        assert tasks.query(STATUS) == [("running", 1)]
        await trio.sleep(7)
        assert tasks.query(STATUS) == [("failed", 1)]


async def test_a_failure_between_two_pages_of_an_outage_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "PAGE", 3)
    tasks = world.databases["tasks"]
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        await begin_and_lose(core, creator, 5)
        tasks.failing = True
        await trio.sleep(60)
        timer, pages = core.tasks.engine.timer, []
        fire = timer._fire

        async def fails_once(excuse: SilenceExcuse) -> int:
            pages.append(excuse)
            if len(pages) == 2:
                raise StorageUnavailable("once more")
            return await fire(excuse)

        monkeypatch.setattr(timer, "_fire", fails_once)
        tasks.failing = False
        await trio.sleep(5)
        assert len(pages) > 2
        assert set(tasks.query(STATUS)) == {("running", 1)}
        await trio.sleep(30)
        assert set(tasks.query(STATUS)) == {("failed", 1)}


async def test_an_outage_excuses_nothing_that_comes_after_it_when_the_clock_is_set_back(world: World) -> None:
    tasks = world.databases["tasks"]
    clock = SetClock(trio.current_time)
    async with (
        deadlock_is_an_error(),
        world.open(clock=clock) as core,
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1")) as worker,
    ):
        early = (await create(creator, metadata=HEARTBEAT)).task_id
        await begin(worker, early)
        tasks.failing = True
        await trio.sleep(620)
        tasks.failing = False
        await trio.sleep(1)
        assert (await operate(worker, Op.COMPLETE, early)).success
        await trio.sleep(20)
        clock.ahead_ms = -600_000
        await trio.sleep(1)
        late = (await create(creator, metadata=HEARTBEAT)).task_id
        await begin(worker, late)
        await trio.sleep(10)
        assert dict(tasks.query(FAILURES))[late] == 1


class Table:
    """A table of tasks whose next moment is set."""

    shared = failing = False
    next_ms = 1_003

    async def read(self, _: object) -> int:
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise StorageUnavailable("away")
        return self.next_ms


class Calendar:
    """A calendar that goes on by `step_ms` whenever it is read."""

    def __init__(self, ms: int, step_ms: int) -> None:
        self.ms, self.step_ms = ms, step_ms

    def now_ms(self) -> int:
        self.ms += self.step_ms
        return self.ms


async def test_an_outage_is_one_after_the_calendar_was_set_back_in_another_one() -> None:
    """The calendar is set back between two pages of what fell due in the first one."""
    calendar, table, outages = Calendar(1_000_000, step_ms=0), Table(), list[due.Outage]()
    table.next_ms = 1_030_000

    async def flush_within(_: float) -> Backlog:
        await trio.lowlevel.checkpoint()
        return NO_BACKLOG

    async def fire(excuse: SilenceExcuse) -> int:
        await trio.lowlevel.checkpoint()
        outages.append(excuse.in_outage)
        if len(outages) == 1:
            calendar.ms = 400_000
        else:
            table.next_ms = 1_030_000
        return 1

    async def be_away(until_ms: int) -> None:
        table.failing, calendar.ms = True, until_ms
        await trio.sleep(10)
        table.failing = False
        await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        timer = TaskTimer(table, calendar, fire, flush_within)  # type: ignore[arg-type]
        nursery.start_soon(timer.run)
        await trio.sleep(1)
        await be_away(until_ms=1_060_000)
        calendar.ms, table.next_ms = 420_000, 424_000
        timer.note(424_000)
        await trio.sleep(1)
        await be_away(until_ms=430_000)
        nursery.cancel_scope.cancel()
    assert outages[0] == (1_000_000, 1_060_000)
    # The clock that was set back had it fire once more in between.
    assert outages[-1].since_ms <= 424_000 <= outages[-1].until_ms


async def test_what_falls_due_between_two_looks_at_the_clock_waits_for_what_was_said() -> None:
    order: list[str] = []

    async def flush_within(_: float) -> Backlog:
        await trio.lowlevel.checkpoint()
        order.append("caught up")
        return NO_BACKLOG

    async with trio.open_nursery() as nursery:

        async def fire(_: SilenceExcuse) -> int:
            await trio.lowlevel.checkpoint()
            order.append("fired")
            nursery.cancel_scope.cancel()
            return 0

        nursery.start_soon(TaskTimer(Table(), Calendar(1_000, step_ms=1), fire, flush_within).run)  # type: ignore[arg-type]
    assert order == ["caught up", "fired"]


@pytest.mark.parametrize("back_ms", [-600_000, -1_000])
async def test_when_the_clock_is_set_back_it_fires_once_though_nothing_is_due(back_ms: int) -> None:
    calendar, table, fired = Calendar(1_000_000, step_ms=0), Table(), list[int]()
    table.next_ms = 9_000_000

    async def flush_within(_: float) -> Backlog:
        await trio.lowlevel.checkpoint()
        return NO_BACKLOG

    async def fire(_: SilenceExcuse) -> int:
        await trio.lowlevel.checkpoint()
        fired.append(calendar.ms)
        return 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(TaskTimer(table, calendar, fire, flush_within).run)  # type: ignore[arg-type]
        await trio.sleep(20)
        calendar.ms += back_ms
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert fired == ([400_000] if back_ms < -5_000 else [])


async def test_what_another_node_has_locked_is_not_looked_for_all_the_time() -> None:
    table, looks = Table(), [0]

    async def flush_within(_: float) -> Backlog:
        await trio.lowlevel.checkpoint()
        return NO_BACKLOG

    async def fire(_: SilenceExcuse) -> int:
        await trio.sleep(0.001)
        looks[0] += 1
        return 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(TaskTimer(table, Calendar(1_000_000, step_ms=0), fire, flush_within).run)  # type: ignore[arg-type]
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert 50 < looks[0] < 200
