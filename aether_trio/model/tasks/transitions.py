"""Decides how a task may change: the table of moves (tasks.md 1.4 to 1.9).

    decide(task, move, facts) ──▶ Step      the row to be written
                              ├─▶ Repeat    the same caller made it already: answer, write nothing
                              └─▶ Refused   a typed reason and a sentence for the client

Differences from the reference, which applies its table to some of its moves only: an ended task
does not change, for any caller, unless a retry follows (the reference does not check COMPLETE and
FAIL). A worker that has lost its task to another worker is told so. A task that wakes without a
worker waits for an assignment instead of running without one.

Invariants: a step of a terminal task leads to PENDING, CANCELLED or DLQ; `epoch` grows with every
assignment, and only then; `assigned_to` names the worker of the assignment.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aether_trio.model.tasks.result import NO_RESULT
from aether_trio.model.tasks.status import HELD, LIVE, PAUSED, TERMINAL, WAITING, StoredStatus
from aether_trio.model.tasks.task import Mode, TaskRow, WorkflowPart
from aether_trio.model.tasks.wait import ESCALATIONS, Wait

S = StoredStatus


class Move(enum.Enum):
    """A change of a task's status, asked for by a client or made by the gateway."""

    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    PAUSE = "pause"
    RESUME = "resume"
    REJECT = "reject"

    ASSIGN = "assign"  # a worker, `facts.caller`, is assigned a task of a queue
    UNASSIGN = "unassign"  # the worker has not begun: back to the queue. Counts if `facts.lost`.
    LOSE = "lose"  # the worker never claims and has gone: an attempt has failed
    START = "start"  # `facts.caller`, an orchestrator, launches the worker
    ATTACH = "attach"  # the worker has connected with the task's token
    WAKE = "wake"  # what a paused task waited for has happened
    TIME_OUT = "time out"  # a deadline, `facts.reason`, has passed; retry after `facts.delay_ms`
    BURY = "bury"  # the task becomes a dead letter: no further attempt follows

    __hash__ = object.__hash__


class MoveRefusal(enum.Enum):
    """Why a change of a task's status is refused."""

    ENDED = "ended"
    STATUS = "status"
    STALE = "stale"  # the caller had the task, and another worker has it now
    NOT_YOURS = "not yours"
    WAIT_SPEC = "wait spec"


class Facts(NamedTuple):
    """What a decision about a task's move needs besides the row: who, when, why."""

    now_ms: int
    caller: str = ""
    caller_epoch: int | None = None  # of the caller's latest assignment; None without one
    reason: str = ""
    error_type: str = ""
    wait: Wait | None = None
    pause_key: str = ""  # the key of a PAUSE, equal for a repeated request whose answer was lost
    present: bool = True  # whether the task's worker is connected and knows of the task
    lost: bool = False  # given back because of its worker, not of its gateway
    delay_ms: int = 0
    result_bytes: int = NO_RESULT  # size of the result that a COMPLETE carries
    uniform: Callable[[], float] = lambda: 0.5


