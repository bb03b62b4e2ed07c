"""Programs that read and write the rows of schedules.

The due moment of a schedule is its row in `workflow_timers`, so that one query finds the next
moment of everything that time moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from aether_trio.model.tasks.status import TERMINAL
from aether_trio.model.workflows.schedules import FiringState, PlannedFiring
from aether_trio.model.workflows.sources import event_sources
from aether_trio.services.workflows.stored import sources
from aether_trio.services.workflows.stored.listed_rows import rows_by_id
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row, placeholders, rounded_up

TIMER: Final = "schedule"
PLANNED_PAGE: Final = 100
NAMES_PAGE: Final = 100
EVERYWHERE: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSchedule:
    """A schedule's row; times are Unix ms, 0 for none.

    `document` is the definition in canonical form. `timezone` is the resolved one. `fired` counts
    starts, `planned` the slots that events and backfills have planned; `waits`: a slot waits for
    the end of a run. `last_error` is why the latest start was refused, "" once one succeeded.
    """

    workspace: str
    id: str
    name: str
    schedule_type: str
    schedule_expr: str
    timezone: str
    event: str
    document: dict[str, Any]
    digest: str
    workflow_id: str
    owner: str
    miss_policy: str
    max_concurrent: int
    jitter_ms: int
    enabled: bool
    paused: bool
    state: FiringState
    next_fire_ms: int = 0
    last_fired_ms: int = 0
    last_slot_ms: int = 0
    last_run_id: str = ""
    fired: int = 0
    planned: int = 0
    waits: bool = False
    last_error: str = ""
    last_error_ms: int = 0
    created_ms: int
    updated_ms: int

    @property
    def active(self) -> bool:
        """Whether its slots fire."""
        return self.enabled and not self.paused


class PlannedRow(NamedTuple):
    """A planned slot and the event that has planned it (JSON), None for a backfill."""

    firing: PlannedFiring
    event: Any


_MOVING: Final = (
    "state", "decided_ms", "next_fire_ms", "last_fired_ms", "last_slot_ms", "last_run_id", "fired", "planned", "waits",
    "last_error", "last_error_ms",
)  # fmt: skip
_COLUMNS: Final = (
    "workspace", "id", "name", "schedule_type", "schedule_expr", "timezone", "event", "document", "digest",
    "workflow_id", "owner", "miss_policy", "max_concurrent", "jitter_ms", "enabled", "paused", *_MOVING,
    "created_ms", "updated_ms",
)  # fmt: skip
_FIELDS: Final = ", ".join(_COLUMNS)
_KEYS: Final = 2  # of the columns
_SET: Final = ", ".join(f"{name} = ${number}" for number, name in enumerate(_COLUMNS, 1) if number > _KEYS)
_UPDATE: Final = f"UPDATE workflow_schedules SET {_SET} WHERE workspace = $1 AND id = $2"  # noqa: S608
_MOVE: Final = (
    f"UPDATE workflow_schedules SET {', '.join(f'{name} = ${n}' for n, name in enumerate(_MOVING, 3))} "  # noqa: S608
    "WHERE workspace = $1 AND id = $2"
)
_INSERT: Final = (
    f"INSERT INTO workflow_schedules ({_FIELDS}) VALUES ({placeholders(len(_COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (workspace, id) DO NOTHING"
)
_PLANNED_FIELDS: Final = "kind, key, slot_ms, due_ms, refusals, event"
_PLAN: Final = (
    f"INSERT INTO workflow_planned_firings (workspace, schedule_id, {_PLANNED_FIELDS}) "  # noqa: S608
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (workspace, schedule_id, kind, key) DO NOTHING"
)
_LIVE_RUNS: Final = f"""SELECT r.run_id, t.task_id IS NULL OR t.next_retry_ms = 0 AND t.status IN ({placeholders(len(TERMINAL), 3)})
    FROM workflow_schedule_runs r LEFT JOIN tasks t ON t.task_id = r.run_id
    WHERE r.workspace = $1 AND r.schedule_id = $2"""  # noqa: S608
_ENDED: Final = tuple(sorted(TERMINAL))


def _moving(stored: StoredSchedule) -> tuple[Any, ...]:
    return (
        _encoded(stored.state.to_json()), stored.state.decided_ms, stored.next_fire_ms, stored.last_fired_ms,
        stored.last_slot_ms, stored.last_run_id, stored.fired, stored.planned, int(stored.waits), stored.last_error,
        stored.last_error_ms,
    )  # fmt: skip


def _row(stored: StoredSchedule) -> tuple[Any, ...]:
    return (
        stored.workspace, stored.id, stored.name, stored.schedule_type, stored.schedule_expr, stored.timezone,
        stored.event, _encoded(stored.document), stored.digest, stored.workflow_id, stored.owner, stored.miss_policy,
        stored.max_concurrent, stored.jitter_ms, int(stored.enabled), int(stored.paused), *_moving(stored),
        stored.created_ms, stored.updated_ms,
    )  # fmt: skip


def _stored(row: Row) -> StoredSchedule:
    found = dict(zip(_COLUMNS, row, strict=True))
    del found["decided_ms"]
    for name in ("enabled", "paused", "waits"):
        found[name] = bool(found[name])
    found["document"] = json.loads(bytes(found["document"]))
    found["state"] = FiringState.from_json(json.loads(bytes(found["state"])))
    return StoredSchedule(**found)


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def timer_key(workspace: str, id: str) -> str:  # noqa: A002
    """Return the key of a schedule in `workflow_timers`; neither part has spaces."""
    return f"{workspace} {id}"


def insert(stored: StoredSchedule) -> Program[bool]:
    """Insert a schedule and its due moment; return False if there is one of this name."""
    count: int = yield Execute(_INSERT, _row(stored))
    if count:
        yield from _set_timer(stored)
        yield from _note_source(stored)
    return bool(count)


def update(stored: StoredSchedule) -> Program[None]:
    """Write a schedule and its due moment."""
    yield Execute(_UPDATE, _row(stored))
    yield from _set_timer(stored)
    yield from _note_source(stored)


def move(stored: StoredSchedule) -> Program[None]:
    """Write what firing changes of a schedule, and its due moment."""
    yield Execute(_MOVE, (stored.workspace, stored.id, *_moving(stored)))
    yield from _set_timer(stored)


def _note_source(stored: StoredSchedule) -> Program[None]:
    """Write which event of the gateway plans firings of a schedule."""
    taken = event_sources(stored.event) if stored.active else frozenset()
    yield from sources.note(sources.SCHEDULE, timer_key(stored.workspace, stored.id), stored.workspace, taken)


def _set_timer(stored: StoredSchedule) -> Program[None]:
    key = timer_key(stored.workspace, stored.id)
    if stored.next_fire_ms:
        yield Execute(
            "INSERT INTO workflow_timers (kind, key, due_ms) VALUES ($1, $2, $3) "
            "ON CONFLICT (kind, key) DO UPDATE SET due_ms = excluded.due_ms",
            (TIMER, key, stored.next_fire_ms),
        )
    else:
        yield Execute("DELETE FROM workflow_timers WHERE kind = $1 AND key = $2", (TIMER, key))


def load(workspace: str, id: str, *, lock: str = "") -> Program[StoredSchedule | None]:  # noqa: A002
    """Load a schedule; `lock` is a clause such as FOR UPDATE."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_schedules WHERE workspace = $1 AND id = $2{lock}",  # noqa: S608
        (workspace, id),
    )
    return _stored(rows[0]) if rows else None


