"""Shows tasks and their events to people, and as JSON to programs."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from aether_trio.cli.output import is_terminal, print_facts, print_json, print_table
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.requests import RequestEvent
from aether_trio.client.operations.task_events import ChildChanged, StatusChanged, TaskEvent, TaskProgressed
from aether_trio.client.operations.task_values import FORM, QUESTION_ID, RETRY, Task

_SHORT: Final = 60
DEAD_MESSAGE: Final = "dead_message"
"""The type of a task that is a message which crashed its agent."""
_KINDS: Final[Mapping[type, str]] = {
    StatusChanged: "status_changed",
    TaskProgressed: "progress",
    ChildChanged: "child_lifecycle",
    RequestEvent: "authority_request",
}
"""The words of JSON for the kinds of events."""
_PAUSED: Final = frozenset(
    {TaskStatus.WAITING_INPUT, TaskStatus.WAITING_AUTHORITY, TaskStatus.WAITING_DEPENDENCY, TaskStatus.HIBERNATED}
)


def as_json(task: Task) -> dict[str, Any]:
    """Return a task as JSON: enums in lower case, ISO 8601 times, null for unset."""
    return {name: _plain(value) for name, value in _fields_of(task).items()}


_SHOWN_OTHERWISE: Final = frozenset({
    "_assignment", "_dead_letter", "_input", "_next_attempt_ms", "_outcome", "_queued_because", "_result",
    "_result_base64", "_result_bytes", "_result_checkpoint",
})  # fmt: skip
"""Metadata of the gateway that is shown as fields."""


def _fields_of(task: Task) -> dict[str, Any]:
    """Return what is shown of a task, in order; `attempt` counts from 1."""
    fields: dict[str, Any] = {}
    for name, value in asdict(task).items():
        match name:
            case "failures":
                fields["attempt"] = task.attempt
            case "metadata":
                fields[name] = {key: text for key, text in task.metadata.items() if key not in _SHOWN_OTHERWISE}
            case _:
                fields[name] = value
    fields["outcome"] = task.outcome
    fields["next_attempt_at"] = task.next_attempt_at
    fields["queued_because"] = task.queued_because
    fields["dead_letter"] = task.metadata.get("_dead_letter", "")
    fields["used_input"] = None
    if (used := task.used_input) is not None:
        fields["used_input"] = {"by": used.by, "metadata": used.metadata}
    fields["question"] = None if task.question is None else asdict(task.question)
    if (encoded := task.metadata.get("_result_base64")) is not None:
        fields["result_base64"] = encoded
    elif task.result_checkpoint:
        fields["result_checkpoint"] = task.result_checkpoint
    elif "_result" in task.metadata:
        fields["result"] = task.result
    return fields


def event_as_json(event: TaskEvent) -> dict[str, Any]:
    """Return a task's event as a JSON object; `kind` says what its `event` is."""
    told = {name: _plain(value) for name, value in asdict(event).items() if name != "subscription_id"}
    return {"kind": _KINDS.get(type(event.event), "unknown"), **told}


def _plain(value: Any) -> Any:
    match value:
        case enum.Enum():
            return value.name.lower()
        case datetime():
            return value.isoformat()
        case Mapping():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def print_list(tasks: Sequence[Task], empty: str) -> None:
    """Print a table of tasks, one line for each."""
    columns = ("task", "type", "status", "attempt", "priority", "worker", "created", "error")
    print_table(columns, [_cells(task) for task in tasks], empty, whole=("task", "type", "worker"))


def _cells(task: Task) -> tuple[str, ...]:
    return (
        task.task_id,
        task.task_type,
        state_text(task),
        attempt_text(task),
        task.priority.name.lower(),
        _whose(task),
        _when(task.created_at),
        _short(task.error),
    )


