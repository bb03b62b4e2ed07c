"""Shows an execution with its steps: what each has done, and what it waits for.

A step is shown as a whole first, in the order of the document (of a function: in that in which they
have begun), then its items or rounds as far as they were begun. Rows of the database say what has
happened to a place, the execution's state says what has no row: steps that were not begun, and
counts of items.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.form import FORM
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.happenings import NO_ITEM, StepPlace
from aether_trio.model.workflows.state import DELAYED, WORDS, GraphState, StepProgress, StepTimer
from aether_trio.services.tasks.transaction import results, task_rows
from aether_trio.services.workflows.documents.json_values import write_list, write_object
from aether_trio.services.workflows.executions import budgets, execution_rows
from aether_trio.services.workflows.executions.execution_rows import UNDO, ExecutionRow, StepRow
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.stored import definitions
from aether_trio.storage.base import Program

STEPS_SHOWN: Final = 1_000
"""Rows of steps and items in one answer."""
DATA_SHOWN: Final = 100
"""Steps in one answer whose input and result are shown."""
FORKS_SHOWN: Final = 20
"""Newest forks of an execution in one answer."""
TASKS_SHOWN: Final = 50
"""Tasks of open steps that one answer looks up."""
_QUEUED: Final = (StoredStatus.PENDING, StoredStatus.ASSIGNED, StoredStatus.STARTING)
KINDS: Final = ("action", "workflow", "wait", "ask", "fail", "continue_as")
"""What a step may be, as the key of its document says; without one it is `compute`."""


def execution_view(row: ExecutionRow, only: StepPlace | None = None) -> Program[ExecutionView]:
    """Read an execution with all its steps, or with the step or item `only`."""
    current = (yield from execution_rows.load(row.execution_id)) or row
    stored = yield from definitions.load(current.defined_in, current.workflow_id, current.version)
    rows = yield from execution_rows.steps(current.execution_id, STEPS_SHOWN, only=only)
    wanted = [StepPlace(one.step, one.item) for one in rows if only is not None or one.item == NO_ITEM]
    if current.kind == "function":
        rows.sort(key=lambda one: one.started_ms)
    data = yield from execution_rows.data_of_places(current.execution_id, wanted[:DATA_SHOWN])
    tasks: dict[str, TaskRow] = {}
    for one in rows:
        if one.task_id and not one.completed_ms and len(tasks) < TASKS_SHOWN:
            task = yield from task_rows.load(one.task_id)
            if task is not None:
                tasks[one.task_id] = task
    retries = yield from task_rows.retries([one.task_id for one in rows if one.task_id])
    rows = [replace(one, attempt=one.attempt + retries.get(one.task_id, 0)) for one in rows]
    shown = _shown_execution(current)
    result: bytes | None = None
    if current.status == "completed":
        task = yield from task_rows.load(current.execution_id)
        stored_result = None if task is None else (yield from results.load(task))
        result = b"null" if stored_result is None else stored_result.data or b"null"
    if current.status == "queued" and (run := (yield from flow_rows.load_run(current.execution_id))) is not None:
        waits = "more" if run.waits == flow_rows.GATHERED else "turn"
        shown["WaitsFor"] = {"for": waits, "keys": json.loads(run.shown)}
    if (fork := (yield from execution_rows.fork_of(current.execution_id))) is not None:
        shown["Metadata"] |= {"forked_from": fork.origin, "forked_at": fork.step}
    if forks := (yield from execution_rows.forks_of(current.execution_id, FORKS_SHOWN)):
        shown["Metadata"]["forks"] = [{"execution_id": execution_id, "step": step} for execution_id, step in forks]
    used = yield from budgets.totals(current.execution_id)
    if used:
        shown["Usage"] = {name: one.total for name, one in used.items()}
    return ExecutionView(current, b"" if stored is None else stored.document, shown, result, rows, data, tasks)


class ExecutionView:
    """What is read of an execution; `size` says about how many bytes `write` works on."""

    def __init__(
        self,
        row: ExecutionRow,
        document: bytes,
        shown: dict[str, Any],
        result: bytes | None,
        rows: Sequence[StepRow],
        data: Mapping[StepPlace, tuple[bytes | None, bytes | None]],
        tasks: Mapping[str, TaskRow],
    ) -> None:
        """`result` is None for an execution that shows none."""
        self.size = len(document) + len(row.state) + 500 * len(rows)
        self._row = row
        self._document = document
        self._shown_execution = shown
        self._result = result
        self._rows = rows
        self._data = data
        self._tasks = tasks

    def write(self, only: StepPlace | None = None) -> bytes | None:
        """Return it as an answer's JSON; None if there is no such step."""
        row = self._row
        steps = _Steps(row, self._document, self._data, self._tasks).written(self._rows, only)
        if only is not None and not steps:
            return None
        written = {"TriggerData": row.trigger_data, **({} if self._result is None else {"Result": self._result})}
        return write_object({}, execution=write_object(self._shown_execution, **written), steps=write_list(steps))


