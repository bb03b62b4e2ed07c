"""Decides when time alone changes a task, and how: timeouts, retries, deletion.

Each row has one moment, computed from the row whenever it is written. So there is one index of due
moments, and no timer that could be forgotten, set twice or outlive its task. At the moment the row
is read again (`happening`): a moment that another write has overtaken has no effect.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aether_trio.model.tasks.status import GraceClass, StoredStatus
from aether_trio.model.tasks.task import AGENT_STARTUP, PROCESS_FAILED, AgentProcess, Mode, TaskRow, WorkflowPart
from aether_trio.model.tasks.transitions import Facts, Move

S = StoredStatus


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of tasks in milliseconds, 0 for never (defaults: tasks.md 2.5)."""

    interactive_ms: int = 3_600_000
    """After it a live INTERACTIVE task is cancelled, counted from creation, retry or wait."""
    startup_ms: int = 1_800_000  # the same for a start that no orchestrator has
    pool_ms: int = 3_600_000  # A POOL task waits so long, or a SELF_ASSIGN one without its creator
    completed_ms: int = 7 * 86_400_000  # how long a completed or rejected task is kept
    failed_ms: int = 14 * 86_400_000
    cancelled_ms: int = 7 * 86_400_000
    resolved_ms: int = 30 * 86_400_000  # how long a resolved dead letter is kept
    workflow_letters: int = 100_000  # open dead letters of workflows that are kept
    start_timeout_ms: int = 60_000  # for an agent to connect after its start was sent
    start_grace_ms: int = 5_000  # for a started agent to reconnect


class Due(enum.Enum):
    """What happens to a task when a moment comes: a timeout, a retry, its deletion."""

    RETRY = "retry"
    WAKE = "wake"
    WAIT_OVER = "wait timeout"
    GRACE_OVER = "grace window"
    SCHEDULE_TO_START = "schedule_to_start"
    START_TO_CLOSE = "start_to_close"
    HEARTBEAT = "heartbeat"
    SCHEDULE_TO_CLOSE = "schedule_to_close"
    STALE = "stale"
    FORGET = "forget"  # the row is deleted


def moments(task: TaskRow, limits: TimeLimits) -> Iterator[tuple[int, Due]]:
    """Yield every (Unix ms, Due) at which time changes this task, unsorted."""
    status = task.status
    if status in _KEPT or (status is S.FAILED and not task.next_retry_ms):
        keep_ms = {S.CANCELLED: limits.cancelled_ms, S.FAILED: limits.failed_ms}.get(status, limits.completed_ms)
        if keep_ms:
            yield task.updated_ms + keep_ms, Due.FORGET
        return
    if status is S.DLQ:
        return
    if task.next_retry_ms:
        yield task.next_retry_ms, Due.RETRY
    if task.schedule_to_close_ms:
        yield (task.opened_ms or task.created_ms) + task.schedule_to_close_ms, Due.SCHEDULE_TO_CLOSE
    if status is S.FAILED:
        return
    if task.wait:
        yield from _of_wait(task)
    if task.disconnected_ms and task.grace_ms and (status is S.RUNNING or task.holder):
        yield task.disconnected_ms + max(task.grace_ms, 1), Due.GRACE_OVER
    if status is S.RUNNING:
        if task.start_to_close_ms:
            close_ms = (task.running_ms or task.started_ms) + task.start_to_close_ms - task.worked_ms
            yield max(close_ms, task.excused_ms), Due.START_TO_CLOSE
        if task.heartbeat_timeout_ms:
            yield max(task.heartbeat_ms + task.heartbeat_timeout_ms, task.excused_ms), Due.HEARTBEAT
    elif not task.wait and task.schedule_to_start_ms:
        if task.task_type != AGENT_STARTUP:
            yield task.pending_ms + task.schedule_to_start_ms, Due.SCHEDULE_TO_START
        elif status is S.STARTING:
            # Counted from the assignment: a start that waits for an orchestrator is not late yet.
            yield max(task.assigned_ms + task.schedule_to_start_ms, task.excused_ms), Due.SCHEDULE_TO_START
    if stale_ms := _stale_at_ms(task, limits):
        yield stale_ms, Due.STALE


_KEPT = frozenset({S.COMPLETED, S.REJECTED, S.CANCELLED})


def _of_wait(task: TaskRow) -> Iterator[tuple[int, Due]]:
    wait = task.waits_for
    assert wait is not None
    if wait.timeout_ms > 0 and not (task.status is S.HIBERNATED and wait.escalation == "alert"):
        yield task.paused_ms + wait.timeout_ms, Due.WAIT_OVER
    if wait.wake_ms > 0:
        yield wait.wake_ms, Due.WAKE


_IN_EXECUTIONS: Final = WorkflowPart.STEP | WorkflowPart.RUN | WorkflowPart.QUESTION | WorkflowPart.FUNCTION


