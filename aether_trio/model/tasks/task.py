"""A task as stored: one flat row. Times are Unix ms, 0 for what has not happened.

`epoch` counts assignments: a worker with an older one has lost the task. `events` is the number of
the task's latest event. The last group of fields follows from the others whenever a row is written
(`waiting_queue.queue_of`, `holder_of`, `keeper_of`, `timed_transitions.next_due`), so that indexes
can be small.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from aether_trio.model.tasks.result import NO_RESULT
from aether_trio.model.tasks.retry import RetrySchedule
from aether_trio.model.tasks.status import HELD, WAITING, StoredStatus, is_final
from aether_trio.model.tasks.wait import Wait

PROCESS_ENDED: Final = -1  # the `grace_ms` of a start whose process is known to have ended
PROCESS_FAILED: Final = "PROCESS_ENDED"  # the error type of a start whose process has failed
AGENT_STARTUP: Final = "agent_startup"  # the type of tasks that start an agent, for orchestrators
ASSIGNMENT: Final = "_assignment"  # metadata key: the number of a task's assignment


class AgentProcess(enum.IntEnum):
    """What is known of the process of an agent's start, beside its connection."""

    UNKNOWN = 0
    REPORTED = 1  # its orchestrator reports how it ends
    LEFT = 2  # its agent has said goodbye, and its orchestrator is to report how it ends
    DONE = 3  # it has ended well, and its session is being ended
    FAILED = 4  # it has ended by a signal or with an exit code, as `error` says

    __hash__ = int.__hash__


class WorkflowPart(enum.IntFlag):
    """What a task is to a workflow; an execution may be the step of another one."""

    NONE = 0
    STEP = 1  # its end is an event of the execution that is its parent
    RUN = 2  # an execution of a graph: no worker has it, the gateway moves it on
    QUESTION = 4  # a step that is a question to a person: no worker has it
    FIRED = 8  # started by a schedule, which is told of its end
    EVENT = 16  # a dead letter of an event, which acts again when it is retried
    FUNCTION = 32  # an execution of a durable function: a worker moves it on
    CALLED = 64  # a step of a durable function
    FLOW = 128  # others wait for its end (flow control)
    BUDGET = 256  # the question whether an execution goes on that has used up its budget

    __hash__ = int.__hash__


NO_WORKER: Final = WorkflowPart.RUN | WorkflowPart.QUESTION | WorkflowPart.EVENT
"""Of these parts of workflows a task is assigned to no worker."""


class Mode(enum.StrEnum):
    """How a task's worker is chosen: the creator, one identity, or any of a pool."""

    SELF_ASSIGN = "self_assign"
    TARGETED = "targeted"
    POOL = "pool"

    __hash__ = str.__hash__


