"""A task as a store keeps it: one flat row. Times are Unix milliseconds, 0 where something has not happened.

`epoch` counts assignments: whoever holds an older one has lost the task. `events` is the number of the task's latest event.
The last group of fields is derived from the others by `derived` whenever a row is written, so that indexes can be small.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from aether_trio.model.tasks.retry import RetryPolicy
from aether_trio.model.tasks.status import HELD, WAITING, Status, is_final
from aether_trio.model.tasks.wait import Wait

PROCESS_ENDED: Final = -1
"""The grace of a start whose process is known to have ended."""
AGENT_STARTUP: Final = "agent_startup"
"""The task type that starts an agent; nobody but an orchestrator works on it."""


class Mode(enum.StrEnum):
    """Who does the work: the creator, one identity, or any worker of an implementation."""

    SELF_ASSIGN = "self_assign"
    TARGETED = "targeted"
    POOL = "pool"

    __hash__ = str.__hash__


@dataclass
class Task:
    """See the module's text. `status` and `mode` are stored words; treat a row as a value, `changed` makes the next one.

    Its fields are all there is in its `__dict__`, in the order of COLUMNS: copying and comparing that costs a third of what slots do.
    """

    task_id: str
    task_type: str
    workspace: str
    mode: Mode = Mode.SELF_ASSIGN
    category: str = "regular"
    task_class: int = 0
    priority: int = 30
    creator: str = ""
    """Identity text."""
    target: str = ""
    """TARGETED: the identity text of the worker."""
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
    grace_ms: int = 0
    """PROCESS_ENDED for a start whose process has ended."""
    schedule_to_start_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_timeout_ms: int = 0
    schedule_to_close_ms: int = 0
    retry_policy: str = ""
    """JSON (retry.py); "" for none."""
    spec: bytes = b""
    """What the creator said that no decision depends on; the service's own encoding."""
    order_us: int = 0
    """Creation time in microseconds, for first in first out."""
    created_ms: int = 0

    status: Status = Status.PENDING
    epoch: int = 0
    assigned_to: str = ""
    updated_ms: int = 0
    pending_ms: int = 0
    """Since when it waits, or has last waited, to be assigned."""
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
    wait: str = ""
    """JSON (wait.py); "" for none."""
    attached: int = 0
    """1: bound by a token to the session of its worker, whose clean end completes it."""
    tokens: int = 0
    """1: there are tokens to be revoked when it ends."""
    ended_by: str = ""
    """Whose move made it terminal."""
    checkpoint_key: str = ""
    resume_session_id: str = ""
    events: int = 0
    awaited: int = 0
    """1: others wait, or have waited, for its end."""
    has_children: int = 0
    """1: there are, or have been, tasks whose parent it is."""
    input_offset: int = 0
    """The number in the log of the last input that was taken over from there; 0: it never had one."""
    pause_key: str = ""
    """Which PAUSE was its last (`Facts.pause_key`)."""
    deliveries: int = 0
    """How often it was given to a worker that let go of it without beginning; since an attempt began."""
    opened_ms: int = 0
    """When a participant last had it tried again, 0 for its creation: `schedule_to_close` counts from then."""
    fresh_ms: int = 0
    """When it last went on: by a retry, or after a wait. 0 for its creation."""
    running_ms: int = 0
    """Since when its worker works, without the time of earlier stints of this attempt; 0 for `started_ms`."""
    worked_ms: int = 0
    """How long this attempt was worked on before its last wait."""
    excused_ms: int = 0
    """Until when nothing is expected of its worker, as the gateway was away."""
    begun: int = 0
    """1: its worker, which does not say when it begins, has gone, and is taken to have begun this one."""
    launched: int = 0
    """Of a start: the epoch of the orchestrator's assignment whose token its agent has shown; 0: it has shown none."""

    queue: str = ""
    """Where it waits to be assigned, "" when it does not."""
    holder: str = ""
    """Whose live task it is, "" when it is nobody's. What its creator has assigned to itself keeps it from no other work."""
    keeper: str = ""
    """The creator that works on it itself, "" when it is another participant's or has ended."""
    due_ms: int = 0
    """When time alone moves it, 0 for never."""

    @property
    def is_final(self) -> bool:
        """Terminal, and no attempt is to follow."""
        return is_final(self.status, self.next_retry_ms)

    @property
    def process_ended(self) -> bool:
        """Whether this is a start whose process is known to have ended."""
        return self.grace_ms < 0

    @property
    def policy(self) -> RetryPolicy | None:
        """Its retry policy."""
        return RetryPolicy.from_json(self.retry_policy) if self.retry_policy else None

    @property
    def waits_for(self) -> Wait | None:
        """What it waits for, while it is paused."""
        return Wait.from_json(self.wait) if self.wait else None

    def values(self) -> tuple[Any, ...]:
        """In the order of COLUMNS, as a store takes them: words are plain text, which binds in half the time."""
        return tuple({**self.__dict__, "status": self.status.value, "mode": self.mode.value}.values())

    def changed(self, changes: Mapping[str, Any]) -> Task:
        """The row after `changes`."""
        task = _new(Task)
        task.__dict__.update(self.__dict__)
        task.__dict__.update(changes)
        assert len(task.__dict__) == len(COLUMNS), changes
        return task

    def differences(self, after: Task) -> dict[str, Any]:
        """What of another state of this row is not as here, as a store takes it."""
        old = self.__dict__
        found = {name: value for name, value in after.__dict__.items() if value is not old[name] and value != old[name]}
        if "status" in found:
            found["status"] = after.status.value
        return found

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Task:
        """A row of COLUMNS as a store gives it."""
        task = _new(cls)
        state = task.__dict__
        state.update(zip(COLUMNS, row, strict=True))
        state["status"] = _STATUSES[state["status"]]
        state["mode"] = _MODES[state["mode"]]
        return task


COLUMNS: Final = tuple(item.name for item in fields(Task))
_STATUSES: Final = {status.value: status for status in Status}
_MODES: Final = {mode.value: mode for mode in Mode}
_new: Final = object.__new__


def pool_queue(workspace: str, implementation: str) -> str:
    """The queue of a pool. Its name begins with "pool", as no identity does."""
    return f"pool::{workspace}::{implementation}"


def queue_of(task: Task) -> str:
    """Where a task waits to be assigned: its pool's queue, or that of the one identity that may do it; "" when it does not wait."""
    if task.status is not Status.PENDING:
        return ""
    if task.task_type == AGENT_STARTUP:
        return ""  # orchestration has its own
    if task.mode is Mode.POOL:
        return pool_queue(task.workspace, task.target_implementation)
    return task.target if task.mode is Mode.TARGETED else task.creator


def keeper_of(task: Task) -> str:
    """The creator that has assigned a task to itself and has it still, without a token."""
    own = task.mode is Mode.SELF_ASSIGN and not task.attached
    return task.assigned_to if own and task.status in HELD | WAITING else ""


def holder_of(task: Task) -> str:
    """Whose live task it is. What its creator has assigned to itself and works on without a token counts for nobody."""
    own = task.mode is Mode.SELF_ASSIGN and not task.attached
    return task.assigned_to if task.status in HELD and not own else ""
