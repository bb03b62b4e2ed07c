"""Rows of executions, their steps and their history, in portable SQL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, NamedTuple

from aether_trio.model.tasks import TaskRow, task
from aether_trio.model.text import storable
from aether_trio.model.workflows.happenings import ITEMS, NO_ITEM, StepPlace
from aether_trio.services.tasks.transaction.interface import LeftEvent
from aether_trio.services.workflows.stored import timers
from aether_trio.services.workflows.stored.listed_rows import PAGE_BYTES, values_of
from aether_trio.storage.base import Deferred, Execute, Fetch, FetchOne, Program, Row, placeholders

"""Bytes of the entries of a history, or of the inputs of a list, that are read at once."""
_DATED: Final = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
"""An id that begins with a moment (model/ids.py)."""
UNDO: Final = "~"
"""What the name of a compensation's row ends with: no step's id has this character."""


@dataclass(slots=True)
class ExecutionRow:
    """The stored row of an execution; times are Unix ms, 0 for what has not happened."""

    execution_id: str
    workspace: str
    defined_in: str  # the workspace of its definition, or *
    workflow_id: str
    version: int
    owner: str  # identity text: the one for which it acts
    status: str
    state: bytes
    trigger_data: bytes
    parent_id: str = ""
    root_id: str = ""  # the execution above all others, or itself
    correlation_id: str = ""
    depth: int = 0
    generation: int = 0
    entries: int = 0
    bytes: int = 0
    due_ms: int = 0
    started_ms: int = 0
    completed_ms: int = 0
    error: str = ""
    hops: str = ""  # what has led to it (model/workflows/hops.py)
    kind: str = "graph"  # or function


@dataclass(frozen=True, slots=True)
class StepRow:
    """The stored row of a step or item that was begun, without its result."""

    step: str
    item: int
    status: str
    attempt: int
    task_id: str
    started_ms: int
    completed_ms: int
    error: str
    error_type: str


class StoredFork(NamedTuple):
    """A row of `workflow_forks`."""

    execution_id: str
    origin: str
    step: str
    at_ms: int
    kept: bytes  # JSON: that part of the origin's state


COLUMNS: Final = tuple(one.name for one in fields(ExecutionRow))
STEP_COLUMNS: Final = tuple(one.name for one in fields(StepRow))
FIELDS: Final = ", ".join(COLUMNS)
STEP_FIELDS: Final = ", ".join(STEP_COLUMNS)
_OF_AN_EXECUTION: Final = (
    "workflow_steps", "workflow_history", "workflow_arrivals", "workflow_waits", "workflow_interests",
    "workflow_taken_events", "workflow_forks", "workflow_usage",
    "workflow_usage_totals", "workflow_made_operations", "workflow_executions",
)  # fmt: skip
_LOAD: Final = f"SELECT {FIELDS} FROM workflow_executions WHERE execution_id = $1"  # noqa: S608
FEW_LEFT: Final = 50
"""Events of steps for the log of an execution that are read with it; more are read apart."""
_LOAD_STEP: Final = f"""SELECT {", ".join(f"t.{name}" for name in task.COLUMNS)},
    (SELECT COUNT(*) FROM task_watchers w WHERE w.task_id = t.task_id),
    {", ".join(f"e.{name}" for name in COLUMNS)},
    {", ".join(f"r.{name}" for name in task.COLUMNS)},
    (SELECT COUNT(*) FROM task_watchers w WHERE w.task_id = r.task_id),
    (SELECT COUNT(*) FROM workflow_steps s WHERE s.execution_id = e.execution_id AND s.step = $4 AND s.item = $5
        AND s.completed_ms = 0 AND s.task_id = t.task_id),
    l.ids, l.moments, l.events
    FROM tasks t LEFT JOIN (workflow_executions e JOIN tasks r ON r.task_id = e.execution_id)
    ON e.execution_id = $2 AND t.parent_task_id = $2
    AND e.status = 'running' AND e.kind = 'graph' AND e.parent_id = ''
    AND r.workflow = $3 AND r.awaited = 0 AND r.tokens = 0 AND r.input_offset = 0 AND r.grants = 0
    LEFT JOIN LATERAL (SELECT array_agg(id) AS ids, array_agg(at_ms) AS moments, array_agg(event) AS events FROM
        (SELECT id, at_ms, event FROM task_child_events WHERE task_id = e.execution_id ORDER BY id
        LIMIT {FEW_LEFT}) AS few) AS l ON TRUE
    WHERE t.task_id = $1"""  # noqa: S608
_INSERT: Final = f"INSERT INTO workflow_executions ({FIELDS}) VALUES ({placeholders(len(COLUMNS))})"  # noqa: S608
_CHANGING: Final = ("status", "state", "generation", "entries", "bytes", "due_ms", "completed_ms", "error")
_CHANGES: Final = ", ".join(f"{name} = ${number}" for number, name in enumerate(_CHANGING, start=2))
_SAVE: Final = f"UPDATE workflow_executions SET {_CHANGES} WHERE execution_id = $1"  # noqa: S608
_all_of: Final = attrgetter(*COLUMNS)
changing: Final = attrgetter(*_CHANGING)
"""Returns the values that change of an execution's row, in one order."""
_BEGIN_STEP: Final = """INSERT INTO workflow_steps
    (execution_id, step, item, status, attempt, task_id, started_ms, completed_ms, error, error_type, input)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 0, '', '', $8)
    ON CONFLICT (execution_id, step, item) DO UPDATE SET status = excluded.status, attempt = excluded.attempt,
    task_id = excluded.task_id, started_ms = excluded.started_ms, completed_ms = 0, error = '', error_type = '',
    input = excluded.input, result = NULL"""
