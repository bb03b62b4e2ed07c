"""Messages that crash their agent again and again: counted, then dead letters.

    count_crash ──▶ bury: a task of type dead_message, with the message's payload
                ──▶ the receiver's cursor moves behind the message (services/agents/crash_loops.py)
                ──▶ skipped

A crash counts for the message that is the agent's first unread one then, once for each start. The
dead letter's id follows from the message, so writing it again writes nothing. `skip_to` says that
the cursor is still to move, in case the gateway is killed between the two writes.

A dead message is a task that no worker is given. RETRY appends the message to its topic again, as
its sender had sent it, by way of `task_outbox`; CANCEL discards it.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, MoveStep, RefusedMove, StoredStatus, TaskRow
from aether_trio.model.tasks.task import PROCESS_FAILED
from aether_trio.model.tasks.transitions import CANCELLED_TEXT, Decision, MoveRefusal, Repeat
from aether_trio.services.tasks.transaction import startup, task_rows
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.storage.base import Deferred, Execute, Fetch, Program, Row, placeholders
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

DEAD_MESSAGE: Final = "dead_message"  # the type and the category of these tasks
ERROR_TYPE: Final = "CRASHED_ITS_AGENT"
REASON_CHARACTERS: Final = 3_500
_ENVELOPE: Final = "envelope"
"""A launch parameter, which is never shown: the message but for its payload."""
_NAMES: Final = uuid.UUID("5d0f5b1e-6a0a-4c37-9a35-0d4a3b2f9c11")
_LATEST: Final = f"""SELECT t.task_id, t.error, c.position, c.times, c.task_id, c.skip_to, c.at_work, c.excused
    FROM agent_starts s JOIN tasks t ON t.task_id = s.task_id LEFT JOIN agent_crashes c ON c.identity = s.identity
    WHERE s.identity = $1 AND t.status = 'failed' AND t.next_retry_ms = 0 AND t.error_type = '{PROCESS_FAILED}'"""  # noqa: S608
_UNHANDLED: Final = f"""SELECT s.identity FROM agent_starts s JOIN tasks t ON t.task_id = s.task_id
    LEFT JOIN agent_crashes c ON c.identity = s.identity WHERE s.identity IN ({{0}}) AND ({{1}} OR
    (t.status = 'failed' AND t.next_retry_ms = 0 AND t.error_type = '{PROCESS_FAILED}'
        AND (c.task_id IS NULL OR c.task_id <> t.task_id)))"""  # noqa: S608


class Crash(NamedTuple):
    """How often an agent has crashed at a message, and how it did the last time.

    `skip_to`: the cursor is still to move there.
    """

    position: int
    times: int
    reason: str
    skip_to: int = 0


class FirstUnread(NamedTuple):
    """The first unread message of an agent: its place in the log, and its delivery."""

    topic: str
    log: bytes
    offset: int
    frame: bytes

    @property
    def task_id(self) -> str:
        """The id of its dead letter."""
        return str(uuid.uuid5(_NAMES, f"{self.log.hex()} {self.offset} {self.topic}"))


def unhandled(identities: Sequence[str], *, skips: bool = True) -> Program[set[str]]:
    """Return which agents have an uncounted crash, or `skips` a message to be skipped."""
    which = "c.skip_to > 0" if skips else "1 = 0"
    found: list[Row] = yield Fetch(_UNHANDLED.format(placeholders(len(identities)), which), identities)
    return {identity for (identity,) in found}


def pending_skip(identity: str) -> Program[int]:
    """Return up to which message an agent's cursor is still to move, or 0."""
    found: list[Row] = yield Fetch("SELECT skip_to FROM agent_crashes WHERE identity = $1", (identity,))
    return found[0][0] if found else 0


def count_crash(identity: str, position: int, limit: int) -> Program[Crash | None]:
    """Count the crash of an agent's latest start, once; None if that has not crashed.

    `position` is the number of its first unread message, 0 if there is none. Crashes of an agent
    that was at work on a task are the task's, up to `limit` of them for one message.
    """
    found: list[Row] = yield Fetch(_LATEST, (identity,))
    if not found:
        return None
    task_id, reason, before, times, counted, skip_to, at_work, excused = found[0]
    if counted == task_id:
        return Crash(before, times, reason, skip_to)
    if before != position:
        times = excused = 0
    if at_work == task_id and excused < limit:
        excused += 1
    else:
        times += 1
    yield Execute(
        "INSERT INTO agent_crashes (identity, position, times, task_id, skip_to, excused) "
        "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (identity) DO UPDATE SET position = excluded.position, "
        "times = excluded.times, task_id = excluded.task_id, excused = excluded.excused",
        (identity, position, times, task_id, 0, excused),
    )
    return Crash(position, times, reason, skip_to or 0)