class MoveStep(NamedTuple):
    """An allowed move: the task's row after it, and the reason in its event."""

    after: TaskRow
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A repeated move, which was made already: nothing is to be done."""


@dataclass(frozen=True, slots=True)
class RefusedMove:
    """A refused move; `text` tells the client why."""

    why: MoveRefusal
    text: str


Changes = dict[str, Any]
Decision = MoveStep | Repeat | RefusedMove


@dataclass(frozen=True, slots=True)
class MoveRule:
    """From which statuses a move may be made, and whether its worker alone may."""

    allowed: frozenset[StoredStatus]
    effect: Callable[[TaskRow, Facts], Changes | RefusedMove]
    by_worker: bool = False


NOT_FINAL: Final = LIVE | PAUSED
MAX_DELIVERIES: Final = 16  # how often a task is assigned to workers that go before they begin it
CANCELLED_TEXT: Final = "task cancelled"


def decide(task: TaskRow, move: Move, facts: Facts) -> Decision:
    """Return the task after a move, a repeat or a refusal; pure but for `uniform`."""
    rule = RULES[move]
    if _is_repeat(task, move, facts):
        return Repeat()
    if rule.by_worker and facts.caller_epoch is not None and not _has_it(task, facts):
        return RefusedMove(MoveRefusal.STALE, _lost_text(task, facts))
    retrying = move is Move.CANCEL and task.status is S.FAILED and task.next_retry_ms
    if task.status not in rule.allowed and not retrying:
        if task.status in TERMINAL:
            return RefusedMove(MoveRefusal.ENDED, f"the task has ended: it is {task.status.value}")
        return RefusedMove(
            MoveRefusal.STATUS, f"invalid transition: {move.value} of a task that is {task.status.value}"
        )
    changes = rule.effect(task, facts)
    if isinstance(changes, RefusedMove):
        return changes
    changes["updated_ms"] = facts.now_ms
    after = task.changed(changes)
    return MoveStep(after, _event_reason(after, facts))


def _has_it(task: TaskRow, facts: Facts) -> bool:
    return task.assigned_to == facts.caller and task.epoch == facts.caller_epoch


def _is_repeat(task: TaskRow, move: Move, facts: Facts) -> bool:
    """Return whether the caller made this move already, or its result holds already."""
    if move in _ENDS and task.status is _ENDS[move] and facts.caller:
        late = RULES[move].by_worker and facts.caller_epoch not in (None, task.epoch)
        return task.ended_by == facts.caller and not late
    if move is Move.CLAIM and task.status is S.RUNNING:
        return _has_it(task, facts) and not task.disconnected_ms
    if move is Move.PAUSE and facts.pause_key and task.pause_key == facts.pause_key:
        # What the task waits for may have happened already, and would not end the wait again.
        mine = facts.caller_epoch is None or _has_it(task, facts)
        return mine and (task.status is S.RUNNING or task.status in PAUSED)
    if move is Move.RESUME and task.status in HELD:
        # The task goes on already. Only its worker can begin what it has not begun.
        return task.status is not S.ASSIGNED or not _has_it(task, facts)
    return False


_ENDS: Final[Mapping[Move, StoredStatus]] = MappingProxyType(
    {Move.COMPLETE: S.COMPLETED, Move.FAIL: S.FAILED, Move.CANCEL: S.CANCELLED, Move.REJECT: S.REJECTED}
)


def _lost_text(task: TaskRow, facts: Facts) -> str:
    if task.status in HELD and task.assigned_to:
        who = "assigned to another worker" if task.assigned_to != facts.caller else "assigned anew"
        return f"this assignment is over: the task was {who} (assignment {task.epoch}, yours was {facts.caller_epoch})"
    return (
        f"this assignment is over: the task was taken back and is {task.status.value} (yours was {facts.caller_epoch})"
    )


def _event_reason(after: TaskRow, facts: Facts) -> str:
    """Return the reason in the event of a move: an error, a wait or a worker's text."""
    if after.status is S.COMPLETED:
        return facts.reason
    if after.status in (S.FAILED, S.REJECTED, S.DLQ):
        return after.error
    if after.status in PAUSED and facts.wait is not None:
        return facts.wait.word
    return ""


# -- effects ---------------------------------------------------------------------------------------

_NO_WAIT: Final[Mapping[str, Any]] = MappingProxyType({"wait": "", "paused_ms": 0})
_NO_WORKER: Final[Mapping[str, Any]] = MappingProxyType(
    {"assigned_to": "", "assigned_ms": 0, "disconnected_ms": 0, "attached": 0, "excused_ms": 0, "begun": 0}
)


def _assigned(task: TaskRow, facts: Facts) -> Changes:
    return {
        "status": S.ASSIGNED,
        "assigned_to": facts.caller,
        "assigned_ms": facts.now_ms,
        "epoch": task.epoch + 1,
        "disconnected_ms": 0,
        "attached": 0,
        "heartbeat_ms": 0,
        "begun": 0,
        "result_bytes": NO_RESULT,
    }


def _running(task: TaskRow, facts: Facts) -> Changes:
    return {
        "status": S.RUNNING,
        "started_ms": task.started_ms or facts.now_ms,
        "heartbeat_ms": facts.now_ms,
        "disconnected_ms": 0,
        "deliveries": 0,
        "running_ms": task.running_ms if task.status is S.RUNNING else facts.now_ms,
        "excused_ms": 0,
        "begun": 0,
    }


def _claim(task: TaskRow, facts: Facts) -> Changes | RefusedMove:
    if task.status is S.PENDING:
        wanted = {Mode.TARGETED: task.target, Mode.SELF_ASSIGN: task.creator, Mode.POOL: facts.caller}[task.mode]
        if facts.caller != wanted:
            return RefusedMove(MoveRefusal.NOT_YOURS, f"the task is for {wanted}")
        return _assigned(task, facts) | _running(task, facts)
    if task.assigned_to != facts.caller:
        return RefusedMove(MoveRefusal.NOT_YOURS, "the task is assigned to another worker")
    return _running(task, facts)


def _complete(task: TaskRow, facts: Facts) -> Changes:
    changes = {"status": S.COMPLETED, "completed_ms": facts.now_ms, "disconnected_ms": 0, "ended_by": facts.caller}
    if facts.result_bytes != NO_RESULT:
        changes["result_bytes"] = facts.result_bytes
    return changes