@dataclass
class TaskRow:
    """The stored row of a task. Treat it as a value: `changed` makes the next one.

    `status` and `mode` are stored words. The fields are exactly its `__dict__`, in the order of
    COLUMNS: copying and comparing that costs a third of what slots do.
    """

    task_id: str
    task_type: str
    workspace: str
    mode: Mode = Mode.SELF_ASSIGN
    category: str = "regular"
    task_class: int = 0
    priority: int = 30
    creator: str = ""  # identity text of the participant that created it
    target: str = ""  # identity text of the worker of a TARGETED task
    target_implementation: str = ""
    target_specifier: str = ""
    parent_task_id: str = ""
    root_task_id: str = ""
    correlation_id: str = ""
    context_id: str = ""
    subject_type: str = ""
    subject_id: str = ""
    root_subject_type: str = ""
    root_subject_id: str = ""
    authority_mode: str = ""
    authority_grant_id: str = ""
    root_authority_grant_id: str = ""
    parent_authority_grant_id: str = ""
    grace_ms: int = 0  # grace window; PROCESS_ENDED for a start whose process has ended
    schedule_to_start_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_timeout_ms: int = 0
    schedule_to_close_ms: int = 0
    retry_policy: str = ""  # JSON of the policy (retry.py), "" for none
    spec: bytes = b""  # what no decision depends on, in the service's encoding
    order_us: int = 0  # creation time in microseconds, for first in, first out
    created_ms: int = 0

    status: StoredStatus = StoredStatus.PENDING
    epoch: int = 0
    assigned_to: str = ""
    updated_ms: int = 0
    pending_ms: int = 0  # since when it waits, or last waited, for an assignment
    assigned_ms: int = 0
    started_ms: int = 0
    completed_ms: int = 0
    failed_ms: int = 0
    paused_ms: int = 0
    disconnected_ms: int = 0
    heartbeat_ms: int = 0
    retry_count: int = 0
    max_attempts: int = 3
    next_retry_ms: int = 0
    error: str = ""
    error_type: str = ""
    wait: str = ""  # JSON of the wait (wait.py), "" for none
    attached: int = 0  # 1: its worker showed its token; a clean end completes the task
    tokens: int = 0  # 1: it has tokens that are revoked when it ends
    ended_by: str = ""  # identity text of the caller whose move ended it
    checkpoint_key: str = ""
    resume_session_id: str = ""
    events: int = 0
    awaited: int = 0  # 1: other tasks wait, or have waited, for its end
    has_children: int = 0  # 1: there are, or have been, tasks whose parent it is
    input_offset: int = 0  # number in the log of the last input that was copied; 0 for none
    pause_key: str = ""  # the key of its last PAUSE (`Facts.pause_key`)
    deliveries: int = 0  # how often workers gave it back without beginning it, in this attempt
    opened_ms: int = 0  # when a participant last retried it: `schedule_to_close` counts from then
    fresh_ms: int = 0  # when it last went on by a retry or after a wait, 0 for its creation
    running_ms: int = 0  # since when its worker works after the last wait; 0 for `started_ms`
    worked_ms: int = 0  # how long this attempt was worked on before the last wait
    excused_ms: int = 0  # until when no heartbeat is expected, as the gateway was away
    begun: int = 0  # 1: its worker never claims, has gone, and is presumed to have begun this task
    grants: int = 0  # 1: authority grants end with it
    result_bytes: int = NO_RESULT  # size of the result that a report or COMPLETE gave, or NO_RESULT
    launched: int = 0  # of a start: the epoch whose token its agent has shown, 0 for none
    process: int = 0  # of a start: an AgentProcess
    workflow: int = 0  # what it is to a workflow: WorkflowPart

    queue: str = ""  # where it waits for an assignment, "" if it does not wait
    holder: str = ""  # identity text of the worker whose live task it is (`holder_of`)
    keeper: str = ""  # identity text of the creator that works on it itself (`keeper_of`)
    due_ms: int = 0  # when time alone moves it, 0 for never

    @property
    def is_final(self) -> bool:
        """Whether the task has ended: its status is terminal and no retry follows."""
        return is_final(self.status, self.next_retry_ms)

    @property
    def process_ended(self) -> bool:
        """Whether this is an agent start whose process is known to have ended."""
        return self.grace_ms < 0

    @property
    def policy(self) -> RetrySchedule | None:
        """The task's retry policy; None without one."""
        return RetrySchedule.from_json(self.retry_policy) if self.retry_policy else None

    @property
    def waits_for(self) -> Wait | None:
        """What the paused task waits for; None if it is not paused."""
        return Wait.from_json(self.wait) if self.wait else None

    def values(self) -> tuple[Any, ...]:
        """Return the row's values in the order of COLUMNS, with enums as text."""
        return tuple({**self.__dict__, "status": self.status.value, "mode": self.mode.value}.values())

    def changed(self, changes: Mapping[str, Any]) -> TaskRow:
        """Return a copy of the row with these changes."""
        task = _new(TaskRow)
        task.__dict__.update(self.__dict__)
        task.__dict__.update(changes)
        assert len(task.__dict__) == len(COLUMNS), changes
        return task

    def differences(self, after: TaskRow) -> dict[str, Any]:
        """Return the columns that differ in the row `after`, with their values there."""
        old = self.__dict__
        found = {name: value for name, value in after.__dict__.items() if value is not old[name] and value != old[name]}
        if "status" in found:
            found["status"] = after.status.value
        return found

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> TaskRow:
        """Make a task from the stored values of COLUMNS."""
        task = _new(cls)
        state = task.__dict__
        state.update(zip(COLUMNS, row, strict=True))
        state["status"] = _STATUSES[state["status"]]
        state["mode"] = _MODES[state["mode"]]
        return task


COLUMNS: Final = tuple(item.name for item in fields(TaskRow))
_STATUSES: Final = {status.value: status for status in StoredStatus}
_MODES: Final = {mode.value: mode for mode in Mode}
_new: Final = object.__new__


def keeper_of(task: TaskRow) -> str:
    """Return the creator that works on its task itself, without a token; "" if none."""
    own = task.mode is Mode.SELF_ASSIGN and not task.attached
    return task.assigned_to if own and task.status in HELD | WAITING else ""


def holder_of(task: TaskRow) -> str:
    """Return the worker whose live task it is; "" for none or for the creator itself."""
    own = task.mode is Mode.SELF_ASSIGN and not task.attached
    return task.assigned_to if task.status in HELD and not own else ""