def _stale_at_ms(task: TaskRow, limits: TimeLimits) -> int:
    if task.wait or task.workflow & _IN_EXECUTIONS:
        return 0  # a step waits as long as its execution
    if task.task_type == AGENT_STARTUP:
        waits = limits.startup_ms and task.status is S.PENDING
        return task.pending_ms + limits.startup_ms if waits else 0
    if task.task_class == GraceClass.INTERACTIVE:
        return (task.fresh_ms or task.created_ms) + limits.interactive_ms if limits.interactive_ms else 0
    own = task.mode is Mode.SELF_ASSIGN
    if limits.pool_ms and own and task.status is S.ASSIGNED and task.disconnected_ms:
        return task.disconnected_ms + limits.pool_ms
    waits = limits.pool_ms and (own or task.mode is Mode.POOL) and task.status is S.PENDING
    # Counted from when it was queued last: a task that a worker gave back was queued then.
    return task.updated_ms + limits.pool_ms if waits else 0


def start_delay_ms(task: TaskRow) -> int:
    """Return the pause before a failed agent start is retried: 1 s, 2 s, 4 s."""
    return 1000 << min(task.retry_count, 16)


def next_due(task: TaskRow, limits: TimeLimits) -> int:
    """Return the first moment (Unix ms) at which time changes a task, 0 for none."""
    first_ms = 0
    for at_ms, _ in moments(task, limits):
        if not first_ms or at_ms < first_ms:
            first_ms = at_ms
    return first_ms


def happening(task: TaskRow, limits: TimeLimits, now_ms: int) -> Due | None:
    """Return what is due for a task now, the earliest first; None if nothing is.

    Of equal moments the end of a grace window is last: it fails the task, and a timeout retries it.
    """
    due = [
        (at_ms, kind is Due.GRACE_OVER, kind.value, kind) for at_ms, kind in moments(task, limits) if at_ms <= now_ms
    ]
    return min(due)[-1] if due else None


def move_of(task: TaskRow, due: Due, facts: Facts) -> tuple[Move, Facts]:
    """Return the status change that is due for a task, and the facts to decide on it."""
    failures = task.retry_count + 1

    def told(reason: str, error_type: str = "TIMEOUT", delay_ms: int = 0) -> Facts:
        return Facts(
            facts.now_ms,
            reason=reason,
            error_type=error_type,
            delay_ms=delay_ms,
            present=facts.present,
            uniform=facts.uniform,
        )

    match due:
        case Due.RETRY:
            return Move.RETRY, facts
        case Due.WAKE:
            return Move.WAKE, facts
        case Due.WAIT_OVER:
            wait = task.waits_for
            if task.status is S.HIBERNATED and wait is not None and wait.escalation == "retry":
                return Move.WAKE, facts
            return Move.FAIL, told("wait timeout")
        case Due.GRACE_OVER if task.status is S.ASSIGNED and not task.begun:
            return Move.UNASSIGN, facts._replace(lost=not task.excused_ms)
        case Due.GRACE_OVER if task.status is S.ASSIGNED:
            text = f"worker {task.assigned_to} was given the task and never heard of again"
            return Move.LOSE, told(text, "WORKER_LOST")
        case Due.GRACE_OVER if task.process in (AgentProcess.LEFT, AgentProcess.DONE):
            return Move.COMPLETE, facts._replace(caller=task.assigned_to)
        case Due.GRACE_OVER if task.process == AgentProcess.FAILED:
            return Move.FAIL, told(task.error, PROCESS_FAILED)
        case Due.GRACE_OVER if task.process_ended:
            return Move.FAIL, told(f"the process of {task.assigned_to} has ended", "WORKER_LOST")
        case Due.GRACE_OVER:
            text = f"worker {task.assigned_to} did not reconnect within grace window ({task.grace_ms}ms)"
            return Move.FAIL, told(text, "WORKER_LOST")
        case Due.SCHEDULE_TO_START if task.task_type == AGENT_STARTUP:
            text = f"{task.target} did not connect within {task.schedule_to_start_ms} ms after {task.assigned_to} was asked for it"
            return Move.TIME_OUT, told(text, delay_ms=start_delay_ms(task))
        case Due.SCHEDULE_TO_START:
            text = f"not begun within {task.schedule_to_start_ms} ms of its queueing (schedule_to_start)"
            return Move.TIME_OUT, told(text, delay_ms=1000 + 500 * failures)
        case Due.START_TO_CLOSE:
            text = f"not done within {task.start_to_close_ms} ms of its start (start_to_close)"
            return Move.TIME_OUT, told(text, delay_ms=1000 * (1 + failures))
        case Due.HEARTBEAT:
            text = f"no progress for {task.heartbeat_timeout_ms} ms (heartbeat)"
            return Move.TIME_OUT, told(text, delay_ms=2000 * failures if failures > 3 else 30_000)
        case Due.SCHEDULE_TO_CLOSE:
            return Move.BURY, told(
                f"not done within {task.schedule_to_close_ms} ms of its creation (schedule_to_close)"
            )
        case Due.STALE:
            return Move.CANCEL, told(f"the task was {task.status.value} for too long")
        case Due.FORGET:
            raise ValueError("Due.FORGET deletes a task, and changes no status: delete the task instead")