def _fail(task: TaskRow, facts: Facts) -> Changes:
    policy = task.policy
    failures = task.retry_count + 1
    delay_ms = None
    if policy is not None and failures < task.max_attempts and not policy.is_final(facts.error_type, facts.reason):
        delay_ms = policy.delay_ms(failures, facts.uniform)
    return _failed(facts, failures, delay_ms)


def _failed(facts: Facts, failures: int, delay_ms: int | None) -> Changes:
    return {
        "status": S.FAILED,
        "failed_ms": facts.now_ms,
        "error": facts.reason or "task failed",
        "error_type": facts.error_type,
        "retry_count": failures,
        "next_retry_ms": 0 if delay_ms is None else facts.now_ms + delay_ms,
        "disconnected_ms": 0,
        "ended_by": facts.caller,
    }


def _time_out(task: TaskRow, facts: Facts) -> Changes:
    policy = task.policy
    failures = task.retry_count + 1
    final = policy is not None and policy.is_final(facts.error_type, facts.reason)
    if failures >= task.max_attempts or final:
        return _bury(task, facts) | {"retry_count": failures}
    return _failed(facts, failures, policy.delay_ms(failures, facts.uniform) if policy is not None else facts.delay_ms)


def _bury(task: TaskRow, facts: Facts) -> Changes:
    return {
        "status": S.DLQ,
        "failed_ms": facts.now_ms,
        "error": facts.reason or task.error or "dead letter",
        "error_type": facts.error_type or task.error_type,
        "next_retry_ms": 0,
        "disconnected_ms": 0,
        "ended_by": facts.caller,
    }


def _cancel(task: TaskRow, facts: Facts) -> Changes:
    return {
        "status": S.CANCELLED,
        "completed_ms": facts.now_ms,
        "error": facts.reason if not facts.caller and facts.reason else CANCELLED_TEXT,
        "error_type": "CANCELLED",
        "next_retry_ms": 0,
        "disconnected_ms": 0,
        "ended_by": facts.caller,
    }


def _retry(task: TaskRow, facts: Facts) -> Changes:
    return {
        **_NO_WAIT,
        **_NO_WORKER,
        "status": S.PENDING,
        "pending_ms": facts.now_ms,
        "started_ms": 0,
        "failed_ms": 0,
        "heartbeat_ms": 0,
        "running_ms": 0,
        "worked_ms": 0,
        "deliveries": 0,
        "fresh_ms": facts.now_ms,
        "opened_ms": facts.now_ms if facts.caller else task.opened_ms,
        "next_retry_ms": 0,
        "error": "",
        "error_type": "",
        "ended_by": "",
        # a dead letter that is retried has all its attempts again.
        "retry_count": 0 if task.status is S.DLQ else task.retry_count,
    }


def _pause(task: TaskRow, facts: Facts) -> Changes | RefusedMove:
    wait = facts.wait
    if wait is None:
        return RefusedMove(MoveRefusal.WAIT_SPEC, "wait_spec is required")
    to = wait.status
    allowed = task.status is to or task.status is S.RUNNING or (task.status is S.PENDING and to is S.WAITING_DEPENDENCY)
    if not allowed:
        return RefusedMove(
            MoveRefusal.STATUS, f"invalid transition: a task that is {task.status.value} cannot become {to.value}"
        )
    changes: Changes = {
        "status": to,
        "wait": wait.to_json(),
        "pause_key": facts.pause_key,
        "paused_ms": facts.now_ms,
        "disconnected_ms": 0,
    }
    if facts.caller and facts.caller == task.assigned_to:
        changes["heartbeat_ms"] = facts.now_ms  # its worker knows of it, as by a claim
    if task.status is S.RUNNING:
        changes["excused_ms"] = 0
        # After a clock was set back, time that was not worked must not count.
        changes["worked_ms"] = task.worked_ms + max(facts.now_ms - (task.running_ms or task.started_ms), 0)
    if to is S.HIBERNATED:
        if not wait.checkpoint_key:
            return RefusedMove(MoveRefusal.WAIT_SPEC, "hibernation.checkpoint_key is required")
        if wait.escalation not in ESCALATIONS:
            known = ", ".join(sorted(ESCALATIONS - {""}))
            return RefusedMove(
                MoveRefusal.WAIT_SPEC, f"unknown escalation_policy {wait.escalation!r}: known are {known}"
            )
        changes |= {"checkpoint_key": wait.checkpoint_key, "resume_session_id": wait.resume_session_id, "attached": 0}
    return changes