_END_STEP: Final = """UPDATE workflow_steps SET status = $5, completed_ms = $6, error = $7, error_type = $8, result = $9
    WHERE task_id = $1 AND execution_id = $2 AND step = $3 AND item = $4 AND completed_ms = 0 RETURNING task_id"""
_END_OPEN_STEP: Final = """UPDATE workflow_steps
    SET status = $5, completed_ms = $6, error = $7, error_type = $8, result = $9
    WHERE execution_id = $1 AND step = $2 AND item = $3 AND task_id = $4 AND completed_ms = 0 RETURNING 1"""
_STEP_KEY: Final = 3
"""The first arguments of writes of `workflow_steps` that name the row."""
_MARK: Final = """INSERT INTO workflow_steps
    (execution_id, step, item, status, attempt, task_id, started_ms, completed_ms, error, error_type)
    VALUES ($1, $2, $3, $4, 0, '', $5, $6, $7, $8)
    ON CONFLICT (execution_id, step, item) DO UPDATE SET status = excluded.status,
    completed_ms = excluded.completed_ms, error = excluded.error, error_type = excluded.error_type"""
_KEEP: Final = """INSERT INTO workflow_steps
    (execution_id, step, item, status, attempt, task_id, started_ms, completed_ms, error, error_type, result)
    VALUES ($1, $2, $3, 'completed', 0, '', $4, $4, '', '', $5)
    ON CONFLICT (execution_id, step, item) DO UPDATE SET status = excluded.status,
    completed_ms = excluded.completed_ms, error = '', error_type = '', result = excluded.result"""


def load(execution_id: str) -> Program[ExecutionRow | None]:
    """Load the row of an execution; None if there is none."""
    rows: list[Row] = yield FetchOne(_LOAD, (execution_id,))
    return _row(rows[0]) if rows else None


class ApartExecution(NamedTuple):
    """A running execution whose end changes no other row than its own task's."""

    row: ExecutionRow
    task: TaskRow
    watchers: int
    """How many nodes follow its task."""
    is_open: bool
    """Whether the step's task is the one that its row names."""
    left: Sequence[LeftEvent] | None
    """What its steps have left for its log; None if that is much."""


class LoadedStep(NamedTuple):
    """The task of a step, with its execution if that ends apart."""

    task: TaskRow
    watchers: int
    above: ApartExecution | None