def bury(tx: Transaction, identity: Identity, message: FirstUnread, crash: Crash) -> Program[None]:
    """Make a message a dead letter, once, and note that its receiver is to skip it."""
    delivered = pb.DownstreamMessage.FromString(message.frame).msg
    payload = delivered.payload
    delivered.ClearField("payload")
    now_ms = tx.context.now_ms
    reason = f"{identity.text} crashed {crash.times} times with this message first: {crash.reason}"[:REASON_CHARACTERS]
    spec = pb.CreateTaskRequest(
        launch_param_overrides={_ENVELOPE: base64.b64encode(delivered.SerializeToString()).decode()},
        metadata={
            "_topic": message.topic,
            "_sequence": str(message.offset),
            "_source": delivered.source_topic,
            "_reason": reason,
        },
    )
    task = TaskRow(
        message.task_id,
        DEAD_MESSAGE,
        identity.workspace,
        mode=Mode.TARGETED,
        category=DEAD_MESSAGE,
        target=identity.text,
        target_implementation=identity.implementation,
        target_specifier=identity.specifier,
        root_task_id=message.task_id,
        max_attempts=crash.times,
        retry_count=crash.times,
        spec=spec.SerializeToString(),
        order_us=now_ms * 1000,
        created_ms=now_ms,
        updated_ms=now_ms,
        failed_ms=now_ms,
        status=StoredStatus.DLQ,
        error=reason,
        error_type=ERROR_TYPE,
    )
    made = yield from task_rows.insert(task, payload)
    if made:
        yield Execute(
            "INSERT INTO task_dead_letters (task_id, workspace, reason, error_type, attempts, buried_ms) "
            "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (task_id) DO NOTHING",
            (task.task_id, task.workspace, reason, ERROR_TYPE, crash.times, now_ms),
        )
    yield Execute("UPDATE agent_crashes SET skip_to = $2 WHERE identity = $1", (identity.text, message.offset))


def skipped(identity: str, offset: int) -> Program[None]:
    """Note that an agent's cursor is behind a dead message."""
    yield Execute(
        "UPDATE agent_crashes SET skip_to = 0, times = 0, position = 0 WHERE identity = $1 AND skip_to = $2",
        (identity, offset),
    )


def requeue(tx: Transaction, task: TaskRow, payload: bytes, caller: str) -> Program[Decision]:
    """Append a dead message to its topic again, from its sender; complete the task."""
    if task.status is StoredStatus.COMPLETED and task.ended_by == caller:
        return Repeat()
    if task.status is not StoredStatus.DLQ:
        return RefusedMove(MoveRefusal.ENDED, f"the message is no dead letter any more: it is {task.status.value}")
    now_ms = tx.context.now_ms
    done = {"status": StoredStatus.COMPLETED, "completed_ms": now_ms, "updated_ms": now_ms, "ended_by": caller}
    after = task.changed(done)
    yield from tx.write(task, after, "")
    envelope = startup.launch_params(task)[_ENVELOPE]
    message = pb.IncomingMessage.FromString(base64.b64decode(envelope))
    suffix = delivery_suffix(message.message_type, message.workspace, extra=message)
    frame = encode_delivery(delivery_prefix(message.source_topic), payload, suffix)
    topic = pb.CreateTaskRequest.FromString(task.spec).metadata["_topic"]
    yield Deferred(
        "task_outbox",
        "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
        (task.task_id, after.events, tx.context.node, topic, frame),
    )
    tx.effects.outbox = True
    tx.effects.absent_targets.append(task.target)
    return MoveStep(after)


def discard(tx: Transaction, task: TaskRow, caller: str) -> Program[Decision]:
    """End a dead letter for good: the task is cancelled."""
    now_ms = tx.context.now_ms
    ended = {
        "status": StoredStatus.CANCELLED,
        "completed_ms": now_ms,
        "updated_ms": now_ms,
        "error": CANCELLED_TEXT,
        "error_type": "CANCELLED",
        "ended_by": caller,
    }
    after = task.changed(ended)
    yield from task_rows.resolve_dead_letter(task.task_id, now_ms, caller, "discarded")
    yield from tx.write(task, after, "")
    return MoveStep(after)
