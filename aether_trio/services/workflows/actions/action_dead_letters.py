"""Dead letters of actions of machines and joins (event_dead_letters.py).

An action that is refused undoes nothing of what has led to it. Its dead letter is a task of type
`workflow_action` in the DLQ; the payload is JSON of what the action is computed over, or what it
is. RETRY does the action once again, for its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aether_trio.model.tasks import TaskRow
from aether_trio.services.tasks.transaction import payloads
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions import event_dead_letters
from aether_trio.services.workflows.actions.event_dead_letters import NewDeadLetter
from aether_trio.services.workflows.actions.performer import ActionRefused
from aether_trio.services.workflows.documents.json_values import JsonError, write_json
from aether_trio.storage.base import Program

ACTION_FAILED: Final = "workflow_action"
"""The type of the tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAction:
    """An action that was not done, and why.

    `kind` is machine or join, `name` its name. `place` says which action it is, and `over` what it
    is computed over: both are JSON. `key` is that of the action's cause.
    """

    kind: str
    name: str
    key: str
    workspace: str
    owner: str
    reason: str
    error_type: str
    place: Mapping[str, Any]
    over: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedAction:
    """An action that is to be done again; `key` is new for each time."""

    key: str
    place: Mapping[str, Any]
    over: bytes


PerformAgain = Callable[[Transaction, RepeatedAction], Program[None]]
"""Does an action again. Raises ActionRefused, and has written nothing then."""


def bury(tx: Transaction, failed: FailedAction) -> Program[None]:
    """Write the dead letter of an action."""
    try:
        payload = write_json(failed.over)
    except JsonError:
        payload = b"null"
    letter = NewDeadLetter(
        key=f"dead\0{failed.key}",
        task_type=ACTION_FAILED,
        workspace=failed.workspace,
        owner=failed.owner,
        reason=failed.reason,
        error_type=failed.error_type,
        metadata={failed.kind: failed.name},
        envelope={"kind": failed.kind, "place": failed.place},
        payload=payload,
    )
    yield from event_dead_letters.write(tx, letter)


def retry(kinds: Mapping[str, PerformAgain], tx: Transaction, task: TaskRow) -> Program[None]:
    """Do the action of a dead letter again, which is PENDING."""
    envelope = event_dead_letters.envelope_of(task)
    over = yield from payloads.load(task.task_id)
    action = RepeatedAction(key=f"{task.task_id} {task.events}", place=envelope["place"], over=over)
    problem = error_type = ""
    try:
        yield from kinds[envelope["kind"]](tx, action)
    except ActionRefused as error:
        problem, error_type = str(error), error.error_type
    yield from event_dead_letters.settle(tx, task, problem, error_type)