def _wake(task: TaskRow, facts: Facts) -> Changes:
    """Let a waiting task go on; without a worker, or hibernated, it waits for one."""
    if task.status is S.HIBERNATED or not task.assigned_to:
        pending = {"status": S.PENDING, "pending_ms": facts.now_ms, "fresh_ms": facts.now_ms, "deliveries": 0}
        return {**_NO_WAIT, **_NO_WORKER, **pending}
    changes = {**_NO_WAIT, **_running(task, facts), "fresh_ms": facts.now_ms}
    if not facts.present:
        changes["disconnected_ms"] = facts.now_ms
        if not task.heartbeat_timeout_ms:
            changes["heartbeat_ms"] = task.heartbeat_ms  # that was no heartbeat of its worker
    return changes


def _resume(task: TaskRow, facts: Facts) -> Changes | RefusedMove:
    if task.workflow & WorkflowPart.FLOW and task.status is S.WAITING_DEPENDENCY:
        wait = task.waits_for
        if wait is not None and not wait.depends_on:
            return RefusedMove(MoveRefusal.STATUS, "the execution waits for its turn: flow control lets it begin")
    return _running(task, facts) if task.status in HELD else _wake(task, facts)


def _reject(task: TaskRow, facts: Facts) -> Changes:
    return {
        **_NO_WAIT,
        "status": S.REJECTED,
        "completed_ms": facts.now_ms,
        "error": facts.reason or "rejected",
        "error_type": "REJECTED",
        "ended_by": facts.caller,
    }


def _unassign(task: TaskRow, facts: Facts) -> Changes:
    deliveries = task.deliveries + facts.lost
    bound = task.max_attempts if task.status is S.STARTING else MAX_DELIVERIES
    if facts.lost and deliveries >= bound:
        reason = f"given {deliveries} times and never begun"
        return _bury(task, facts._replace(reason=reason, error_type="NEVER_BEGUN")) | {"deliveries": deliveries}
    return {**_NO_WORKER, "status": S.PENDING, "deliveries": deliveries}


def _lose(task: TaskRow, facts: Facts) -> Changes:
    """Fail an attempt whose worker was lost.

    Without a policy the next attempt follows at once: the worker may have died of another task.
    """
    failures = task.retry_count + 1
    if task.policy is not None or failures >= task.max_attempts:
        return _time_out(task, facts)
    return {**_NO_WORKER, "status": S.PENDING, "pending_ms": facts.now_ms, "retry_count": failures, "deliveries": 0}


def _start(task: TaskRow, facts: Facts) -> Changes:
    return _assigned(task, facts) | {"status": S.STARTING}


def _attach(task: TaskRow, facts: Facts) -> Changes:
    """Make the participant that showed the task's token the worker of the task."""
    changes: Changes = {"attached": 1, "disconnected_ms": 0, "updated_ms": facts.now_ms}
    if task.assigned_to != facts.caller:
        changes |= {"assigned_to": facts.caller, "assigned_ms": facts.now_ms, "epoch": task.epoch + 1}
        changes["result_bytes"] = NO_RESULT
    if task.status in LIVE:
        changes |= _running(task, facts)
    return changes


RULES: Final[Mapping[Move, MoveRule]] = MappingProxyType(
    {
        Move.CLAIM: MoveRule(LIVE, _claim, by_worker=True),
        Move.COMPLETE: MoveRule(NOT_FINAL, _complete, by_worker=True),
        Move.FAIL: MoveRule(NOT_FINAL, _fail, by_worker=True),
        Move.CANCEL: MoveRule(NOT_FINAL, _cancel),
        Move.RETRY: MoveRule(frozenset({S.FAILED, S.CANCELLED, S.DLQ}), _retry),
        Move.PAUSE: MoveRule(frozenset({S.PENDING, S.RUNNING}) | PAUSED, _pause, by_worker=True),
        Move.RESUME: MoveRule(HELD | PAUSED, _resume),
        Move.REJECT: MoveRule(
            frozenset({S.PENDING, S.ASSIGNED, S.WAITING_INPUT, S.WAITING_AUTHORITY}), _reject, by_worker=True
        ),
        Move.ASSIGN: MoveRule(frozenset({S.PENDING}), _assigned),
        Move.UNASSIGN: MoveRule(frozenset({S.ASSIGNED, S.STARTING}), _unassign),
        Move.LOSE: MoveRule(frozenset({S.ASSIGNED}), _lose),
        Move.START: MoveRule(frozenset({S.PENDING}), _start),
        Move.ATTACH: MoveRule(LIVE | WAITING, _attach),
        Move.WAKE: MoveRule(PAUSED, _wake),
        Move.TIME_OUT: MoveRule(NOT_FINAL, _time_out),
        Move.BURY: MoveRule(NOT_FINAL | {S.FAILED}, _bury),
    }
)
"""The whole table. CANCEL also ends a FAILED task that would be retried."""