class _Steps:
    """Puts together what rows, state, document and tasks say of the steps."""

    def __init__(
        self,
        row: ExecutionRow,
        document: bytes,
        data: Mapping[StepPlace, tuple[bytes | None, bytes | None]],
        tasks: Mapping[str, TaskRow],
    ) -> None:
        self._row = row
        self._documents = _step_documents(document) if document else {}
        is_graph = row.kind == "graph" and row.state
        self._state = GraphState.from_json(json.loads(row.state)) if is_graph else GraphState.new()
        self._data = data
        self._tasks = tasks

    def written(self, rows: Sequence[StepRow], only: StepPlace | None) -> list[bytes]:
        """Return the JSON of steps in the document's order, each followed by its items."""
        by_step: dict[str, list[StepRow]] = {}
        for one in rows:
            by_step.setdefault(one.step, []).append(one)
        names = list(self._documents) if only is None else [only.step]
        others = [name for name in by_step if name not in names and name.removesuffix(UNDO) not in names]
        names += sorted(others, key=lambda name: min(row.started_ms for row in by_step[name]))
        found: list[bytes] = []
        for name in names:
            whole = [one for one in by_step.get(name, ()) if one.item == NO_ITEM]
            if only is None or only.item == NO_ITEM:
                found += [self._shown(whole[0])] if whole else self._unbegun(name)
            found += [self._shown(one) for one in by_step.get(name, ()) if one.item != NO_ITEM]
            found += [self._shown(one) for one in by_step.get(name + UNDO, ())]
        return found

    def _unbegun(self, name: str) -> list[bytes]:
        """Show a step that has no row as a whole, as the state knows it."""
        if name not in self._documents and name not in self._state.steps:
            return []
        status = self._state.step_status(StepPlace(name))
        return [self._shown(StepRow(name, NO_ITEM, status, self._state.attempt(StepPlace(name)), "", 0, 0, "", ""))]

    def _shown(self, row: StepRow) -> bytes:
        place = StepPlace(row.step, row.item)
        given, result = self._data.get(place, (None, None))
        name = row.step.removesuffix(UNDO)
        progress = self._state.steps.get(row.step)
        task = self._tasks.get(row.task_id)
        found = _shown_step(self._row.execution_id, row)
        if self._row.kind == "graph":
            found["Kind"] = kind_of_step(self._documents.get(name, {}))
        else:
            found["Kind"] = "step" if given is None else (_json(given) or {}).get("kind", "step")
        if task is not None and task.status is StoredStatus.RUNNING:
            found["Worker"] = task.assigned_to
        if row.item == NO_ITEM and progress is not None and (counts := item_counts(progress)):
            found["Items"] = counts
        if not self._row.completed_ms and not row.completed_ms and row.step == name:
            waits = self._waits_for(row, found["Kind"], progress, task)
            if self._row.kind == "function" and (not waits or waits["for"] == "time"):
                waits = _function_waits(row, given)
            if waits:
                found["WaitsFor"] = waits
        return write_object(found, InputData=given, OutputData=result)

    def _waits_for(
        self, row: StepRow, kind: str, progress: StepProgress | None, task: TaskRow | None
    ) -> dict[str, Any]:
        """Return what a step that has not ended waits for; {} for nothing to name."""
        timers = [
            one
            for one in self._state.timers.get(row.step, ())
            if row.item == NO_ITEM or one.first <= row.item <= one.last
        ]
        if progress is not None and progress.items is None and progress.code == DELAYED:
            return {"for": "retry", **_until(timers, "retry")}
        if task is not None and task.waits_for is not None and (match := task.waits_for.input_match.get(FORM)):
            form = _json(match.encode()) or {}
            return {"for": "answer", **form, "of": task.waits_for.expected_principal, **_until(timers, "timeout")}
        if task is not None and task.next_retry_ms and task.status is StoredStatus.FAILED:
            return {"for": "retry", "until": go_time(task.next_retry_ms), "error": task.error}
        if task is not None and task.status in _QUEUED:
            return {"for": "worker", "pool": task.target_implementation}
        if row.status not in ("running", "waiting") or (row.item == NO_ITEM and self._has_items(row.step)):
            return {}
        if kind == "workflow" and row.task_id:
            return {"for": "execution", "execution_id": row.task_id}
        if kind != "wait" or row.status != "waiting":
            return {}
        wait = self._documents.get(row.step, {}).get("wait")
        wait = wait if isinstance(wait, dict) else {}
        for name in ("signal", "event"):
            if isinstance(wait.get(name), str):
                return {"for": name, name: wait[name], **_until(timers, "timeout")}
        return {"for": "time", **_until(timers, "over")}

    def _has_items(self, step: str) -> bool:
        document = self._documents.get(step, {})
        return "for_each" in document or "while" in document


