"""Random steps of schedules in rows: whatever happens, no slot is started twice.

Clocks jump, starts are refused, transactions are undone, schedules are paused, changed and
backfilled, events arrive, runs end. After every step the counts, the timers and the rows agree, and
a schedule that owes something has a due moment.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.workflows.definition import ScheduleDefinition
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.workflows.schedules.firing import (
    BACKFILL,
    EVENT,
    SLOT,
    Firing,
    FiringRefused,
    ScheduleError,
    Schedules,
)
from aether_trio.services.workflows.stored.schedule_rows import StoredSchedule
from aether_trio.storage.base import Fetch, Program, single
from tests.helpers.direct import Store

FULL = os.environ.get("TESTS_FULL") == "1"
EXAMPLES = 2_000 if FULL else 60
MINUTE = 60_000
HOUR = 60 * MINUTE
BEGIN = 1_774_699_200_000  # 2026-03-28T12:00Z, half a day before clocks change in Berlin
IDS = ("cron", "daily", "interval", "delayed")

JUMPS = st.sampled_from((1, 900, 20_000, MINUTE, 7 * MINUTE, HOUR, 27 * HOUR, -900, -MINUTE, -HOUR, -300 * HOUR))
STEPS = st.one_of(
    *[st.tuples(st.just("fire"), JUMPS)] * 2,
    *[st.tuples(st.just("walk"), st.integers(1, 12))] * 2,
    *[st.tuples(st.just("fire_at_due"), st.booleans())] * 4,
    st.tuples(st.just("refuse"), st.sampled_from(IDS)),
    st.tuples(st.just("mend"), st.just("")),
    st.tuples(st.just("undo"), JUMPS),
    st.tuples(st.just("pause"), st.sampled_from(IDS)),
    st.tuples(st.just("resume"), st.sampled_from(IDS)),
    st.tuples(st.just("upsert"), st.sampled_from(IDS), st.booleans()),
    st.tuples(st.just("backfill"), st.sampled_from(IDS), st.sampled_from((MINUTE, HOUR, 30 * HOUR))),
    *[st.tuples(st.just("event"), st.integers(0, 9))] * 2,
    st.tuples(st.just("end"), st.booleans()),
)


class Undone(Exception):
    """A transaction is undone at its end, as when the process is killed."""


class Scene:
    """Schedules of each type on a clock that the test sets."""

    def __init__(
        self, drive: Callable[[Callable[[], Program[Any]]], Any], policy: str, most: int, *, shared: bool
    ) -> None:
        self.drive, self.policy, self.most, self.shared = drive, policy, most, shared
        self.now_ms = BEGIN
        self.schedules = Schedules(default_zone="Europe/Berlin")
        self.started: Counter[tuple[str, str, str]] = Counter()
        self.backfills: Counter[tuple[str, str, str]] = Counter()
        self.events: dict[str, int] = {}
        self.running: list[str] = []
        self.refusing: set[str] = set()
        self.runs = 0
        for id in IDS:  # noqa: A001
            self.drive(lambda id=id: self.schedules.create(self.definition(id), "us::ann::window", self.now_ms))  # noqa: A006

    def definition(self, id: str, *, other: bool = False) -> ScheduleDefinition:  # noqa: A002
        kind, expression, more = {
            "cron": ("cron", "*/5 * * * *" if other else "* * * * *", {}),
            "daily": ("cron", "30 2 * * *", {"jitter_ms": 600_000 if other else 0}),
            "interval": ("interval", "7m" if other else "90s", {"jitter_ms": 30_000}),
            "delayed": ("event_delayed", "5m", {"event": "ordered", "jitter_ms": 10_000 if other else 0}),
        }[id]
        fields: dict[str, Any] = {
            "miss_policy": self.policy,
            "max_concurrent": self.most,
            "workflow_id": "report",
            **more,
        }
        return ScheduleDefinition(
            id=id, schedule_type=kind, schedule_expr=expression, workspace="w", source={"id": id}, **fields
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.drive(lambda: single(Fetch(sql)))]

    def fire(self, *, undo: bool = False) -> None:
        """Fire what is due, page by page."""
        for _ in range(8):
            began: list[tuple[str, tuple[str, str, str]]] = []

            def start(schedule: StoredSchedule, firing: Firing, began: list[Any] = began) -> Program[str]:
                if schedule.id in self.refusing:
                    raise FiringRefused("not now")
                self.runs += 1
                run_id = f"r{self.runs}"
                yield from task_rows.insert(TaskRow(run_id, "work", "w", status=StoredStatus.RUNNING), b"")
                began.append((run_id, (schedule.id, firing.kind, firing.key or str(firing.slot_ms))))
                assert firing.fired_ms == self.now_ms
                return run_id

            def program(began: list[Any] = began, start: Any = start) -> Program[int]:
                began.clear()
                looked = yield from self.schedules.fire(self.now_ms, start, shared=self.shared, page=3)
                if undo:
                    raise Undone
                return looked

            try:
                looked = self.drive(program)
            except Undone:
                return
            for run_id, what in began:
                self.started[what] += 1
                self.running.append(run_id)
            if not looked:
                break

    def step(self, name: str, *args: Any) -> None:
        schedules, now_ms = self.schedules, self.now_ms
        match name, args:
            case "fire" | "undo", (jump_ms,):
                self.now_ms = max(now_ms + jump_ms, BEGIN - 1000 * HOUR)
                if jump_ms < 0:
                    self.drive(lambda: schedules.find_set_back(self.now_ms))
                self.fire(undo=name == "undo")
            case "walk", (minutes,):
                for _ in range(minutes):
                    self.now_ms += MINUTE
                    self.fire()
            case "fire_at_due", (late,):
                found = self.query("SELECT MIN(due_ms) FROM workflow_timers")[0][0]
                self.now_ms = max(now_ms, found or 0) + (3 if late else 0)
                self.fire()
            case "refuse", (id,):
                self.refusing.add(id)
            case "mend", _:
                self.refusing.clear()
            case "pause", (id,):
                self.drive(lambda: schedules.pause("w", id, now_ms))
            case "resume", (id,):
                self.drive(lambda: schedules.resume("w", id, now_ms))
            case "upsert", (id, other):
                self.drive(lambda: schedules.upsert(self.definition(id, other=other), "us::ann::window", now_ms))
            case "backfill", (id, length_ms):
                try:
                    _, slots = self.drive(lambda: schedules.backfill("w", id, now_ms - length_ms, now_ms, now_ms))
                except ScheduleError:
                    return
                for slot in slots:
                    self.backfills[id, BACKFILL, str(slot)] += 1
            case "event", (number,):
                # The log gives an event once; its number is that of the message.
                key = f"{number}-{len(self.events)}"
                self.drive(lambda: schedules.event_arrived("ordered", "w", key, now_ms, {"data": number}))
                self.drive(lambda: schedules.event_arrived("ordered", "w", key, now_ms, {"data": number}))
                self.events[key] = now_ms
            case "end", (reported,):
                ended, self.running = self.running, []
                for run_id in ended:
                    self.drive(lambda run_id=run_id: task_rows.delete(run_id))
                    if reported:
                        self.drive(lambda run_id=run_id: schedules.run_ended(run_id, now_ms))

    def check(self) -> None:
        for what, times in self.started.items():
            assert times <= (self.backfills[what] if what[1] == BACKFILL else 1), (what, times)
            assert what[1] != EVENT or what[2] in self.events
            assert what[1] != SLOT or what[0] != "delayed"
        timers = dict(self.query("SELECT key, due_ms FROM workflow_timers"))
        planned = Counter(id for (id,) in self.query("SELECT schedule_id FROM workflow_planned_firings"))  # noqa: A001
        fired = Counter(id for id, *_ in self.started.elements())  # noqa: A001
        for found in self.drive(lambda: self.schedules.listed("w")):
            assert timers.pop(f"w {found.id}", 0) == found.next_fire_ms
            assert found.planned == planned[found.id]
            assert found.fired == fired[found.id]
            if found.paused:
                assert found.next_fire_ms == 0
            elif found.state.owed or found.planned or found.id != "delayed":
                assert found.next_fire_ms
        assert timers == {}
        if self.most:
            per_schedule = Counter(
                one
                for (one,) in self.query(
                    "SELECT schedule_id FROM workflow_schedule_runs r JOIN tasks t ON t.task_id = r.run_id"
                )
            )
            assert all(count <= self.most for count in per_schedule.values())


@pytest.mark.parametrize("policy", ["skip", "fire_once", "fire_all"])
def test_whatever_happens_each_slot_is_started_once(store: Store, policy: str) -> None:
    @settings(max_examples=store.examples(EXAMPLES))
    @given(most=st.integers(0, 2), steps=st.lists(STEPS, max_size=40))
    def play(most: int, steps: list[tuple[Any, ...]]) -> None:
        place = store.place()
        try:
            tasks = place.direct("tasks")
            scene = Scene(tasks.drive, policy, most, shared=tasks.shared)
            for name, *args in steps:
                scene.step(name, *args)
                scene.check()
        finally:
            place.close()

    play()
