"""What GET shows of a task beside its row: result, input, payload, why it waits.

All of it is metadata whose names begin with _ (docs/wire.md). A task without these costs no
statement.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Final

from aether_trio.model.limits import MIB
from aether_trio.model.tasks import Mode, StoredStatus, TaskRow
from aether_trio.model.tasks.result import NO_RESULT
from aether_trio.model.tasks.status import PAUSED
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.text import line
from aether_trio.services.tasks.transaction import payloads, results, startup, unused_inputs
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.storage.base import Fetch, Program, Row

INPUT: Final = "_input"
QUEUED_BECAUSE: Final = "_queued_because"
PAYLOAD: Final = "_payload_base64"
PAYLOAD_BYTES: Final = "_payload_bytes"
PAYLOAD_PAGE: Final = "payload"
"""The `filter.page_token` of a GET that asks for the payload, from byte `filter.offset` on."""
PAYLOAD_PART: Final = 1 * MIB
"""Bytes of a payload in one answer."""
_QUEUED: Final = frozenset({StoredStatus.PENDING, StoredStatus.ASSIGNED, StoredStatus.STARTING})
_WORKERS: Final = """SELECT identity, workspace, live, capacity FROM task_workers
    WHERE pooled = 1 AND implementation = $1 AND (workspace = $2 OR workspace = '')"""
_NAMED: Final = 3
"""Tasks that a line names of those for which a task waits."""


def has_details(task: TaskRow) -> bool:
    """Return whether a GET of this task has to read more than its row."""
    has_result = task.result_bytes != NO_RESULT and task.status is StoredStatus.COMPLETED
    return has_result or bool(task.input_offset) or task.status in _QUEUED or task.status in PAUSED


def are_small(task: TaskRow) -> bool:
    """Return whether few short rows are read, so that the event loop may wait."""
    in_pool = task.status is StoredStatus.PENDING and task.mode is Mode.POOL
    return not (in_pool or task.input_offset or task.result_bytes > results.SMALL_BYTES)


def read(task: TaskRow, context: Context) -> Program[dict[str, str]]:
    """Read the metadata that a GET adds to the row of a task."""
    found: dict[str, str] = {}
    if (result := (yield from results.load(task))) is not None:
        name, text = result.shown
        found[name] = text
    if task.input_offset and task.status is not StoredStatus.WAITING_INPUT:
        used = yield from unused_inputs.used(task)
        if used is not None:
            found[INPUT] = json.dumps(
                {
                    "by": used.sender,
                    "metadata": dict(used.metadata),
                    "payload_base64": base64.b64encode(used.payload).decode(),
                },
                ensure_ascii=False,
                separators=(",", ":"),
            )
    if because := (yield from _why_it_waits(task, context)):
        found[QUEUED_BECAUSE] = because
    return found


def read_payload(task: TaskRow, offset: int) -> Program[dict[str, str]]:
    """Read a part of a task's payload, from byte `offset` on, and its whole size."""
    if task.task_type == AGENT_STARTUP:
        return {}
    payload = yield from payloads.load(task.task_id)
    part = payload[max(offset, 0) : max(offset, 0) + PAYLOAD_PART]
    return {PAYLOAD: base64.b64encode(part).decode(), PAYLOAD_BYTES: str(len(payload))}


def _why_it_waits(task: TaskRow, context: Context) -> Program[str]:
    """Return one line on why a task does not run now; "" if it runs or has ended."""
    match task.status:
        case StoredStatus.PENDING:
            return (yield from _why_it_is_queued(task, context))
        case StoredStatus.ASSIGNED:
            return f"it was given to {task.assigned_to}, which has not begun it"
        case StoredStatus.STARTING:
            return f"{task.assigned_to} is starting the agent"
        case StoredStatus.WAITING_DEPENDENCY:
            return (yield from _what_it_waits_for(task))
        case StoredStatus.WAITING_AUTHORITY:
            wait = task.waits_for
            return f"waits until authority request {wait.authority_request_id} is decided" if wait is not None else ""
        case StoredStatus.WAITING_INPUT | StoredStatus.HIBERNATED:
            return _until(task)
        case _:
            return ""


def _until(task: TaskRow) -> str:
    """Return what wakes a task that waits for input, or sleeps."""
    wait = task.waits_for
    if wait is None:
        return ""
    if task.status is StoredStatus.HIBERNATED:
        what = "it hibernates until it is resumed"
    elif (form := wait.form) is not None:
        what = f"waits for the answer to: {line(form.question, 200)}"
    elif wait.wake_ms:
        what = "it is paused"
    else:
        what = "waits for an input"
    if wait.expected_principal:
        what += f", from {line(wait.expected_principal, 200)}"
    return f"{what}, until {_time(wait.wake_ms)}" if wait.wake_ms else what


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms since 1970"


def _why_it_is_queued(task: TaskRow, context: Context) -> Program[str]:
    if task.task_type == AGENT_STARTUP:
        return (yield from startup.why_it_waits(task))
    if task.mode is Mode.POOL:
        return (yield from _why_the_pool_is_full(task, context))
    name = task.target if task.mode is Mode.TARGETED else task.creator
    rows: list[Row] = yield Fetch("SELECT live, capacity FROM task_workers WHERE identity = $1", (name,))
    if rows and task.mode is Mode.TARGETED:
        return f"{name} is busy: it has {rows[0][0]} of {rows[0][1]} tasks"
    if task.mode is not Mode.TARGETED:
        return f"its creator, {name}, has not begun it"
    start = yield from startup.current_start(name)
    if start is None:
        return f"{name} is not connected"
    if start.status is StoredStatus.PENDING:
        return f"{name} is to be started: {(yield from startup.why_it_waits(start))}"
    return f"{name} is being started"


def _why_the_pool_is_full(task: TaskRow, context: Context) -> Program[str]:
    pool = task.target_implementation
    found: list[Row] = yield Fetch(_WORKERS, (pool, task.workspace))
    if not found:
        return f"no worker of the pool {pool} is connected to the workspace {task.workspace}"
    able = [row for row in found if row[1] or context.may_serve(row[0], task.workspace)]
    if not able:
        return f"no worker of the pool {pool} may read the workspace {task.workspace}"
    busy = sum(live >= capacity for _, _, live, capacity in able)
    if busy < len(able):
        return f"a worker of the pool {pool} is about to get it"
    return (
        f"the only worker of the pool {pool} is busy"
        if busy == 1
        else f"all {busy} workers of the pool {pool} are busy"
    )


def _what_it_waits_for(task: TaskRow) -> Program[str]:
    found: list[Row] = yield Fetch(
        "SELECT depends_on FROM task_dependents WHERE task_id = $1 ORDER BY depends_on LIMIT $2",
        (task.task_id, _NAMED + 1),
    )
    names = [name for (name,) in found]
    wait = task.waits_for
    if not names:
        return "waits for tasks that have ended"
    if len(names) == 1:
        return f"waits for task {names[0]}"
    which = "the first of tasks" if wait is not None and wait.wake_on_any else "tasks"
    more = ", and more" if len(names) > _NAMED else ""
    return f"waits for {which} {', '.join(names[:_NAMED])}{more}"