def kind_of_step(document: Mapping[str, Any]) -> str:
    """Return what a step of a document is, as one of KINDS or `compute`."""
    return next((kind for kind in KINDS if document.get(kind) is not None), "compute")


def item_counts(progress: StepProgress) -> dict[str, int]:
    """Count the items of a step by their status; {} for a step without items."""
    if progress.items is None:
        return {}
    counts: Counter[str] = Counter()
    for code, number in Counter(progress.items.codes).items():
        counts[WORDS[code]] += number
    return dict(counts)


def _until(timers: Sequence[StepTimer], kind: str) -> dict[str, str]:
    due = [one.due_ms for one in timers if one.kind == kind]
    return {"until": go_time(min(due))} if due else {}


def _function_waits(row: StepRow, given: bytes | None) -> dict[str, Any]:
    """Return what a step of a function that has no task of a worker waits for."""
    asked = (_json(given) if given else None) or {}
    match asked.get("kind"):
        case "wait":
            until_ms = row.started_ms + asked["timeout_ms"] if asked.get("timeout_ms") else 0
            name = "event" if "event" in asked else "signal"
            return {"for": name, name: asked[name], **({"until": go_time(until_ms)} if until_ms else {})}
        case "sleep":
            return {"for": "time", "until": go_time(asked.get("until_ms") or row.started_ms + asked.get("for_ms", 0))}
        case "run" if row.task_id:
            return {"for": "execution", "execution_id": row.task_id}
    return {}


def _step_documents(document: bytes) -> dict[str, dict[str, Any]]:
    """Return the documents of a workflow's steps by id, with their keys in lower case."""
    found: dict[str, dict[str, Any]] = {}
    for step in json.loads(document).get("steps") or ():
        lowered = {str(key).lower(): value for key, value in step.items()} if isinstance(step, dict) else {}
        if isinstance(lowered.get("id"), str):
            found[lowered["id"]] = lowered
    return found


def listed_execution(row: ExecutionRow) -> bytes:
    """Return an execution as lists show it."""
    return write_object(_shown_execution(row), TriggerData=row.trigger_data)


def _shown_execution(row: ExecutionRow) -> dict[str, Any]:
    """Return an execution with the names of the reference, without its input."""
    return {
        "ExecutionID": row.execution_id,
        "WorkflowID": row.workflow_id,
        "WorkflowVersion": row.version,
        "Workspace": row.workspace,
        "Status": row.status,
        "StartedAt": go_time(row.started_ms),
        "CompletedAt": go_time(row.completed_ms) if row.completed_ms else None,
        "ErrorMessage": row.error,
        "Metadata": {"owner": row.owner, "parent": row.parent_id, "entries": row.entries},
    }


def _shown_step(execution_id: str, row: StepRow) -> dict[str, Any]:
    """Return a step or item with the names of the reference, without its data."""
    found = {
        "ExecutionID": execution_id,
        "StepID": row.step,
        "Status": row.status,
        "StartedAt": go_time(row.started_ms) if row.started_ms else None,
        "CompletedAt": go_time(row.completed_ms) if row.completed_ms else None,
        "ErrorMessage": row.error,
        "ErrorType": row.error_type,
        "Attempt": row.attempt,
        "TaskID": row.task_id,
    }
    if row.item != NO_ITEM:
        found["Item"] = row.item
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