def load_step(task_id: str, execution_id: str, part: int, place: StepPlace) -> Program[LoadedStep | None]:
    """Load the task of a step, on a shared database; None if there is none.

    `part`: what the task of an execution that ends apart has to be to workflows.
    """
    rows: list[Row] = yield FetchOne(_LOAD_STEP, (task_id, execution_id, part, *place), own=True)
    if not rows:
        return None
    columns, own, count = rows[0], len(task.COLUMNS), len(COLUMNS)
    step, watchers, columns = TaskRow.from_row(columns[:own]), columns[own], columns[own + 1 :]
    if columns[0] is None:
        return LoadedStep(step, watchers, None)
    row, above, more = _row(columns[:count]), TaskRow.from_row(columns[count : count + own]), columns[count + own :]
    follow, is_open, *left = more
    events = [LeftEvent(*one) for one in zip(*(values or () for values in left), strict=True)]
    few = sorted(events) if len(events) < FEW_LEFT else None
    return LoadedStep(step, watchers, ApartExecution(row, above, follow, bool(is_open), few))


def _row(values: Row) -> ExecutionRow:
    row = ExecutionRow(*values)
    row.state, row.trigger_data = bytes(row.state), bytes(row.trigger_data)
    return row


def newest(
    workspaces: Sequence[str],
    statuses: Sequence[str],
    workflow_id: str,
    limit: int,
    before: tuple[int, str] | None = None,
) -> Program[list[ExecutionRow]]:
    """Load the newest executions of workspaces, by statuses and workflow if given.

    `before`: only those behind an execution with this (start in Unix ms, id). Each status is read
    along an index, however many executions have others. Fewer come if their inputs are large.
    """
    found: list[Row] = []
    for workspace in dict.fromkeys(workspaces):
        where, args = "workspace = $1", [workspace]
        if workflow_id:
            where, args = where + " AND workflow_id = $2", [workspace, workflow_id]
        for status in statuses or (yield from values_of("workflow_executions", "status", where, args)):
            condition = f"{where} AND status = ${len(args) + 1}"
            values: tuple[str | int, ...] = (*args, status)
            if before is not None:
                condition += f" AND (started_ms, execution_id) < (${len(values) + 1}, ${len(values) + 2})"
                values = (*values, *before)
            rows: list[Row] = yield Fetch(
                f"SELECT started_ms, execution_id, LENGTH(trigger_data) FROM workflow_executions WHERE {condition} "  # noqa: S608
                f"ORDER BY started_ms DESC, execution_id DESC LIMIT ${len(values) + 1}",
                (*values, limit),
            )
            found += rows
    wanted: list[str] = []
    size = 0
    for _, execution_id, length in sorted(found, reverse=True)[:limit]:
        wanted.append(execution_id)
        if size > PAGE_BYTES:
            break
        size += length
    if not wanted:
        return []
    loaded: list[Row] = yield Fetch(
        f"SELECT {FIELDS} FROM workflow_executions WHERE execution_id IN ({placeholders(len(wanted))}) "  # noqa: S608
        "ORDER BY started_ms DESC, execution_id DESC",
        wanted,
    )
    return [_row(row) for row in loaded]


def started(execution_id: str) -> Program[int | None]:
    """Return when an execution began, from its id if it is forgotten; None: no id.

    Unix ms.
    """
    rows: list[Row] = yield FetchOne(
        "SELECT execution_id, started_ms FROM workflow_executions WHERE execution_id = $1", (execution_id,)
    )
    if rows:
        return int(rows[0][1])
    found = _DATED.fullmatch(execution_id)
    return int(found[1] + found[2], 16) if found else None


def insert(row: ExecutionRow) -> Program[None]:
    """Insert the row of a new execution."""
    yield Deferred("workflow_executions", _INSERT, _all_of(row))


def save(row: ExecutionRow) -> Program[None]:
    """Write what changes of an execution."""
    yield Deferred("workflow_executions", _SAVE, (row.execution_id, *changing(row)))


def begin(row: ExecutionRow) -> Program[None]:
    """Write that an execution begins which was queued, with its input."""
    yield Execute(
        "UPDATE workflow_executions SET status = $2, state = $3, trigger_data = $4, started_ms = $5 "
        "WHERE execution_id = $1",
        (row.execution_id, row.status, row.state, row.trigger_data, row.started_ms),
    )


def save_version(row: ExecutionRow) -> Program[None]:
    """Write on which version an execution goes on, and for whom it acts."""
    yield Execute(
        "UPDATE workflow_executions SET defined_in = $2, version = $3, owner = $4 WHERE execution_id = $1",
        (row.execution_id, row.defined_in, row.version, row.owner),
    )


