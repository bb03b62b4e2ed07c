"""Values of tasks for a client: a task, its assignment, its retries, its waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from aether_trio.client.operations.enums import BackoffStrategy, TaskClass, TaskPriority, TaskStatus, WaitReason
from aether_trio.client.operations.principals import Authorization
from aether_trio.client.operations.records import Millis, Seconds, Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed task is tried again."""

    max_attempts: int = 0
    """Including the first; 0 means 3."""
    backoff: BackoffStrategy = BackoffStrategy.UNSPECIFIED
    initial_delay_ms: int = 0
    """0 means 1,000."""
    max_delay_ms: int = 0
    """Cap of the exponential growth; 0 for none."""
    jitter_factor: float = 0.0
    """From 0 to 1: the share by which a delay may vary either way."""
    schedule_ms: tuple[int, ...] = ()
    """The delays of EXPLICIT_SCHEDULE; the last one repeats."""
    retryable_status_codes: tuple[int, ...] = ()
    honor_retry_after: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEvent:
    """Asks for an event when the task ends in one of these states (none: in any)."""

    enabled: bool = True
    event_name: str = ""
    on_statuses: tuple[TaskStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hibernation:
    """How a task hibernates: the checkpoint with its state, and what wakes it."""

    checkpoint_key: str
    """Must have been saved before."""
    resume_session_id: str = ""
    wake_event_types: tuple[str, ...] = ()
    escalation_policy: str = ""
    """On timeout: "" or "fail", "retry", "alert"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitSpec:
    """What a paused task waits for, and for how long."""

    reason: WaitReason = WaitReason.UNSPECIFIED
    expected_principal: str = ""
    """Who alone ends the wait: a user's id or an identity; "" for any participant."""
    input_match: Mapping[str, str] = field(default_factory=dict)
    authority_request_id: str = ""
    depends_on: tuple[str, ...] = ()
    wake_on_any: bool = False
    """True: the first of `depends_on` is enough."""
    timeout_ms: int = 0
    """After this time the wait has failed; 0 for never."""
    scheduled_wake: Annotated[Millis, Wire("scheduled_wake_unix_ms", "ms")] = None
    hibernation: Hibernation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as the gateway shows it, without its payload and launch parameters."""

    task_id: str
    task_type: str
    status: TaskStatus
    workspace: str
    target_topic: str
    assigned_to: str
    created_at: Seconds
    started_at: Seconds
    completed_at: Seconds
    attempt: int
    """Failures so far; 0 during the first attempt."""
    max_attempts: int
    error: str
    metadata: Mapping[str, str]
    authority_mode: str
    subject_type: str
    subject_id: str
    root_subject_type: str
    root_subject_id: str
    authority_grant_id: str
    root_authority_grant_id: str
    parent_authority_grant_id: str
    creator: Annotated[str, Wire("creator_actor_id")]
    """The identity text of its creator."""
    parent_task_id: str
    task_class: TaskClass
    disconnected_at: Seconds
    """When its worker vanished; None while it is there."""
    grace_window_ms: int
    """How long the worker may stay away before the task fails."""
    wait_spec: WaitSpec | None
    depends_on: tuple[str, ...]
    context_id: str
    paused_at: Seconds
    priority: TaskPriority
    correlation_id: str
    root_task_id: str
    completion_event: CompletionEvent | None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page of tasks."""

    tasks: tuple[Task, ...]
    next_page_token: str
    """For the next page; "" when this is the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedTask:
    """The gateway's answer to a request to create a task: its id and first state."""

    task_id: str
    status: str
    """assigned, orchestration_triggered or pending_pool; "" for a repeated request."""
    assigned_to: str
    task_token: str = field(repr=False)
    """The token with which `target_identity` may connect; "" if not asked or allowed."""
    authority_grant_id: str


NUMBER: Final = "_assignment"
"""The metadata key of the number of a task's latest assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A task assigned to a worker, or a start assigned to an orchestrator."""

    task_id: str
    task_type: str
    assigned_to: str
    metadata: Mapping[str, str]
    assigned_at: Seconds
    profile: str
    """Orchestrators: which launch profile to use."""
    launch_params: Mapping[str, str] = field(repr=False)
    """Orchestrators: parameters for the new process, its auth_token among them."""
    target_implementation: str
    workspace: str
    specifier: str
    """Orchestrators: the specifier the new process must connect with."""
    payload: bytes
    task_class: TaskClass
    checkpoint_key: str
    """After a hibernation: where the task left its state."""
    resume_session_id: str
    authorization: Authorization | None

    @property
    def number(self) -> str:
        """The number of this assignment of the task; "" when the gateway does not say."""
        return self.metadata.get(NUMBER, "")

    @property
    def reference(self) -> str:
        """The task's id with the assignment's number, for requests about the task."""
        return f"{self.task_id}@{self.number}" if self.number else self.task_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Hibernated:
    """Notice that a task hibernates: its worker may end."""

    task_id: str
    hibernation: Annotated[Hibernation | None, Wire("descriptor")]
