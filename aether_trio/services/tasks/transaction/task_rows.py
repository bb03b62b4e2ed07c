"""Load, insert, save and delete rows of tasks, in SQL that both databases take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from aether_trio.model.tasks.status import TERMINAL
from aether_trio.model.tasks.task import COLUMNS, TaskRow
from aether_trio.services.tasks.transaction import payloads
from aether_trio.storage.base import Deferred, Execute, Fetch, FetchOne, Program, Row, Value, placeholders, rounded_up

FIELDS: Final = ", ".join(COLUMNS)
_MARKS: Final = placeholders(len(COLUMNS))
READ_AT_ONCE: Final = 496
"""Tasks of one statement."""
_OF_A_TASK: Final = (
    "tasks", "task_payloads", "task_attempts", "task_events", "task_child_events", "task_watchers", "task_dependents",
    "task_tokens", "task_descents", "authority_waits", "task_sessions", "task_inputs", "task_used_inputs",
    "task_results", "task_states", "task_cancelled_parents",
)  # fmt: skip
QUEUES: Final = "queues"
"""What statements read that ask which tasks wait (`FetchOne.reads`)."""
_INSERT: Final = f"""INSERT INTO tasks ({FIELDS}, payload) VALUES ({_MARKS}, ${len(COLUMNS) + 1})
    ON CONFLICT (task_id) DO NOTHING"""  # noqa: S608
_INSERT_AND_LEAVE: Final = f"""WITH made AS ({_INSERT} RETURNING task_id)
    INSERT INTO task_child_events (task_id, at_ms, event)
    SELECT ${len(COLUMNS) + 2}::text, ${len(COLUMNS) + 3}::bigint, ${len(COLUMNS) + 4}::bytea FROM made"""  # noqa: S608
_INSERT_FRESH: Final = f"INSERT INTO tasks ({FIELDS}, payload) VALUES ({_MARKS}, ${len(COLUMNS) + 1}) RETURNING 1"  # noqa: S608
_LOAD: Final = f"SELECT {FIELDS} FROM tasks WHERE task_id = $1"  # noqa: S608
_LOAD_WATCHED: Final = f"""SELECT {FIELDS}, (SELECT COUNT(*) FROM task_watchers w WHERE w.task_id = tasks.task_id)
    FROM tasks WHERE task_id = $1"""  # noqa: S608


class OvertakenError(Exception):
    """A task's row changed since this transaction read it, which is a bug."""


def load(task_id: str) -> Program[TaskRow | None]:
    """Load the row of the task with this id; None if there is none."""
    rows: list[Row] = yield FetchOne(_LOAD, (task_id,))
    return TaskRow.from_row(rows[0]) if rows else None


def load_watched(task_id: str) -> Program[tuple[TaskRow | None, int]]:
    """Load the row of a task, and how many nodes follow its events."""
    rows: list[Row] = yield FetchOne(_LOAD_WATCHED, (task_id,), own=True)
    return (TaskRow.from_row(rows[0][:-1]), rows[0][-1]) if rows else (None, 0)


def retries(task_ids: Sequence[str]) -> Program[dict[str, int]]:
    """Read how often tasks were tried again, of those that were."""
    found: dict[str, int] = {}
    for first in range(0, len(task_ids), READ_AT_ONCE):
        some = rounded_up(task_ids[first : first + READ_AT_ONCE], 16)
        rows: list[Row] = yield Fetch(
            f"SELECT task_id, retry_count FROM tasks WHERE task_id IN ({placeholders(len(some))}) AND retry_count > 0",  # noqa: S608
            some,
        )
        found.update((row[0], row[1]) for row in rows)
    return found


def select(where: str, args: Sequence[Value]) -> Program[list[TaskRow]]:
    """Load the tasks that match an SQL condition, with its ORDER BY and LIMIT."""
    rows: list[Row] = yield Fetch(f"SELECT {FIELDS} FROM tasks WHERE {where}", args)  # noqa: S608
    return [TaskRow.from_row(row) for row in rows]


def select_either(one: str, other: str, args: Sequence[Value]) -> Program[list[TaskRow]]:
    """Load tasks that match one of two SQL conditions, each with ORDER BY and LIMIT."""
    sql = " UNION ALL ".join(
        f"SELECT * FROM (SELECT {FIELDS} FROM tasks WHERE {where}) AS {name}"  # noqa: S608
        for name, where in (("one", one), ("other", other))
    )
    rows: list[Row] = yield Fetch(sql, args)
    return [TaskRow.from_row(row) for row in rows]


