"""Dead letters of events: tasks in the DLQ, which act again when they are retried.

| type | what has failed | RETRY |
|---|---|---|
| workflow_rule | a rule, for an event | that rule acts on that event again, as it is by then |
| workflow_trigger | the start of a workflow by an event | its newest active version is started |
| workflow_machine | a machine, for an event | the machine takes that event again, as it is by then |
| workflow_event | the whole event, by a defect or its content | all that follows it is done again |

The payload is that of the event; its reason is the task's error. No worker is ever given one. Its
workspace is that of the event, so readers of that workspace see it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aether_trio.model.tasks import Mode, StoredStatus, TaskRow
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import encodable, line
from aether_trio.services.tasks.transaction import payloads, startup, task_rows
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.performer import dated_id
from aether_trio.services.workflows.events.taken_events import TakenEvent, read_event
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.storage.base import Deferred, Execute, Program
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

RULE_FAILED: Final = "workflow_rule"
TRIGGER_FAILED: Final = "workflow_trigger"
MACHINE_FAILED: Final = "workflow_machine"
EVENT_FAILED: Final = "workflow_event"
"""The types of the tasks."""
CATEGORY: Final = "workflow_event"
REASON_CHARACTERS: Final = 3_500
_KINDS: Final = {RULE_FAILED: "rule", TRIGGER_FAILED: "workflow", MACHINE_FAILED: "machine"}
_ENVELOPE: Final = "envelope"
"""A launch parameter, which is never shown: the event but for its payload."""


@dataclass(frozen=True, slots=True)
class FailedReaction:
    """What did not follow an event, and why.

    `event` is the name that has matched, "" for a whole event. `key` is the rule's id, or the
    workflow's workspace and id with a slash; `title` names it for people. `owner` may see the
    event, and act again; "" if it may not.
    """

    task_type: str
    event: str
    reason: str
    error_type: str
    key: str = ""
    title: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeadLetter:
    """A dead letter as it is written; `key` makes its id, `envelope` is never shown."""

    key: str
    task_type: str
    workspace: str
    owner: str
    reason: str
    error_type: str
    metadata: Mapping[str, str]
    envelope: Mapping[str, Any]
    payload: bytes


def bury(tx: Transaction, event: TakenEvent, failed: FailedReaction) -> Program[None]:
    """Write the dead letter of an event."""
    metadata = {"event": failed.event, "source": event.principal}
    if failed.key:
        metadata[_KINDS[failed.task_type]] = failed.key
    if failed.title:
        metadata["name"] = failed.title
    letter = NewDeadLetter(
        key="\0".join(("dead", event.topic, str(event.offset), failed.task_type, failed.event, failed.key)),
        task_type=failed.task_type,
        workspace=event.workspace,
        owner=failed.owner,
        reason=failed.reason,
        error_type=failed.error_type,
        metadata=metadata,
        envelope={**encode_event(event), "name": failed.event, "key": failed.key},
        payload=event.payload,
    )
    yield from write(tx, letter)


def write(tx: Transaction, letter: NewDeadLetter) -> Program[None]:
    """Write a dead letter, unless there is one with its id."""
    now_ms = tx.context.now_ms
    reason = line(encodable(letter.reason), REASON_CHARACTERS)
    overrides = {_ENVELOPE: json.dumps(letter.envelope)}
    spec = pb.CreateTaskRequest(launch_param_overrides=overrides, metadata={**letter.metadata, "reason": reason})
    task = TaskRow(
        dated_id(now_ms, letter.key),
        letter.task_type,
        letter.workspace if letter.workspace != EVERYWHERE else "",
        mode=Mode.POOL,
        category=CATEGORY,
        creator=letter.owner,
        max_attempts=1,
        spec=spec.SerializeToString(),
        order_us=now_ms * 1000,
        created_ms=now_ms,
        updated_ms=now_ms,
        failed_ms=now_ms,
        status=StoredStatus.DLQ,
        error=reason,
        error_type=letter.error_type,
        workflow=WorkflowPart.EVENT,
    )
    task.root_task_id = task.task_id
    if (yield from task_rows.insert(task, letter.payload)):
        yield Execute(
            "INSERT INTO task_dead_letters (task_id, workspace, reason, error_type, attempts, buried_ms) "
            "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task_id) DO NOTHING",
            (task.task_id, task.workspace, reason, letter.error_type, 1, now_ms),
        )


def envelope_of(task: TaskRow) -> dict[str, Any]:
    """Return the envelope of a dead letter."""
    found: dict[str, Any] = json.loads(startup.launch_params(task)[_ENVELOPE])
    return found


def read(task: TaskRow) -> Program[tuple[TakenEvent, str, str]]:
    """Read the event of a dead letter, the name that has matched, and the failed key."""
    envelope = envelope_of(task)
    payload = yield from payloads.load(task.task_id)
    return decode_event(envelope, payload), envelope["name"], envelope["key"]


def encode_event(event: TakenEvent) -> dict[str, Any]:
    """Return what is to be kept of an event but its payload, as JSON."""
    return {
        "source_topic": event.source_topic,
        "workspace": event.workspace,
        "topic": event.topic,
        "offset": event.offset,
        "at_ms": event.at_ms,
        "subject": list(event.subject),
    }


def decode_event(kept: Mapping[str, Any], payload: bytes) -> TakenEvent:
    """Make an event of what was kept of it."""
    event = read_event(kept["offset"], _frame(kept, payload), kept["at_ms"], kept["topic"])
    assert event is not None
    return event


def _frame(kept: Mapping[str, Any], payload: bytes) -> bytes:
    extra = pb.IncomingMessage()
    if any(kept["subject"]):
        extra.on_behalf_subject.principal_type, extra.on_behalf_subject.principal_id = kept["subject"]
    suffix = delivery_suffix(pb.EVENT, kept["workspace"], extra=extra)
    return encode_delivery(delivery_prefix(kept["source_topic"]), payload, suffix)


def append_again(tx: Transaction, event: TakenEvent, task: TaskRow) -> Program[None]:
    """Append an event to the engine's topic again, by way of the outbox.

    One with an id gets another: it is no copy.
    """
    payload = event.payload
    if event.event_id:
        payload = json.dumps({**json.loads(payload), "event_id": f"{task.task_id}.{task.events}"}).encode()
    yield Deferred(
        "task_outbox",
        "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
        (task.task_id, task.events, tx.context.node, event.topic, _frame(encode_event(event), payload)),
    )
    tx.effects.outbox = True


def settle(tx: Transaction, task: TaskRow, problem: str, error_type: str) -> Program[None]:
    """End a dead letter that was tried again: it is completed, or dead again."""
    now_ms = tx.context.now_ms
    if problem:
        reason = line(encodable(problem), REASON_CHARACTERS)
        done = {"status": StoredStatus.DLQ, "failed_ms": now_ms, "error": reason, "error_type": error_type}
    else:
        done = {"status": StoredStatus.COMPLETED, "completed_ms": now_ms, "error": "", "error_type": ""}
    yield from tx.write(task, task.changed({**done, "updated_ms": now_ms}), problem)
