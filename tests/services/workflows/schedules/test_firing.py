"""Schedules in rows, on both engines: each slot is started and written, once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.workflows.definition import ScheduleDefinition
from aether_trio.model.workflows.schedules import BUSY_MS, FIRST_BACKOFF_MS
from aether_trio.model.workflows.timetables import read_moment
from aether_trio.services.tasks.transaction import due as due_tasks
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.workflows.schedules import firing as schedules_module
from aether_trio.services.workflows.schedules.firing import (
    Firing,
    FiringRefused,
    ScheduleError,
    Schedules,
    answer_of,
    environment_of,
    moment_of,
    trigger_of,
)
from aether_trio.services.workflows.stored.schedule_rows import StoredSchedule
from aether_trio.storage.base import Database, Execute, Program
from tests.helpers.engines import Engine, PostgresEngine

MINUTE = 60_000
BEGIN = read_moment("2026-03-28T12:00:00Z")
OWNER = "us::ann::window"


def definition(id: str = "nightly", **fields: Any) -> ScheduleDefinition:  # noqa: A002
    made = {"schedule_type": "cron", "schedule_expr": "* * * * *", "workspace": "w", "name": "Nightly", **fields}
    return ScheduleDefinition(id=id, source={"id": id, "workflow_id": "report", **fields}, workflow_id="report", **made)


@dataclass
class Node:
    """A node that fires schedules: each start is a task and a row of `started`."""

    database: Database
    schedules: Schedules = field(default_factory=Schedules)
    refusing: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=count)
    name: str = "a"

    def _start(self, schedule: StoredSchedule, firing: Firing) -> Program[str]:
        if schedule.id in self.refusing:
            raise FiringRefused(f"there is no workflow {schedule.workflow_id}")
        run_id = f"{self.name}-{next(self.numbers)}"
        yield from task_rows.insert(TaskRow(run_id, "work", "w", status=StoredStatus.RUNNING), b"")
        minute = (firing.slot_ms - BEGIN) / MINUTE
        yield Execute(
            "INSERT INTO started (run_id, schedule, minute, kind, key) VALUES ($1, $2, $3, $4, $5)",
            (run_id, schedule.id, int(minute), firing.kind, firing.key),
        )
        return run_id

    async def fire(self, now_ms: int, page: int = 100) -> int:
        return await self.database.run(
            lambda: self.schedules.fire(now_ms, self._start, shared=self.database.shared, page=page)
        )

    async def run(self, program: Callable[[], Program[Any]]) -> Any:
        return await self.database.run(program)

    async def create(self, made: ScheduleDefinition, now_ms: int = BEGIN) -> StoredSchedule:
        stored: StoredSchedule = await self.run(lambda: self.schedules.create(made, OWNER, now_ms))
        return stored

    async def get(self, id: str = "nightly") -> StoredSchedule:  # noqa: A002
        stored: StoredSchedule = await self.run(lambda: self.schedules.get(["w", "*"], id))
        return stored

    async def due_ms(self) -> int:
        """When the timer of tasks wakes."""
        moment: int = await self.database.read(due_tasks.next_moment)
        return moment

    async def started(self, id: str = "nightly") -> list[int]:  # noqa: A002
        """The slots that were started, in minutes, as often as they were."""
        rows = await self.database.fetch("SELECT minute FROM started WHERE schedule = $1 ORDER BY minute", id)
        return [minute for (minute,) in rows]

    async def end(self, run_id: str) -> None:
        await self.database.execute("UPDATE tasks SET status = 'completed' WHERE task_id = $1", run_id)


STARTED = "CREATE TABLE started (run_id TEXT PRIMARY KEY, schedule TEXT, minute INTEGER, kind TEXT, key TEXT)"


@asynccontextmanager
async def open_node(engine: Engine, name: str = "a", *, first: bool = True) -> AsyncIterator[Node]:
    async with engine.open("tasks") as database:
        if first:
            await database.execute(STARTED)
        yield Node(database, name=name)


@pytest.fixture
async def node(engine: Engine) -> AsyncIterator[Node]:
    async with open_node(engine) as opened:
        yield opened


# -- operations ------------------------------------------------------------------------------------


async def test_a_schedule_is_kept_shown_and_deleted(node: Node) -> None:
    made = await node.create(definition(schedule_expr="30 2 * * *", timezone="Europe/Berlin", miss_policy="fire_once"))
    assert await node.get() == made
    assert await node.due_ms() == read_moment("2026-03-29T01:00:00Z")
    shown = answer_of(made)
    assert shown["next_fire_at"] == "2026-03-29T01:00:00Z"
    assert shown["last_fired_at"] is None
    assert (shown["created_at"], shown["timezone"], shown["owner"]) == ("2026-03-28T12:00:00Z", "Europe/Berlin", OWNER)
    assert {"id", "name", "workspace", "schedule_type", "schedule_expr", "action", "workflow_id", "enabled"} <= set(
        shown
    )
    with pytest.raises(ScheduleError, match="there is a schedule nightly in workspace w already"):
        await node.create(definition())
    assert await node.run(lambda: node.schedules.delete("w", "nightly"))
    assert not await node.run(lambda: node.schedules.delete("w", "nightly"))
    assert await node.due_ms() == 0


async def test_a_list_has_the_workspace_and_what_is_everywhere(node: Node) -> None:
    for id, workspace in (("b", "w"), ("a", "w"), ("c", "other"), ("d", "*")):  # noqa: A001
        await node.create(definition(id, workspace=workspace))
    assert [one.id for one in await node.run(lambda: node.schedules.listed("w"))] == ["d", "a", "b"]
    assert [one.id for one in await node.run(lambda: node.schedules.listed("*"))] == ["d"]
    assert (await node.run(lambda: node.schedules.get(["w", "*"], "d"))).workspace == "*"
    assert await node.run(lambda: node.schedules.get(["w", "*"], "c")) is None


async def test_a_wrong_expression_is_refused_with_its_place(node: Node) -> None:
    with pytest.raises(ScheduleError, match="schedule_expr, character 9: 'MOM' is not a day-of-week"):
        await node.create(definition(schedule_expr="0 0 * * MOM"))


async def test_an_upsert_keeps_what_has_fired_and_the_next_moment(node: Node) -> None:
    await node.create(definition(schedule_type="interval", schedule_expr="90s"))
    await node.fire(BEGIN + 90_000)
    before = await node.get()
    changed = definition(schedule_type="interval", schedule_expr="90s", name="Renamed", max_concurrent=3)
    after = await node.run(lambda: node.schedules.upsert(changed, "us::bob::window", BEGIN + 100_000))
    assert after == await node.get()
    assert after == replace(
        before, name="Renamed", max_concurrent=3, owner="us::bob::window", updated_ms=BEGIN + 100_000, document=after.document
    )  # fmt: skip
    assert after.next_fire_ms == BEGIN + 180_000
    other = definition(schedule_type="interval", schedule_expr="10s")
    assert (
        await node.run(lambda: node.schedules.upsert(other, OWNER, BEGIN + 110_000))
    ).next_fire_ms == BEGIN + 120_000
    assert (await node.run(lambda: node.schedules.upsert(definition("new"), OWNER, BEGIN))).created_ms == BEGIN


async def test_a_schedule_that_is_not_enabled_rests(node: Node) -> None:
    assert (await node.create(definition(enabled=False))).next_fire_ms == 0
    await node.fire(BEGIN + MINUTE)
    enabled = await node.run(lambda: node.schedules.upsert(definition(), OWNER, BEGIN + 90_000))
    assert enabled.next_fire_ms == BEGIN + 2 * MINUTE
    await node.fire(BEGIN + 2 * MINUTE)
    assert await node.started() == [2]


async def test_a_pause_ends_with_the_next_slot(node: Node) -> None:
    await node.create(definition(miss_policy="fire_all"))
    await node.fire(BEGIN + MINUTE)
    paused = await node.run(lambda: node.schedules.pause("w", "nightly", BEGIN + MINUTE + 1))
    assert (paused.paused, answer_of(paused)["next_fire_at"], await node.due_ms()) == (True, None, 0)
    assert await node.fire(BEGIN + 5 * MINUTE) == 0
    await node.run(lambda: node.schedules.resume("w", "nightly", BEGIN + 9 * MINUTE + 1))
    await node.run(lambda: node.schedules.resume("w", "nightly", BEGIN + 9 * MINUTE + 2))
    await node.fire(BEGIN + 10 * MINUTE)
    assert await node.started() == [1, 10]
    with pytest.raises(ScheduleError, match="there is no schedule x in workspace w"):
        await node.run(lambda: node.schedules.pause("w", "x", BEGIN))


async def test_a_backfill_fires_the_slots_of_its_time(node: Node) -> None:
    await node.create(definition(schedule_expr="*/10 * * * *", max_concurrent=2))
    begin, end = BEGIN - 30 * MINUTE, BEGIN + 10 * MINUTE
    stored, slots = await node.run(lambda: node.schedules.backfill("w", "nightly", begin, end, end))
    assert [(slot - BEGIN) // MINUTE for slot in slots] == [-30, -20, -10, 0]
    assert (stored.planned, stored.next_fire_ms) == (4, end)
    await node.fire(end)
    # The schedule's slot and one of the backfill: more may not run.
    assert await node.started() == [-30, 10]
    assert (await node.get()).waits
    await node.end("a-0")
    assert await node.run(lambda: node.schedules.run_ended("a-0", end + 5)) == end + 5
    await node.fire(end + 5)
    assert await node.started() == [-30, -20, 10]
    for run in ("a-1", "a-2"):
        await node.end(run)
    await node.fire(end + 5 + BUSY_MS)
    assert await node.started() == [-30, -20, -10, 0, 10]
    assert (await node.get()).planned == 0


async def test_a_backfill_has_bounds(node: Node) -> None:
    await node.create(definition())
    for begin, end, problem in (
        (BEGIN, BEGIN, "goes from one moment to a later one"),
        (BEGIN, BEGIN + 60_000, "not in the future"),
        (BEGIN - 365 * 86_400_000, BEGIN, "more than 10000 slots"),
    ):
        with pytest.raises(ScheduleError, match=problem):
            await node.run(lambda begin=begin, end=end: node.schedules.backfill("w", "nightly", begin, end, BEGIN))
    await node.run(lambda: node.schedules.pause("w", "nightly", BEGIN))
    with pytest.raises(ScheduleError, match="is paused: resume it first"):
        await node.run(lambda: node.schedules.backfill("w", "nightly", BEGIN - 1, BEGIN, BEGIN))


# -- firing ----------------------------------------------------------------------------------------


async def test_from_moment_to_moment_each_slot_is_started_once(node: Node) -> None:
    await node.create(definition())
    for minute in range(1, 6):
        assert await node.due_ms() == BEGIN + minute * MINUTE
        assert await node.fire(BEGIN + minute * MINUTE - 1) == 0
        assert await node.fire(BEGIN + minute * MINUTE) == 1
        assert await node.fire(BEGIN + minute * MINUTE) == 0
    assert await node.started() == [1, 2, 3, 4, 5]
    found = await node.get()
    assert (found.fired, found.last_fired_ms, found.last_slot_ms) == (5, BEGIN + 5 * MINUTE, BEGIN + 5 * MINUTE)
    assert found.last_run_id == "a-4"


async def test_slots_go_on_after_a_kill_between_any_two(engine: Engine) -> None:
    async with open_node(engine) as node:
        await node.create(definition(miss_policy="fire_all"))
    for minute in range(1, 8, 2):
        async with open_node(engine, f"n{minute}", first=False) as node:
            await node.fire(BEGIN + minute * MINUTE + 7)
    async with open_node(engine, "last", first=False) as node:
        assert await node.started() == [1, 2, 3, 4, 5, 6, 7]


async def test_a_start_that_fails_leaves_no_trace_and_the_slot_for_later(node: Node) -> None:
    await node.create(definition())
    schedules, start = node.schedules, node._start

    def dies(schedule: StoredSchedule, firing: Firing) -> Program[str]:
        yield from start(schedule, firing)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        await node.run(lambda: schedules.fire(BEGIN + MINUTE, dies, shared=node.database.shared))
    assert await node.started() == []
    await node.fire(BEGIN + MINUTE + 1)
    assert await node.started() == [1]


async def test_two_nodes_at_once_start_each_slot_once(engine: Engine) -> None:
    async with open_node(engine, "a") as one:
        for number in range(20):
            await one.create(definition(f"s{number}", miss_policy="fire_all"))
        async with _second(engine, one) as two:
            for minute in range(1, 6):
                async with trio.open_nursery() as nursery:
                    for node in (one, two, one, two):
                        nursery.start_soon(node.fire, BEGIN + minute * MINUTE, 7)
            for _ in range(4):
                await one.fire(BEGIN + 5 * MINUTE)
        for number in range(20):
            assert await one.started(f"s{number}") == [1, 2, 3, 4, 5]
            assert (await one.get(f"s{number}")).fired == 5


@asynccontextmanager
async def _second(engine: Engine, first: Node) -> AsyncIterator[Node]:
    """Another node on the same data: on SQLite another user of the one database."""
    if isinstance(engine, PostgresEngine):
        async with open_node(engine, "b", first=False) as opened:
            yield opened
    else:
        yield Node(first.database, name="b")


async def test_a_schedule_that_another_node_has_locked_holds_up_no_other(postgres_engine: PostgresEngine) -> None:
    async with open_node(postgres_engine) as node:
        for id in ("timer", "row", "free"):  # noqa: A001
            await node.create(definition(id))
        postgres_engine.outside("BEGIN")
        postgres_engine.outside("SELECT 1 FROM workflow_timers WHERE key = 'w timer' FOR UPDATE")
        postgres_engine.outside("SELECT 1 FROM workflow_schedules WHERE id = 'row' FOR UPDATE")
        try:
            await node.fire(BEGIN + MINUTE)
            assert [await node.started(id) for id in ("timer", "row", "free")] == [[], [], [1]]  # noqa: A001
        finally:
            postgres_engine.outside("ROLLBACK")
        await node.fire(BEGIN + MINUTE)
        assert [await node.started(id) for id in ("timer", "row", "free")] == [[1], [1], [1]]  # noqa: A001


async def test_a_page_is_bounded_and_the_rest_follows(node: Node) -> None:
    for number in range(5):
        await node.create(definition(f"s{number}"))
    assert [await node.fire(BEGIN + MINUTE, page=2) for _ in range(4)] == [2, 2, 1, 0]
    assert [await node.started(f"s{number}") for number in range(5)] == [[1]] * 5


async def test_after_an_outage_the_policy_decides(node: Node) -> None:
    for policy in ("skip", "fire_once", "fire_all"):
        await node.create(definition(policy, miss_policy=policy))
    await node.fire(BEGIN + 180 * MINUTE + 5_000)
    # One that starts so many may end the transaction; the others follow in the next.
    await node.fire(BEGIN + 180 * MINUTE + 5_001)
    assert await node.started("skip") == [180]
    assert await node.started("fire_once") == [180]
    assert await node.started("fire_all") == [*range(81, 181)]
    assert [(await node.get(policy)).state.missed for policy in ("skip", "fire_once", "fire_all")] == [179, 179, 80]


async def test_as_many_run_as_really_run(node: Node) -> None:
    await node.create(definition(max_concurrent=1, miss_policy="fire_once"))
    await node.fire(BEGIN + MINUTE)
    await node.fire(BEGIN + 2 * MINUTE)
    await node.fire(BEGIN + 3 * MINUTE)
    assert await node.started() == [1]
    # Nothing has reported the end of the task; it is seen when the schedule looks.
    await node.end("a-0")
    assert await node.due_ms() == BEGIN + 3 * MINUTE + BUSY_MS
    await node.fire(BEGIN + 3 * MINUTE + BUSY_MS)
    assert await node.started() == [1, 3]
    await node.end("a-1")
    assert await node.run(lambda: node.schedules.run_ended("a-1", BEGIN + 3 * MINUTE + BUSY_MS + 1)) == 0
    await node.fire(BEGIN + 4 * MINUTE)
    assert await node.started() == [1, 3, 4]


async def test_a_retried_task_still_runs(node: Node) -> None:
    await node.create(definition(max_concurrent=1))
    await node.fire(BEGIN + MINUTE)
    await node.database.execute("UPDATE tasks SET status = 'failed', next_retry_ms = $1", BEGIN + 10 * MINUTE)
    await node.fire(BEGIN + 2 * MINUTE)
    assert await node.started() == [1]
    await node.database.execute("UPDATE tasks SET next_retry_ms = 0")
    await node.fire(BEGIN + 3 * MINUTE)
    assert await node.started() == [1, 3]


async def test_a_refused_start_is_shown_tried_again_and_holds_up_no_other(node: Node) -> None:
    await node.create(definition("broken", schedule_expr="0 * * * *"))
    await node.create(definition("sound", schedule_expr="0 * * * *"))
    node.refusing = {"broken"}
    now_ms = BEGIN + 60 * MINUTE
    await node.fire(now_ms)
    found = await node.get("broken")
    assert await node.started("sound") == [60]
    assert (found.last_error, found.last_error_ms, found.fired) == ("there is no workflow report", now_ms, 0)
    assert answer_of(found)["owed"] == 1
    assert await node.due_ms() == now_ms + FIRST_BACKOFF_MS
    await node.fire(now_ms + FIRST_BACKOFF_MS)
    assert await node.due_ms() == now_ms + 3 * FIRST_BACKOFF_MS
    node.refusing = set()
    await node.fire(now_ms + 3 * FIRST_BACKOFF_MS)
    assert await node.started("broken") == [60]
    assert (await node.get("broken")).last_error == ""


async def test_an_upsert_that_mends_a_schedule_has_it_tried_at_once(node: Node) -> None:
    await node.create(definition(schedule_expr="0 * * * *"))
    node.refusing = {"nightly"}
    now_ms = BEGIN + 60 * MINUTE
    for _ in range(8):
        await node.fire(now_ms)
        now_ms = await node.due_ms()
    node.refusing = set()
    mended = definition(schedule_expr="0 * * * *", name="Mended")
    now_ms -= 2 * MINUTE
    await node.run(lambda: node.schedules.upsert(mended, OWNER, now_ms))
    await node.fire(now_ms)
    assert await node.started() == [60]


async def test_a_clock_that_is_set_back_is_noticed(node: Node) -> None:
    await node.create(definition())
    await node.fire(BEGIN + MINUTE)
    await node.fire(BEGIN + 365 * 1440 * MINUTE)
    # Nothing is due for a year, but the slots up to then are decided.
    assert await node.fire(BEGIN + 90_000) == 0
    assert await node.run(lambda: node.schedules.find_set_back(BEGIN + 90_000)) == 1
    assert await node.fire(BEGIN + 90_000) == 1
    assert await node.run(lambda: node.schedules.find_set_back(BEGIN + 91_000)) == 0
    assert await node.due_ms() == BEGIN + 2 * MINUTE
    await node.fire(BEGIN + 2 * MINUTE)
    assert [one for one in await node.started() if one < 1000] == [1, 2]


async def test_a_zone_that_a_node_does_not_know_is_an_error_of_the_schedule(node: Node) -> None:
    await node.create(definition("lost"))
    await node.create(definition("sound"))
    await node.database.execute("UPDATE workflow_schedules SET timezone = 'Mars/Olympus' WHERE id = 'lost'")
    await node.fire(BEGIN + MINUTE)
    assert await node.started("sound") == [1]
    assert "'Mars/Olympus' is unknown" in (await node.get("lost")).last_error
    assert await node.fire(BEGIN + MINUTE) == 0


async def test_a_timer_without_a_schedule_is_dropped(node: Node) -> None:
    await node.database.execute("INSERT INTO workflow_timers (kind, key, due_ms) VALUES ('schedule', 'w gone', 5)")
    await node.fire(BEGIN)
    assert await node.due_ms() == 0


# -- events ----------------------------------------------------------------------------------------


def delayed(**fields: Any) -> ScheduleDefinition:
    return definition(
        "remind", schedule_type="event_delayed", schedule_expr="10m", event="ordered", **{"miss_policy": "fire_all", **fields}
    )  # fmt: skip


async def arrive(node: Node, key: str, at_ms: int, workspace: str = "w") -> int:
    _, moment = await node.run(
        lambda: node.schedules.event_arrived(
            "ordered", workspace, key, at_ms, {"data": {"n": key}, "source": "ag::w::x::1"}
        )
    )
    return int(moment)


async def test_each_event_plans_one_firing(node: Node) -> None:
    assert (await node.create(delayed())).next_fire_ms == 0
    assert await node.run(lambda: node.schedules.names_waited_for(["a", "ordered", *map(str, range(300))])) == {
        "ordered"
    }
    assert await arrive(node, "1", BEGIN) == BEGIN + 10 * MINUTE
    assert await arrive(node, "2", BEGIN + MINUTE) == BEGIN + 10 * MINUTE
    await arrive(node, "2", BEGIN + MINUTE)
    assert await arrive(node, "3", BEGIN, workspace="other") == 0
    assert (await node.get("remind")).planned == 2
    assert await node.due_ms() == BEGIN + 10 * MINUTE
    await node.fire(BEGIN + 10 * MINUTE)
    assert await node.started("remind") == [10]
    assert await node.due_ms() == BEGIN + 11 * MINUTE
    await node.fire(BEGIN + 11 * MINUTE)
    assert await node.started("remind") == [10, 11]
    found = await node.get("remind")
    assert (found.planned, found.next_fire_ms, found.fired) == (0, 0, 2)


async def test_an_event_of_any_workspace_counts_for_a_schedule_of_all(node: Node) -> None:
    await node.create(delayed(workspace="*"))
    seen = []

    def start(schedule: StoredSchedule, firing: Firing) -> Program[str]:
        seen.append(trigger_of(schedule, firing))
        yield from ()
        return ""

    await arrive(node, "1", BEGIN, workspace="other")
    await node.run(lambda: node.schedules.fire(BEGIN + 10 * MINUTE + 250, start, shared=node.database.shared))
    assert seen[-1] == {
        "schedule_id": "remind",
        "schedule_name": "Nightly",
        "fired_at": "2026-03-28T12:10:00.25Z",
        "slot": "2026-03-28T12:10:00Z",
        "event": {"name": "ordered", "workspace": "other", "data": {"n": "1"}, "source": "ag::w::x::1"},
    }


async def test_few_schedules_fire_after_one_event(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules_module, "MOST_AFTER_EVENT", 2)
    for name in ("a", "b"):
        await node.create(replace(delayed(), id=name))
    for put in (node.schedules.create, node.schedules.upsert):
        with pytest.raises(ScheduleError, match="2 schedules of workspace w fire after event 'ordered' already"):
            await node.run(lambda put=put: put(replace(delayed(), id="c"), "us::boss", BEGIN))  # type: ignore[misc]
    await node.run(lambda: node.schedules.upsert(replace(delayed(), id="b"), "us::boss", BEGIN))
    await node.create(delayed(workspace="other"))
    await node.create(replace(delayed(), id="c", event="made"))
    with pytest.raises(ScheduleError, match="2 schedules"):
        await node.run(lambda: node.schedules.upsert(replace(delayed(), id="c"), "us::boss", BEGIN))


async def test_an_event_that_the_owner_may_not_see_plans_nothing(node: Node) -> None:
    await node.create(delayed(workspace="*"))
    await node.run(lambda: node.schedules.event_arrived("ordered", "w", "1", BEGIN, {}, lambda stored: False))
    assert (await node.get("remind")).planned == 0


async def test_refused_firings_of_events_are_all_tried_again(node: Node) -> None:
    await node.create(delayed(miss_policy="skip"))
    for number in range(3):
        await arrive(node, str(number), BEGIN + number)
    node.refusing = {"remind"}
    now_ms = BEGIN + 10 * MINUTE + 3
    for _ in range(6):
        await node.fire(now_ms)
        now_ms = await node.due_ms()
    assert now_ms > BEGIN + 12 * MINUTE
    node.refusing = set()
    await node.fire(now_ms)
    assert await node.started("remind") == [10, 10, 10]
    assert (await node.get("remind")).state.missed == 0


async def test_late_events_are_missed_by_skip(node: Node) -> None:
    await node.create(delayed(miss_policy="skip"))
    await arrive(node, "1", BEGIN)
    await arrive(node, "2", BEGIN + 60 * MINUTE)
    await node.fire(BEGIN + 70 * MINUTE)
    assert await node.started("remind") == [70]
    assert (await node.get("remind")).state.missed == 1


async def test_events_of_a_pause_plan_nothing(node: Node) -> None:
    await node.create(delayed())
    await arrive(node, "1", BEGIN)
    await node.run(lambda: node.schedules.pause("w", "remind", BEGIN + MINUTE))
    assert await arrive(node, "2", BEGIN + 2 * MINUTE) == 0
    await node.run(lambda: node.schedules.resume("w", "remind", BEGIN + 30 * MINUTE))
    await node.fire(BEGIN + 60 * MINUTE)
    assert await node.started("remind") == []
    assert (await node.get("remind")).planned == 0


async def test_planned_firings_are_bounded(node: Node) -> None:
    await node.create(delayed())
    await node.database.execute("UPDATE workflow_schedules SET planned = 10000")
    assert await arrive(node, "1", BEGIN) == 0
    found = await node.get("remind")
    assert (found.state.missed, found.last_error) == (1, "10000 firings are planned: an event of w was missed")


# -- values ----------------------------------------------------------------------------------------


def test_times_are_as_go_prints_them() -> None:
    assert [moment_of(ms) for ms in (0, 1_000, 1_250, 1_005)] == [
        None, "1970-01-01T00:00:01Z", "1970-01-01T00:00:01.25Z", "1970-01-01T00:00:01.005Z",
    ]  # fmt: skip


async def test_actions_are_computed_over_the_schedule(node: Node) -> None:
    made = await node.create(definition())
    environment = environment_of(made, Firing(BEGIN, BEGIN + 1))
    assert environment["schedule"] == {
        "id": "nightly", "name": "Nightly", "fired_at": "2026-03-28T12:00:00.001Z", "slot": "2026-03-28T12:00:00Z",
    }  # fmt: skip
    assert environment["trigger"]["schedule_id"] == "nightly"