def record(row: ExecutionRow, at_ms: int, entry: bytes) -> Program[None]:
    """Append an entry to the history of an execution, whose row counts it."""
    row.entries += 1
    row.bytes += len(entry)
    yield Deferred(
        "workflow_history",
        "INSERT INTO workflow_history (execution_id, number, at_ms, entry) VALUES ($1, $2, $3, $4)",
        (row.execution_id, row.entries, at_ms, entry),
    )


def history(execution_id: str, after: int, limit: int) -> Program[list[tuple[int, int, bytes]]]:
    """Read entries of a history behind a number: (number, Unix ms, entry).

    They have PAGE_BYTES in all, or are one.
    """
    sizes: list[Row] = yield Fetch(
        "SELECT LENGTH(entry) FROM workflow_history WHERE execution_id = $1 AND number > $2 ORDER BY number LIMIT $3",
        (execution_id, after, limit),
    )
    total, fitting = 0, 0
    for (size,) in sizes:
        total += size
        if fitting and total > PAGE_BYTES:
            break
        fitting += 1
    if not fitting:
        return []
    found: list[Row] = yield Fetch(
        "SELECT number, at_ms, entry FROM workflow_history WHERE execution_id = $1 AND number > $2 "
        "ORDER BY number LIMIT $3",
        (execution_id, after, fitting),
    )
    return [(number, at_ms, bytes(entry)) for number, at_ms, entry in found]


def is_going(row: ExecutionRow) -> Program[bool]:
    """Return whether the history of an execution is being deleted; see `delete_part`."""
    if not row.entries:
        return False
    rows: list[Row] = yield Fetch(
        "SELECT 1 FROM workflow_history WHERE execution_id = $1 AND number = 1", (row.execution_id,)
    )
    return not rows


def retry_problem(execution_id: str) -> Program[str]:
    """Return why an ended execution may not be tried again; else "".

    What is left of a history does not say which steps a function has completed.
    """
    row = yield from load(execution_id)
    if row is None or not (yield from is_going(row)):
        return ""
    return f"execution {execution_id} is being deleted, as it was kept for its time: run its workflow instead"


def begin_step(
    execution_id: str, place: StepPlace, attempt: int, task_id: str, now_ms: int, status: str, given: bytes | None
) -> Program[None]:
    """Write that a step or item is begun by a task."""
    args = execution_id, *place, status, attempt, task_id, now_ms, given
    yield Deferred("workflow_steps", _BEGIN_STEP, args, key=_STEP_KEY)


def end_step(
    execution_id: str,
    place: StepPlace,
    task_id: str,
    now_ms: int,
    status: str,
    error: str,
    error_type: str,
    result: bytes | None,
    *,
    is_open: bool = False,
) -> Program[bool]:
    """Write the end of a step's task; return False if that is not the step's any more.

    `is_open`: this transaction has read that it is.
    """
    ended = status, now_ms, storable(error), storable(error_type), result
    if is_open:
        of_open = (execution_id, *place, task_id, *ended)
        yield Deferred("workflow_steps", _END_OPEN_STEP, of_open, returns_row=True, key=_STEP_KEY)
        return True
    args = (task_id, execution_id, *place, *ended)
    rows: list[Row] = yield FetchOne(_END_STEP, args)
    return bool(rows)


def mark_step(
    execution_id: str, place: StepPlace, now_ms: int, status: str, error: str, error_type: str
) -> Program[None]:
    """Write the status of a step that no task of its row tells of."""
    ended_ms = 0 if status in ("pending", "running", "waiting") else now_ms
    args = execution_id, *place, status, now_ms, ended_ms, storable(error), storable(error_type)
    yield Deferred("workflow_steps", _MARK, args, key=_STEP_KEY)


def keep_result(execution_id: str, place: StepPlace, now_ms: int, result: bytes) -> Program[None]:
    """Write the result of a step that the interpreter has made."""
    yield Deferred("workflow_steps", _KEEP, (execution_id, *place, now_ms, result), key=_STEP_KEY)


