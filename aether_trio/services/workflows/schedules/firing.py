"""Schedules: kept in rows, and fired in the transactions of tasks.

    timer ──▶ fire ──▶ plan (model/workflows/schedules.py) ──▶ start(schedule, firing)
                              └──────── one transaction ────────┘

The transaction that starts what a slot stands for writes that the slot has fired. So a slot fires
once, whichever process is killed, and whichever node looks first: a node passes over timers that
another one has locked.

A start that is refused (`FiringRefused`) leaves the slot owed, is shown in `last_error`, and is
tried again; the schedules beside it fire meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from aether_trio.model.text import line, shown
from aether_trio.model.workflows import schedules as model
from aether_trio.model.workflows.definition import Json, ScheduleDefinition
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.hops import Hops, TooManyHops, decode, extend
from aether_trio.model.workflows.schedules import (
    BACKFILL,
    EVENT,
    MOST_BACKFILLED,
    TOLERANCE_MS,
    FiringPlan,
    FiringTerms,
    PlannedFiring,
)
from aether_trio.model.workflows.timetables import NoSlots, Timetable, TimetableError, read_timetable
from aether_trio.services.tasks.transaction.interface import ChangeRefused
from aether_trio.services.workflows.documents.cron import cron_matches
from aether_trio.services.workflows.events.taken_events import HOPS
from aether_trio.services.workflows.stored import schedule_rows
from aether_trio.services.workflows.stored.schedule_rows import EVERYWHERE, StoredSchedule
from aether_trio.services.workflows.stored.timers import SET_BACK_MS
from aether_trio.storage.base import Program

PAGE: Final = 100
MOST_FIRINGS: Final = 100
"""Starts of a transaction, after which it begins with no further schedule."""
MOST_PLANNED: Final = 10_000
MOST_AFTER_EVENT: Final = 100
"""Schedules of a workspace that fire after one event, which plans a firing of each."""
MAX_ERROR: Final = 500
SLOT: Final = "slot"


class ScheduleError(ChangeRefused, ValueError):
    """An operation on a schedule is refused; the text says why."""


class FiringRefused(Exception):
    """A start is refused now; nothing was written for it. The text says why."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A slot that fires: `kind` is SLOT, EVENT or BACKFILL; moments are Unix ms.

    `event` is what has planned it: {name, workspace, data, source}; None otherwise. `hops` is its
    chain of causes, with this schedule.
    """

    slot_ms: int
    fired_ms: int
    kind: str = SLOT
    key: str = ""
    event: Json = None
    hops: Hops = ()


StartFiring: TypeAlias = Callable[[StoredSchedule, Firing], Program[str]]
"""Starts what a firing stands for, in the transaction; returns the task's or execution's id.

"" stands for what does not run, such as an event. Raises FiringRefused before it has written
anything.
"""


GuardFiring: TypeAlias = Callable[[Program[int], str], Program[int]]


def unguarded(program: Program[int], key: str) -> Program[int]:
    """Run the program of a schedule as it is."""
    return program


def _event_of(kept: Json) -> tuple[Json, Hops]:
    """Return the event that has planned a firing, and its chain of causes."""
    if not isinstance(kept, dict):
        return kept, ()
    return {name: value for name, value in kept.items() if name != HOPS}, decode(kept.get(HOPS))


def moment_of(moment_ms: int) -> str | None:
    """Return a moment as Go's JSON has it (RFC 3339, UTC); None for 0."""
    return go_time(moment_ms) if moment_ms else None


def trigger_of(schedule: StoredSchedule, firing: Firing) -> dict[str, Json]:
    """Return the trigger of an execution that a schedule starts."""
    trigger: dict[str, Json] = {
        "schedule_id": schedule.id,
        "schedule_name": schedule.name,
        "fired_at": moment_of(firing.fired_ms),
        "slot": moment_of(firing.slot_ms),
    }
    if firing.kind == BACKFILL:
        trigger["backfill"] = True
    if firing.event is not None:
        trigger["event"] = firing.event
    return trigger


def environment_of(schedule: StoredSchedule, firing: Firing) -> dict[str, Json]:
    """Return what the action and the input of a schedule are computed over."""
    trigger = trigger_of(schedule, firing)
    moments = {key: trigger[key] for key in ("fired_at", "slot")}
    return {"schedule": {"id": schedule.id, "name": schedule.name, **moments}, "trigger": trigger}


