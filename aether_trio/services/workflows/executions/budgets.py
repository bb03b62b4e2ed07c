"""What executions have used, and the question that a used up budget asks.

A worker reports `usage.NAME` numbers in the metadata of its progress: totals of its attempt, of
which the highest counts. They are summed up over all attempts of all steps, items and workflows
below an execution. An execution whose budget is used up is paused, and asks whether to go on with
as much again; the answer resumes or ends it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from aether_trio.model.tasks import Move, TaskRow, Wait
from aether_trio.model.tasks.form import FORM
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import shown
from aether_trio.model.workflows.happenings import StepPlace
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.performer import create_task, dated_id
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.questions import new_question
from aether_trio.storage.base import Execute, Fetch, Program, Row

PREFIX: Final = "usage."
MOST_NAMES: Final = 20
MAX_NAME_CHARS: Final = 100
"""Of the name of a usage."""
PLACE: Final = StepPlace("~budget")
"""Where the question is: no step's id has this character."""
GO_ON: Final = "go on"
END: Final = "end it"
USED_UP: Final = "BUDGET"
"""The error type of an execution that a person has ended as its budget is used up."""
HOUR_MS: Final = 3_600_000


class Used(NamedTuple):
    """What an execution has used of something, and may use (0: as its budget says)."""

    total: float
    allowance: float


def read_usage(metadata: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Read the numbers of a report, and what is wrong with others, or ""."""
    found: dict[str, float] = {}
    problem = ""
    for key, text in metadata.items():
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            problem = f"{shown(key)} is no name for a usage: it has up to {MAX_NAME_CHARS} characters"
        elif not math.isfinite(value) or value < 0:
            problem = f"{shown(key)} is {shown(text)}, and has to be a number that is not below 0"
        elif len(found) >= MOST_NAMES:
            problem = f"a report has at most {MOST_NAMES} usages"
        else:
            found[name] = value
    return found, problem


def note(execution_id: str, task: TaskRow, name: str, value: float) -> Program[float]:
    """Note what an attempt has used in all; return how much more that is."""
    rows: list[Row] = yield Fetch(
        "SELECT value FROM workflow_usage WHERE task_id = $1 AND epoch = $2 AND name = $3",
        (task.task_id, task.epoch, name),
    )
    before: float = rows[0][0] if rows else 0.0
    if value <= before:
        return 0.0
    yield Execute(
        "INSERT INTO workflow_usage (execution_id, task_id, epoch, name, value) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (task_id, epoch, name) DO UPDATE SET value = excluded.value",
        (execution_id, task.task_id, task.epoch, name, value),
    )
    return value - before


def add(execution_id: str, name: str, more: float) -> Program[Used]:
    """Add to what an execution has used; return how much that is."""
    rows: list[Row] = yield Fetch(
        "INSERT INTO workflow_usage_totals (execution_id, name, total, allowance) VALUES ($1, $2, $3, 0) "
        "ON CONFLICT (execution_id, name) DO UPDATE SET total = workflow_usage_totals.total + excluded.total "
        "RETURNING total, allowance",
        (execution_id, name, more),
    )
    return Used(*rows[0])


def totals(execution_id: str) -> Program[dict[str, Used]]:
    """Read what an execution has used."""
    rows: list[Row] = yield Fetch(
        "SELECT name, total, allowance FROM workflow_usage_totals WHERE execution_id = $1 ORDER BY name",
        (execution_id,),
    )
    return {name: Used(total, allowance) for name, total, allowance in rows}


def grant(execution_id: str, budget: Mapping[str, float]) -> Program[None]:
    """Allow an execution as much again of all that it has used up."""
    for name, used in (yield from totals(execution_id)).items():
        # A version to which it was moved may bound other things.
        if name in budget and used.total >= (used.allowance or budget[name]):
            yield Execute(
                "UPDATE workflow_usage_totals SET allowance = $3 WHERE execution_id = $1 AND name = $2",
                (execution_id, name, used.total + budget[name]),
            )


def ask(tx: Transaction, row: ExecutionRow, reason: str) -> Program[None]:
    """Ask whether an execution is to go on, unless that is asked already."""
    if (yield from execution_rows.task_of(row.execution_id, PLACE)):
        return
    form = {"question": f"{reason}. Go on with as much again?", "choices": [GO_ON, END]}
    wait = Wait(input_match={FORM: write_json(form).decode()})
    metadata = {"workflow": "true", "execution_id": row.execution_id, "step_id": PLACE.step}
    now_ms = tx.context.now_ms
    task_id = dated_id(now_ms, f"budget\0{row.execution_id}\0{row.generation}\0{row.entries}")
    yield from create_task(tx, new_question(tx, row, task_id, wait, metadata, WorkflowPart.BUDGET), b"")
    yield from execution_rows.begin_step(row.execution_id, PLACE, 1, task_id, now_ms, "waiting", write_json(form))


def close(tx: Transaction, execution_id: str) -> Program[None]:
    """Withdraw the question of an execution that has ended, if there is one."""
    task_id = yield from execution_rows.task_of(execution_id, PLACE)
    task = (yield from task_rows.load(task_id)) if task_id else None
    if task is not None and not task.is_final:
        yield from tx.apply(task, Move.CANCEL, tx.facts(reason=f"execution {execution_id} has ended"))