def load_with_payloads(task_ids: Sequence[str]) -> Program[list[tuple[TaskRow, bytes | None]]]:
    """Load the rows and short payloads of tasks; None: it is long, or there is none."""
    some = rounded_up(task_ids, 16)
    sql = f"SELECT {FIELDS}, payload FROM tasks WHERE task_id IN ({placeholders(len(some))})"  # noqa: S608
    rows: list[Row] = yield Fetch(sql, some)
    return [(TaskRow.from_row(row[:-1]), row[-1]) for row in rows]


def insert(task: TaskRow, payload: bytes, left: tuple[str, int, bytes] | None = None) -> Program[bool]:
    """Insert the row of a new task; return False if an earlier run has inserted it.

    `left` is an event for the parent's log (child_events.INSERT), inserted in the same statement;
    only on a shared database.
    """
    inline = payloads.inline_part(payload)
    sql, more = (_INSERT, ()) if left is None else (_INSERT_AND_LEAVE, left)
    count: int = yield Execute(sql, (*task.values(), inline, *more))
    if count and inline is None:
        yield from payloads.insert_large(task.task_id, payload)
    return bool(count)


def insert_fresh(task: TaskRow, payload: bytes) -> Program[None]:
    """Insert the row of a task whose id is new for certain, up to the commit."""
    inline = payloads.inline_part(payload)
    leaves = "" if task.queue else QUEUES
    yield Deferred("tasks", _INSERT_FRESH, (*task.values(), inline), returns_row=True, leaves=leaves)
    if inline is None:
        yield from payloads.insert_large(task.task_id, payload)


@lru_cache(maxsize=256)
def _update(names: tuple[str, ...]) -> str:
    sets = ", ".join(f"{name} = ${number}" for number, name in enumerate(names, start=4))
    return f"UPDATE tasks SET {sets} WHERE task_id = $1 AND status = $2 AND epoch = $3"  # noqa: S608


def save(before: TaskRow, after: TaskRow, *, shared: bool = False) -> Program[None]:
    """Write a task's changed columns; on a `shared` database up to the commit.

    Raises OvertakenError, or the engine's error of a missed write, if the row is newer.
    """
    changes = before.differences(after)
    if not changes:
        return
    args = (before.task_id, before.status.value, before.epoch, *changes.values())
    if shared:
        leaves = "" if before.queue or after.queue else QUEUES
        yield Deferred("tasks", f"{_update(tuple(changes))} RETURNING 1", args, returns_row=True, leaves=leaves)
        return
    count: int = yield Execute(_update(tuple(changes)), args)
    if count != 1:
        raise OvertakenError(
            f"the row of task {before.task_id} changed meanwhile: it is not {before.status} at epoch {before.epoch}"
        )


def mark_granted(task_id: str) -> Program[bool]:
    """Note that grants end with a task; return False if it has ended or is gone."""
    ended = tuple(sorted(status.value for status in TERMINAL))
    marks = placeholders(len(ended), 2)
    count: int = yield Execute(
        f"UPDATE tasks SET grants = 1 WHERE task_id = $1 AND (next_retry_ms > 0 OR status NOT IN ({marks}))",  # noqa: S608
        (task_id, *ended),
    )
    return bool(count)


def delete(task_id: str) -> Program[None]:
    """Delete a task with its rows in all tables."""
    for table in _OF_A_TASK:
        yield Execute(f"DELETE FROM {table} WHERE task_id = $1", (task_id,))  # noqa: S608


def delete_all(task_ids: Sequence[str]) -> Program[None]:
    """Delete tasks with their rows in all tables, with one statement for each table."""
    for table in _OF_A_TASK if task_ids else ():
        yield Execute(f"DELETE FROM {table} WHERE task_id IN ({placeholders(len(task_ids))})", tuple(task_ids))  # noqa: S608


def resolve_dead_letter(task_id: str, now_ms: int, by: str, notes: str) -> Program[int]:
    """Mark a task's open dead letter as resolved; return how many there were: 0 or 1."""
    count: int = yield Execute(
        "UPDATE task_dead_letters SET resolved_ms = $2, resolved_by = $3, notes = $4 WHERE task_id = $1 AND resolved_ms = 0",
        (task_id, now_ms, by, notes),
    )
    return count


def latest_epoch(task_id: str, worker: str) -> Program[int | None]:
    """Return the number of a worker's latest former assignment of a task, or None."""
    rows: list[Row] = yield Fetch(
        "SELECT MAX(epoch) FROM task_attempts WHERE task_id = $1 AND worker = $2", (task_id, worker)
    )
    epoch: int | None = rows[0][0]
    return epoch