def answer_of(schedule: StoredSchedule) -> dict[str, Json]:
    """Return a schedule as operations answer with it."""
    state = schedule.state
    return {
        "action": None,
        **schedule.document,
        "id": schedule.id,
        "name": schedule.name,
        "workspace": schedule.workspace,
        "schedule_type": schedule.schedule_type,
        "schedule_expr": schedule.schedule_expr,
        "timezone": schedule.timezone,
        "workflow_id": schedule.workflow_id,
        "enabled": schedule.enabled,
        "paused": schedule.paused,
        "next_fire_at": moment_of(schedule.next_fire_ms),
        "last_fired_at": moment_of(schedule.last_fired_ms),
        "last_slot": moment_of(schedule.last_slot_ms),
        "miss_policy": schedule.miss_policy,
        "max_concurrent": schedule.max_concurrent,
        "active_task_id": schedule.last_run_id,
        "owner": schedule.owner,
        "fired": schedule.fired,
        "missed": state.missed,
        "owed": len(state.owed),
        "planned": schedule.planned,
        "last_error": schedule.last_error,
        "last_error_at": moment_of(schedule.last_error_ms),
        "retry_at": moment_of(state.retry_ms),
        "created_at": moment_of(schedule.created_ms),
        "updated_at": moment_of(schedule.updated_ms),
    }


@functools.lru_cache(maxsize=1024)
def _timetable(schedule_type: str, expression: str, timezone: str) -> Timetable:
    return read_timetable(schedule_type, expression, default_zone=timezone, matches=cron_matches)