def print_one(task: Task, *, as_object: bool) -> None:
    """Print a task's fields that are set, one line for each; or a JSON object."""
    if as_object:
        print_json(as_json(task), indent=2)
        return
    rows: list[tuple[str, str]] = []
    for name, value in _fields_of(task).items():
        if name == "status":
            rows.append((name, state_text(task)))
        elif name == "attempt":
            rows.append((name, attempt_text(task)))
        elif name == "result":
            rows.append((name, _short(json.dumps(value, ensure_ascii=False))))
        elif name == "result_base64":
            rows.append(("result", f"{task.metadata.get('_result_bytes', '?')} bytes, see `aether tasks wait`"))
        elif name == "queued_because" and value:
            rows.append(("why it waits", value))
        elif name == "metadata" and task.task_type == DEAD_MESSAGE:
            rows += [(f"message {key.strip('_')}", text) for key, text in value.items() if text != task.error]
        elif name == "wait_spec" and task.question is not None:
            shown = {key: one for key, one in value["input_match"].items() if key not in (FORM, QUESTION_ID)}
            rows.append((name.replace("_", " "), _text({**value, "input_match": shown})))
        elif name not in _TOLD and value not in ("", None, (), {}, 0):
            rows.append((name.replace("_", " "), _text(value)))
    print_facts(rows)


def _whose(task: Task) -> str:
    """Return the worker of a task, and its target if that is another one."""
    if not task.target_topic or task.target_topic == task.assigned_to:
        return task.assigned_to
    return f"{task.assigned_to} for {task.target_topic}".lstrip()


def attempt_text(task: Task) -> str:
    """Return which attempt of how many a task is at, as "2/3"."""
    return f"{task.attempt}/{task.max_attempts}"


_TOLD: Final = frozenset({"max_attempts", "outcome", "next_attempt_at"})
"""Fields that are shown with another one."""


def state_text(task: Task) -> str:
    """Return a task's status, and of a failed one what follows, in words."""
    text = status_text(task.status)
    outcome = outcome_text(task)
    return f"{text}, {outcome}" if outcome else text


def outcome_text(task: Task) -> str:
    """Return what follows the failure of a task, as "retry 2 of 3 in 4 s"; or ""."""
    if task.outcome != RETRY:
        return task.outcome.replace("_", " ")
    at = task.next_attempt_at
    left = 0.0 if at is None else max((at - datetime.now(UTC)).total_seconds(), 0.0)
    return f"retry {task.failures + 1} of {task.max_attempts} in {math.ceil(left)} s"


def status_text(status: TaskStatus) -> str:
    """Return a task's status in words."""
    return status.name.lower().replace("_", " ")


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return _when(value)
    plain = _plain(value)
    if isinstance(plain, dict):
        return " ".join(f"{name}={one}" for name, one in plain.items() if one not in ("", None, [], {}, 0, False))
    if isinstance(plain, list):
        return " ".join(map(str, plain))
    return str(plain)


def _when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT or not is_terminal() else line[: _SHORT - 3] + "..."


def event_line(event: TaskEvent, outcome: str = "") -> str:
    """Return a task's event as one line for a person; `outcome` follows a failure."""
    at = event.emitted_at or datetime.now(UTC)
    line = f"{at.astimezone().strftime('%H:%M:%S.%f')[:-3]}  {event.task_id}  {_happening(event)}"
    return f"{line}  ({outcome})" if outcome else line


def _happening(event: TaskEvent) -> str:
    match event.event:
        case StatusChanged(from_status=before, to_status=after, reason=reason):
            said = reason and after not in _PAUSED  # of those it is the status in another word
            return f"{status_text(before)} -> {status_text(after)}" + (f"  {reason}" if said else "")
        case TaskProgressed(state=state, progress=progress, message=text):
            share = "" if progress < 0 else f"{progress:.0%}  "
            return f"progress  {share}{text or state}".rstrip()
        case ChildChanged(child_task_id=child, child_status=status, lifecycle=word):
            # The word of an end is "completed", also when the child has failed.
            return f"child {child} {'is created' if word == 'spawned' else f'is {status_text(status)}'}"
        case None:
            return "something that this version does not know"
        case other:
            return f"authority request {other.kind}" if hasattr(other, "kind") else "authority request"


def state_line(task: Task) -> str:
    """Return a task's state when a command begins to watch it, as one line."""
    at = datetime.now(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    worker = f", {task.assigned_to}" if task.assigned_to else ""
    error = f"  {task.error}" if task.error else ""
    return f"{at}  {task.task_id}  is {state_text(task)} (attempt {attempt_text(task)}{worker}){error}"