def of_workspaces(workspaces: Sequence[str]) -> Program[list[StoredSchedule]]:
    """Load the schedules of these workspaces, by workspace and id."""
    wanted = tuple(dict.fromkeys(workspaces))
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_schedules WHERE workspace IN ({placeholders(len(wanted))}) "  # noqa: S608
        "ORDER BY workspace, id",
        wanted,
    )
    return list(map(_stored, rows))


def listed(
    workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[StoredSchedule]]:
    """Load schedules of these workspaces, by workspace and id, behind one if given."""
    select = f"SELECT {_FIELDS} FROM workflow_schedules WHERE workspace = $1"  # noqa: S608
    found = yield from rows_by_id(select, workspaces, limit, behind)
    return list(map(_stored, found))


def of_event(event: str, workspace: str) -> Program[list[StoredSchedule]]:
    """Load the active schedules that an event of a workspace plans a firing of."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_schedules WHERE event <> '' AND event = $1 "  # noqa: S608
        "AND workspace IN ($2, $3) AND enabled = 1 AND paused = 0 ORDER BY workspace, id",
        (event, workspace, EVERYWHERE),
    )
    return list(map(_stored, rows))


def count_of_event(event: str, workspace: str) -> Program[int]:
    """Count the schedules of a workspace that fire after an event."""
    rows: list[Row] = yield Fetch(
        "SELECT COUNT(*) FROM workflow_schedules WHERE event <> '' AND event = $1 AND workspace = $2",
        (event, workspace),
    )
    return int(rows[0][0])


def names_waited_for(names: Iterable[str]) -> Program[frozenset[str]]:
    """Return the names, of these, of events that plan firings."""
    wanted = tuple(dict.fromkeys(names))
    found: set[str] = set()
    for begin in range(0, len(wanted), NAMES_PAGE):
        page = rounded_up(wanted[begin : begin + NAMES_PAGE], 10)
        rows: list[Row] = yield Fetch(
            f"SELECT DISTINCT event FROM workflow_schedules WHERE event <> '' AND event IN ({placeholders(len(page))})",  # noqa: S608
            page,
        )
        found.update(name for (name,) in rows)
    return frozenset(found)


def delete(workspace: str, id: str) -> Program[bool]:  # noqa: A002
    """Delete a schedule with all that it has; return whether it was there."""
    count: int = yield Execute("DELETE FROM workflow_schedules WHERE workspace = $1 AND id = $2", (workspace, id))
    yield from sources.note(sources.SCHEDULE, timer_key(workspace, id), workspace, ())
    yield Execute("DELETE FROM workflow_timers WHERE kind = $1 AND key = $2", (TIMER, timer_key(workspace, id)))
    for table in ("workflow_planned_firings", "workflow_schedule_runs"):
        yield Execute(f"DELETE FROM {table} WHERE workspace = $1 AND schedule_id = $2", (workspace, id))  # noqa: S608
    return bool(count)


def due(now_ms: int, page: int, *, shared: bool) -> Program[list[tuple[str, str]]]:
    """Find (workspace, id) of due schedules, earliest first; lock their timers."""
    locked = " FOR UPDATE SKIP LOCKED" if shared else ""
    rows: list[Row] = yield Fetch(
        f"SELECT key FROM workflow_timers WHERE due_ms <= $1 AND kind = $2 ORDER BY due_ms LIMIT $3{locked}",  # noqa: S608
        (now_ms, TIMER, page),
    )
    return [(workspace, id) for workspace, _, id in (key.partition(" ") for (key,) in rows)]  # noqa: A001


def decided_after(moment_ms: int) -> Program[list[StoredSchedule]]:
    """Load the active schedules with slots that are decided after a moment."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_schedules WHERE decided_ms > $1 AND enabled = 1 AND paused = 0 "  # noqa: S608
        "ORDER BY workspace, id",
        (moment_ms,),
    )
    return list(map(_stored, rows))