def copy_steps(origin: str, execution_id: str, whole: Sequence[str], partly: Sequence[str]) -> Program[None]:
    """Copy rows of steps of another execution: all, or those of completed items."""
    for names, which in (
        (whole, "completed_ms > 0"),
        (partly, f"((item >= 0 AND status = 'completed') OR item <= {ITEMS})"),
    ):
        if names:
            yield Execute(
                "INSERT INTO workflow_steps (execution_id, step, item, status, attempt, task_id, started_ms, "  # noqa: S608
                "completed_ms, error, error_type, input, result) SELECT CAST($1 AS TEXT), step, item, status, attempt, "
                "task_id, started_ms, completed_ms, error, error_type, input, result FROM workflow_steps "
                f"WHERE execution_id = $2 AND {which} AND step IN ({placeholders(len(names), 3)})",
                (execution_id, origin, *names),
            )


def insert_fork(fork: StoredFork) -> Program[None]:
    """Write that an execution is a fork of another one."""
    yield Execute(
        "INSERT INTO workflow_forks (execution_id, origin, step, at_ms, kept) VALUES ($1, $2, $3, $4, $5)", fork
    )


def fork_of(execution_id: str) -> Program[StoredFork | None]:
    """Read of which execution this one is a fork; None if it is none."""
    rows: list[Row] = yield Fetch(
        "SELECT execution_id, origin, step, at_ms, kept FROM workflow_forks WHERE execution_id = $1", (execution_id,)
    )
    return StoredFork(*rows[0])._replace(kept=bytes(rows[0][4])) if rows else None


def forks_of(execution_id: str, limit: int) -> Program[list[tuple[str, str]]]:
    """Read the newest forks of an execution: (execution, step)."""
    rows: list[Row] = yield Fetch(
        "SELECT execution_id, step FROM workflow_forks WHERE origin = $1 ORDER BY at_ms DESC, execution_id DESC LIMIT $2",
        (execution_id, limit),
    )
    return [(row[0], row[1]) for row in rows]


def result_of(execution_id: str, place: StepPlace) -> Program[bytes | None]:
    """Read the result of a step or item; None without one."""
    rows: list[Row] = yield Fetch(
        "SELECT result FROM workflow_steps WHERE execution_id = $1 AND step = $2 AND item = $3", (execution_id, *place)
    )
    return None if not rows or rows[0][0] is None else bytes(rows[0][0])


def attempt_and_result(execution_id: str, place: StepPlace) -> Program[tuple[int, bytes | None] | None]:
    """Read the attempt of a step or item, and its result; None without a row."""
    rows: list[Row] = yield Fetch(
        "SELECT attempt, result FROM workflow_steps WHERE execution_id = $1 AND step = $2 AND item = $3",
        (execution_id, *place),
    )
    return None if not rows else (rows[0][0], _bytes(rows[0][1]))


def items_of(execution_id: str, step: str) -> Program[list[tuple[int, str, str, str, bytes | None]]]:
    """Read the items of a step: (item, status, error, error type, result), in order."""
    rows: list[Row] = yield Fetch(
        "SELECT item, status, error, error_type, result FROM workflow_steps "
        "WHERE execution_id = $1 AND step = $2 AND item >= 0 ORDER BY item",
        (execution_id, step),
    )
    return [(*row[:4], None if row[4] is None else bytes(row[4])) for row in rows]


def task_of(execution_id: str, place: StepPlace) -> Program[str]:
    """Read which task works on a step or item now; "" if none does."""
    rows: list[Row] = yield Fetch(
        "SELECT task_id FROM workflow_steps WHERE execution_id = $1 AND step = $2 AND item = $3 AND completed_ms = 0",
        (execution_id, *place),
    )
    return rows[0][0] if rows else ""


def steps(execution_id: str, limit: int, only: StepPlace | None = None) -> Program[list[StepRow]]:
    """Read the rows of an execution's steps and items, by name and item.

    Where there are more, whole steps come first, then items that wait or have failed. `only` is a
    step with its items and compensations, or one item.
    """
    where = ""
    args: tuple[str | int, ...] = ()
    if only is not None:
        where, args = " AND step IN ($3, $4)", (only.step, only.step + UNDO)
        if only.item != NO_ITEM:
            where, args = where + " AND item = $5", (*args, only.item)
    rows: list[Row] = yield Fetch(
        f"SELECT {STEP_FIELDS} FROM workflow_steps WHERE execution_id = $1 AND item > {ITEMS}{where} "  # noqa: S608
        f"ORDER BY CASE WHEN item = {NO_ITEM} THEN 0 WHEN status IN ('waiting', 'failed') THEN 1 ELSE 2 END, "
        "step, item LIMIT $2",
        (execution_id, limit, *args),
    )
    return sorted((StepRow(*row) for row in rows), key=lambda row: (row.step, row.item))