class Schedules:
    """Keeps and fires schedules; `default_zone` counts where none is named.

    `tolerance_ms`: how late a slot is no miss. All methods but the constructor are programs.
    """

    def __init__(self, *, default_zone: str = "UTC", tolerance_ms: int = TOLERANCE_MS) -> None:
        self._default_zone = default_zone
        self._tolerance_ms = tolerance_ms

    # -- operations --------------------------------------------------------------------------------

    def create(self, definition: ScheduleDefinition, owner: str, now_ms: int) -> Program[StoredSchedule]:
        """Keep a new schedule. Raises ScheduleError if there is one of this id."""
        made = self._made(definition, owner, now_ms)
        yield from self._check_event(made)
        if not (yield from schedule_rows.insert(made)):
            raise ScheduleError(f"there is a schedule {made.id} in workspace {made.workspace} already: upsert it")
        return made

    def upsert(self, definition: ScheduleDefinition, owner: str, now_ms: int) -> Program[StoredSchedule]:
        """Keep a schedule in place of that of its id, or a new one.

        Which slots have fired stays known. With an equal expression its slots stay the same, and a
        refused start is tried again now. A pause goes on.
        """
        made = self._made(definition, owner, now_ms)
        before = yield from schedule_rows.load(made.workspace, made.id)
        if before is None or before.event != made.event:
            yield from self._check_event(made)
        if before is None:
            if (yield from schedule_rows.insert(made)):
                return made
            before = yield from schedule_rows.load(made.workspace, made.id)
            assert before is not None
        expression = (made.schedule_type, made.schedule_expr, made.timezone)
        if expression != (before.schedule_type, before.schedule_expr, before.timezone):
            state = model.rewritten(before.state, now_ms)
        elif made.enabled and not before.enabled:
            state = model.resumed(before.state, now_ms)
        else:
            state = model.started(before.state)
        changed = replace(
            made, paused=before.paused, state=state, last_fired_ms=before.last_fired_ms,
            last_slot_ms=before.last_slot_ms, last_run_id=before.last_run_id, fired=before.fired,
            planned=before.planned, waits=before.waits, last_error=before.last_error,
            last_error_ms=before.last_error_ms, created_ms=before.created_ms,
        )  # fmt: skip
        return (yield from self._save(changed, now_ms, now_ms if before.state.retry_ms else 0))

    def delete(self, workspace: str, id: str) -> Program[bool]:  # noqa: A002
        """Delete a schedule; return whether it was there. What it has started goes on."""
        return (yield from schedule_rows.delete(workspace, id))

    def get(self, workspaces: Sequence[str], id: str) -> Program[StoredSchedule | None]:  # noqa: A002
        """Find a schedule in the first of these workspaces that has it."""
        for workspace in dict.fromkeys(workspaces):
            found = yield from schedule_rows.load(workspace, id)
            if found is not None:
                return found
        return None

    def listed(self, workspace: str) -> Program[list[StoredSchedule]]:
        """List the schedules of a workspace and those of all; of "*" the latter alone."""
        return (yield from schedule_rows.of_workspaces((workspace, EVERYWHERE)))

    def pause(self, workspace: str, id: str, now_ms: int) -> Program[StoredSchedule]:  # noqa: A002
        """Have a schedule not fire until it is resumed. Raises ScheduleError without one."""
        found = yield from self._known(workspace, id)
        return (yield from self._save(replace(found, paused=True, updated_ms=now_ms), now_ms))

    def resume(self, workspace: str, id: str, now_ms: int) -> Program[StoredSchedule]:  # noqa: A002
        """Have a paused schedule fire again; the slots of the pause are missed.

        A refused start is given up, too. Raises ScheduleError without a schedule.
        """
        found = yield from self._known(workspace, id)
        if found.paused:
            dropped = yield from schedule_rows.drop_planned_until(workspace, id, now_ms)
            state = model.resumed(found.state, now_ms)
            found = replace(
                found, paused=False, updated_ms=now_ms, planned=found.planned - dropped,
                state=replace(state, missed=state.missed + dropped), waits=False,
            )  # fmt: skip
        return (yield from self._save(found, now_ms))

    def backfill(
        self,
        workspace: str,
        id: str,  # noqa: A002
        from_ms: int,
        until_ms: int,
        now_ms: int,
    ) -> Program[tuple[StoredSchedule, list[int]]]:
        """Plan a firing of each slot in [from_ms, until_ms), which may have fired already.

        They fire from now on, as many at a time as `max_concurrent` allows. Raises ScheduleError.
        """
        found = yield from self._known(workspace, id)
        if found.event:
            raise ScheduleError(f"schedule {id} fires after events: it has no slots to fill")
        if not found.active:
            state = "paused: resume it first" if found.paused else "not enabled: enable it first"
            raise ScheduleError(f"schedule {id} is {state}")
        if not from_ms < until_ms <= now_ms + 1:
            raise ScheduleError("a backfill goes from one moment to a later one, not in the future")
        slots = model.backfill(self._terms(found), found.state, from_ms, until_ms)
        if len(slots) > MOST_BACKFILLED or found.planned + len(slots) > MOST_PLANNED:
            raise ScheduleError(f"more than {MOST_BACKFILLED} slots would be planned: take a shorter time")
        planned = [PlannedFiring(BACKFILL, str(slot), slot, now_ms) for slot in slots]
        yield from schedule_rows.plan(workspace, id, planned)
        count = yield from schedule_rows.count_planned(workspace, id)
        saved = yield from self._save(replace(found, planned=count, updated_ms=now_ms), now_ms)
        return saved, slots

    # -- events ------------------------------------------------------------------------------------

    def names_waited_for(self, names: Iterable[str]) -> Program[frozenset[str]]:
        """Return the names, of these, of the events for which some schedule waits."""
        return (yield from schedule_rows.names_waited_for(names))

    def event_arrived(
        self,
        name: str,
        workspace: str,
        key: str,
        at_ms: int,
        event: Mapping[str, Json],
        allowed: Callable[[StoredSchedule], bool] = lambda stored: True,
        hops: Hops = (),
    ) -> Program[tuple[int, int]]:
        """Plan the firings that an event causes.

        Return how many schedules there are, and when the first firing is due, or 0.

        `key` tells the event apart: the same one plans one firing. `event` is kept for the firing
        as {name, workspace, **event}. Slots count from `at_ms`, when the event was sent. A schedule
        whose owner may not see the event is not `allowed` it. Of an event that ends a chain of
        causes (`hops`) nothing is planned.
        """
        moments = []
        following = yield from schedule_rows.of_event(name, workspace)
        for found in filter(allowed, following):
            table = self._terms(found).timetable
            if not isinstance(table, NoSlots):
                continue
            problem, chain = "", hops
            if found.planned >= MOST_PLANNED:
                problem = f"{MOST_PLANNED} firings are planned: an event of {workspace} was missed"
            try:
                chain = extend(hops, "schedule", found.id)
            except TooManyHops as error:
                problem = str(error)
            if problem:
                missed = replace(found.state, missed=found.state.missed + 1)
                yield from schedule_rows.move(
                    replace(found, state=missed, last_error=line(problem, MAX_ERROR), last_error_ms=at_ms)
                )
                continue
            slot_ms = at_ms + table.delay_ms
            late_ms = model.jitter_of(f"{found.workspace}/{found.id}/{key}", slot_ms, found.jitter_ms)
            firing = PlannedFiring(EVENT, key, slot_ms, slot_ms + late_ms)
            kept = {"name": name, "workspace": workspace, **event, HOPS: list(chain)}
            if (yield from schedule_rows.plan_event(found.workspace, found.id, firing, kept)):
                next_ms = min(found.next_fire_ms or firing.due_ms, firing.due_ms)
                yield from schedule_rows.move(replace(found, planned=found.planned + 1, next_fire_ms=next_ms))
                moments.append(next_ms)
        return len(following), min(moments, default=0)

    # -- time --------------------------------------------------------------------------------------

    def fire(
        self,
        now_ms: int,
        start: StartFiring,
        *,
        shared: bool,
        page: int = PAGE,
        guard: GuardFiring = unguarded,
        is_full: Callable[[], bool] = lambda: False,
    ) -> Program[int]:
        """Fire a page of the schedules that are due; return how many were looked at.

        `guard` runs the program of each, by its key in `workflow_timers`. `is_full` says whether
        the others are for another transaction.
        """
        found = yield from schedule_rows.due(now_ms, page, shared=shared)
        budget = MOST_FIRINGS
        looked = 0
        for workspace, id in found:  # noqa: A001
            if budget <= 0 or is_full():
                break
            looked += 1
            program = self._fire_one(workspace, id, now_ms, start, shared=shared)
            budget -= yield from guard(program, schedule_rows.timer_key(workspace, id))
        return looked

    def find_set_back(self, now_ms: int) -> Program[int]:
        """Have schedules looked at whose slots are decided ahead of time; count them.

        To be called when a gateway starts, and when its clock was set back.
        """
        found = yield from schedule_rows.decided_after(now_ms + SET_BACK_MS)
        for stored in found:
            yield from schedule_rows.due_now(stored, now_ms)
        return len(found)

    def run_ended(self, run_id: str, now_ms: int) -> Program[int]:
        """Have the schedule of a run that has ended start what waits for that.

        Returns its due moment, 0 if nothing waits.
        """
        found = yield from schedule_rows.end_run(run_id)
        if found is None:
            return 0
        return (yield from schedule_rows.due_now(found, now_ms)).next_fire_ms

    def _fire_one(self, workspace: str, id: str, now_ms: int, start: StartFiring, *, shared: bool) -> Program[int]:  # noqa: A002
        lock = " FOR UPDATE SKIP LOCKED" if shared else ""
        found = yield from schedule_rows.load(workspace, id, lock=lock)
        if found is None:
            if (yield from schedule_rows.load(workspace, id)) is None:
                yield from schedule_rows.delete(workspace, id)
            return 0
        if not found.active:
            yield from self._save(found, now_ms)
            return 0
        try:
            terms = self._terms(found)
        except TimetableError as error:  # a timezone that this machine does not know
            retry_ms = now_ms + model.MAX_BACKOFF_MS
            yield from schedule_rows.move(self._failed(replace(found, next_fire_ms=retry_ms), str(error), now_ms))
            return 0
        running = (yield from schedule_rows.live_runs(workspace, id)) if found.max_concurrent else 0
        planned = model.plan(terms, found.state, now_ms, running)
        firings = [Firing(slot, now_ms) for slot in planned.firings]
        found, done = yield from self._start_slots(found, terms, planned, firings, start)
        again_ms = 0
        if found.planned:
            found, more, again_ms = yield from self._fire_planned(found, terms, now_ms, running + done, start)
            done += more
        waits = bool(found.state.owed and not found.state.retry_ms) or bool(again_ms and not found.state.retry_ms)
        moved = yield from self._timed(replace(found, waits=waits), now_ms, again_ms)
        yield from schedule_rows.move(moved)
        return done

    def _start_slots(
        self,
        found: StoredSchedule,
        terms: FiringTerms,
        planned: FiringPlan,
        firings: Sequence[Firing],
        start: StartFiring,
    ) -> Program[tuple[StoredSchedule, int]]:
        found = replace(found, state=planned.state)
        for number, firing in enumerate(firings):
            try:
                found = yield from self._start(found, firing, start)
            except FiringRefused as error:
                left = [one.slot_ms for one in firings[number:]]
                state = model.refused(terms, found.state, left, firing.fired_ms)
                return self._failed(replace(found, state=state), str(error), firing.fired_ms), number
        return found, len(firings)

    def _fire_planned(
        self, found: StoredSchedule, terms: FiringTerms, now_ms: int, running: int, start: StartFiring
    ) -> Program[tuple[StoredSchedule, int, int]]:
        """Fire planned slots; return (the schedule, how many, when to look again)."""
        workspace, id = found.workspace, found.id  # noqa: A001
        rows = yield from schedule_rows.due_planned(workspace, id, now_ms)
        if not rows:
            return found, 0, 0
        events = {(row.firing.kind, row.firing.key): row.event for row in rows}
        decision = model.plan_planned(terms, found.state, [row.firing for row in rows], now_ms, running)
        done = list(decision.missed)
        again_ms = decision.again_ms
        for number, one in enumerate(decision.fire):
            event, hops = _event_of(events[one.kind, one.key])
            firing = Firing(one.slot_ms, now_ms, one.kind, one.key, event, hops)
            try:
                found = yield from self._start(found, firing, start)
            except FiringRefused as error:
                state = model.refused(terms, found.state, (), now_ms)
                found = self._failed(replace(found, state=state), str(error), now_ms)
                yield from schedule_rows.refuse_planned(workspace, id, decision.fire[number:])
                again_ms = found.state.retry_ms
                break
            done.append(one)
        yield from schedule_rows.drop_planned(workspace, id, done)
        state = replace(found.state, missed=found.state.missed + len(decision.missed))
        found = replace(found, planned=found.planned - len(done), state=state)
        return found, len(done) - len(decision.missed), again_ms

    def _start(self, found: StoredSchedule, firing: Firing, start: StartFiring) -> Program[StoredSchedule]:
        run_id = yield from start(found, firing)
        if run_id and found.max_concurrent:
            yield from schedule_rows.note_run(run_id, found.workspace, found.id)
        return replace(
            found, state=model.started(found.state), fired=found.fired + 1, last_fired_ms=firing.fired_ms,
            last_slot_ms=max(found.last_slot_ms, firing.slot_ms), last_run_id=run_id, last_error="", last_error_ms=0,
        )  # fmt: skip

    # -- rows --------------------------------------------------------------------------------------

    def _made(self, definition: ScheduleDefinition, owner: str, now_ms: int) -> StoredSchedule:
        state = model.new_state(now_ms)
        made = StoredSchedule(
            workspace=definition.workspace, id=definition.id, name=definition.name,
            schedule_type=definition.schedule_type, schedule_expr=definition.schedule_expr,
            timezone=definition.timezone or self._default_zone, event=definition.event,
            document=dict(definition.source), digest=definition.digest, workflow_id=definition.workflow_id,
            owner=owner, miss_policy=definition.miss_policy, max_concurrent=definition.max_concurrent,
            jitter_ms=definition.jitter_ms, enabled=definition.enabled, paused=False, state=state, created_ms=now_ms,
            updated_ms=now_ms,
        )  # fmt: skip
        try:
            terms = self._terms(made)
        except TimetableError as error:
            raise ScheduleError(f"{error.field}, character {error.column}: {error}") from None
        return replace(made, next_fire_ms=model.next_due(terms, state, now_ms) if made.active else 0)

    def _check_event(self, made: StoredSchedule) -> Program[None]:
        """Raise ScheduleError if too many schedules fire after the event of another one."""
        if made.event and (yield from schedule_rows.count_of_event(made.event, made.workspace)) >= MOST_AFTER_EVENT:
            raise ScheduleError(
                f"{MOST_AFTER_EVENT} schedules of workspace {made.workspace} fire after event {shown(made.event)} "
                "already: let a rule start further things"
            )

    def _terms(self, found: StoredSchedule) -> FiringTerms:
        return FiringTerms(
            key=f"{found.workspace}/{found.id}",
            timetable=_timetable(found.schedule_type, found.schedule_expr, found.timezone),
            miss_policy=found.miss_policy,
            tolerance_ms=self._tolerance_ms,
            max_concurrent=found.max_concurrent,
            jitter_ms=found.jitter_ms,
        )

    def _known(self, workspace: str, id: str) -> Program[StoredSchedule]:  # noqa: A002
        found = yield from schedule_rows.load(workspace, id)
        if found is None:
            raise ScheduleError(f"there is no schedule {id} in workspace {workspace}")
        return found

    def _save(self, found: StoredSchedule, now_ms: int, again_ms: int = 0) -> Program[StoredSchedule]:
        """Write a schedule with its next due moment; `again_ms` is another one."""
        saved = yield from self._timed(found, now_ms, again_ms)
        yield from schedule_rows.update(saved)
        return saved

    def _timed(self, found: StoredSchedule, now_ms: int, again_ms: int) -> Program[StoredSchedule]:
        """Return a schedule with its next due moment."""
        moments: list[int] = []
        if found.active:
            moments = [model.next_due(self._terms(found), found.state, now_ms), again_ms]
            if found.planned:
                # Those whose moment has come wait until `again_ms`.
                after_ms = now_ms if again_ms else 0
                moments.append((yield from schedule_rows.first_planned(found.workspace, found.id, after_ms)))
        return replace(found, next_fire_ms=min((one for one in moments if one), default=0))

    def _failed(self, found: StoredSchedule, problem: str, now_ms: int) -> StoredSchedule:
        return replace(found, last_error=line(problem, MAX_ERROR), last_error_ms=now_ms)