# -- planned firings -------------------------------------------------------------------------------


def plan(workspace: str, id: str, firings: Iterable[PlannedFiring]) -> Program[None]:  # noqa: A002
    """Write slots that a backfill plans, but for those that are planned already."""
    encoded = _encoded(None)
    yield ExecuteMany(_PLAN, [(workspace, id, *firing, encoded) for firing in firings])


def plan_event(workspace: str, id: str, firing: PlannedFiring, event: Any) -> Program[bool]:  # noqa: A002
    """Write the slot that an event plans; return False if it has planned one already."""
    count: int = yield Execute(_PLAN, (workspace, id, *firing, _encoded(event)))
    return bool(count)


def count_planned(workspace: str, id: str) -> Program[int]:  # noqa: A002
    """Count the planned slots of a schedule."""
    rows: list[Row] = yield Fetch(
        "SELECT COUNT(*) FROM workflow_planned_firings WHERE workspace = $1 AND schedule_id = $2", (workspace, id)
    )
    return int(rows[0][0])


def due_planned(workspace: str, id: str, now_ms: int) -> Program[list[PlannedRow]]:  # noqa: A002
    """Read a page of planned slots whose moment has come, earliest first."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_PLANNED_FIELDS} FROM workflow_planned_firings "  # noqa: S608
        "WHERE workspace = $1 AND schedule_id = $2 AND due_ms <= $3 ORDER BY due_ms, slot_ms, key LIMIT $4",
        (workspace, id, now_ms, PLANNED_PAGE),
    )
    return [PlannedRow(PlannedFiring(*row[:5]), json.loads(bytes(row[5]))) for row in rows]


def first_planned(workspace: str, id: str, after_ms: int) -> Program[int]:  # noqa: A002
    """Return when the first planned slot after a moment is due, 0 for none."""
    rows: list[Row] = yield Fetch(
        "SELECT MIN(due_ms) FROM workflow_planned_firings WHERE workspace = $1 AND schedule_id = $2 AND due_ms > $3",
        (workspace, id, after_ms),
    )
    return rows[0][0] or 0


def drop_planned(workspace: str, id: str, firings: Iterable[PlannedFiring]) -> Program[None]:  # noqa: A002
    """Delete planned slots that are decided."""
    yield ExecuteMany(
        "DELETE FROM workflow_planned_firings WHERE workspace = $1 AND schedule_id = $2 AND kind = $3 AND key = $4",
        [(workspace, id, firing.kind, firing.key) for firing in firings],
    )


def drop_planned_until(workspace: str, id: str, now_ms: int) -> Program[int]:  # noqa: A002
    """Delete planned slots whose moment has come; return how many there were."""
    count: int = yield Execute(
        "DELETE FROM workflow_planned_firings WHERE workspace = $1 AND schedule_id = $2 AND due_ms <= $3",
        (workspace, id, now_ms),
    )
    return count


def refuse_planned(workspace: str, id: str, firings: Iterable[PlannedFiring]) -> Program[None]:  # noqa: A002
    """Count a refusal of each of these planned slots."""
    yield ExecuteMany(
        "UPDATE workflow_planned_firings SET refusals = refusals + 1 "
        "WHERE workspace = $1 AND schedule_id = $2 AND kind = $3 AND key = $4",
        [(workspace, id, firing.kind, firing.key) for firing in firings],
    )


# -- runs ------------------------------------------------------------------------------------------


def note_run(run_id: str, workspace: str, id: str) -> Program[None]:  # noqa: A002
    """Write that a schedule has started a task or an execution."""
    yield Execute(
        "INSERT INTO workflow_schedule_runs (run_id, workspace, schedule_id) VALUES ($1, $2, $3) "
        "ON CONFLICT (run_id) DO NOTHING",
        (run_id, workspace, id),
    )


def live_runs(workspace: str, id: str) -> Program[int]:  # noqa: A002
    """Count the runs of a schedule that have not ended; forget the others."""
    rows: list[Row] = yield Fetch(_LIVE_RUNS, (workspace, id, *_ENDED))
    ended = [(run_id,) for run_id, has_ended in rows if has_ended]
    if ended:
        yield ExecuteMany("DELETE FROM workflow_schedule_runs WHERE run_id = $1", ended)
    return len(rows) - len(ended)


def end_run(run_id: str) -> Program[StoredSchedule | None]:
    """Forget a run that has ended; return its schedule if a slot waits for that."""
    rows: list[Row] = yield Fetch(
        "DELETE FROM workflow_schedule_runs WHERE run_id = $1 RETURNING workspace, schedule_id", (run_id,)
    )
    if not rows:
        return None
    found = yield from load(*rows[0])
    return found if found is not None and found.waits and found.active else None


def due_now(stored: StoredSchedule, now_ms: int) -> Program[StoredSchedule]:
    """Have a schedule looked at now."""
    moved = replace(stored, next_fire_ms=now_ms)
    yield Execute(
        "UPDATE workflow_schedules SET next_fire_ms = $3 WHERE workspace = $1 AND id = $2",
        (stored.workspace, stored.id, now_ms),
    )
    yield from _set_timer(moved)
    return moved