def inputs_and_results(execution_id: str, names: Sequence[str]) -> Program[dict[str, tuple[Any, Any]]]:
    """Read what these steps were given and gave, for those that do their work once."""
    if not names:
        return {}
    rows: list[Row] = yield Fetch(
        f"SELECT step, input, result FROM workflow_steps WHERE execution_id = $1 AND item = {NO_ITEM} "  # noqa: S608
        f"AND step IN ({placeholders(len(names), 2)})",
        (execution_id, *names),
    )
    return {step: (given, result) for step, given, result in rows}


def data_of_places(
    execution_id: str, places: Sequence[StepPlace]
) -> Program[dict[StepPlace, tuple[bytes | None, bytes | None]]]:
    """Read what these steps and items were given and gave.

    They have PAGE_BYTES in all, or are one: those that do not fit are left out.
    """
    size = 0
    found: dict[StepPlace, tuple[bytes | None, bytes | None]] = {}
    for item in {place.item for place in places}:
        asked = [place.step for place in places if place.item == item]
        rows: list[Row] = yield Fetch(
            "SELECT step, COALESCE(LENGTH(input), 0) + COALESCE(LENGTH(result), 0) FROM workflow_steps "  # noqa: S608
            f"WHERE execution_id = $1 AND item = $2 AND step IN ({placeholders(len(asked), 3)})",
            (execution_id, item, *asked),
        )
        sizes: dict[str, int] = {row[0]: row[1] for row in rows}
        names: list[str] = []
        for step in asked:
            own = sizes.get(step, 0)
            if size + own <= PAGE_BYTES or not (found or names):
                size += own
                names.append(step)
        if not names:
            continue
        rows = yield Fetch(
            "SELECT step, input, result FROM workflow_steps WHERE execution_id = $1 AND item = $2 "  # noqa: S608
            f"AND step IN ({placeholders(len(names), 3)})",
            (execution_id, item, *names),
        )
        found |= {StepPlace(step, item): (_bytes(given), _bytes(result)) for step, given, result in rows}
    return found


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def arrive(execution_id: str, entry: bytes) -> Program[None]:
    """Write that an item has ended; its execution takes that in later."""
    sql = "INSERT INTO workflow_arrivals (execution_id, entry) VALUES ($1, $2)"
    yield Deferred("workflow_arrivals", sql, (execution_id, entry))


def take_arrivals(execution_id: str, limit: int) -> Program[list[bytes]]:
    """Take the oldest ends of items of an execution."""
    rows: list[Row] = yield Fetch(
        "SELECT id, entry FROM workflow_arrivals WHERE execution_id = $1 ORDER BY id LIMIT $2", (execution_id, limit)
    )
    if rows:
        ids = tuple(row[0] for row in rows)
        yield Execute(f"DELETE FROM workflow_arrivals WHERE id IN ({placeholders(len(ids))})", ids)  # noqa: S608
    return [bytes(entry) for _, entry in rows]


def delete_part(execution_id: str, most: int) -> Program[int]:
    """Delete rows of an execution of which many are to be deleted.

    The oldest entries of its history go first. Return how many rows; `most`: there may be more.
    """
    deleted = 0
    for table, key, order in (
        ("workflow_history", "number", "ORDER BY number"),
        ("workflow_usage", "task_id, epoch, name", ""),
    ):
        if deleted < most:
            deleted += yield Execute(
                f"DELETE FROM {table} WHERE execution_id = $1 AND ({key}) IN "  # noqa: S608
                f"(SELECT {key} FROM {table} WHERE execution_id = $1 {order} LIMIT $2)",
                (execution_id, most - deleted),
            )
    return deleted


def delete(execution_id: str) -> Program[None]:
    """Delete an execution with its rows in all tables."""
    for table in _OF_AN_EXECUTION:
        yield Execute(f"DELETE FROM {table} WHERE execution_id = $1", (execution_id,))  # noqa: S608
    yield Execute("DELETE FROM workflow_families WHERE root_id = $1", (execution_id,))
    for kind in ("execution", "function"):
        yield from timers.set_timer(kind, execution_id, 0)
