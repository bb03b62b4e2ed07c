"""Values of tasks for a client: a task, its assignment, its retries, its waits."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from aether_trio.client.operations.enums import BackoffStrategy, TaskClass, TaskPriority, TaskStatus, WaitReason
from aether_trio.client.operations.principals import Authorization
from aether_trio.client.operations.records import SPAN, Millis, Seconds, Wire, to_time


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed task is tried again."""

    max_attempts: int = 0
    """Including the first; 0 means 3."""
    backoff: BackoffStrategy = BackoffStrategy.UNSPECIFIED
    initial_delay_s: Annotated[float, Wire("initial_delay_ms", SPAN)] = 0
    """0 means 1."""
    max_delay_s: Annotated[float, Wire("max_delay_ms", SPAN)] = 0
    """Cap of the exponential growth; 0 for none."""
    jitter_factor: float = 0.0
    """From 0 to 1: the share by which a delay may vary either way."""
    schedule_s: Annotated[tuple[float, ...], Wire("schedule_ms", SPAN)] = ()
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
    timeout_s: Annotated[float, Wire("timeout_ms", SPAN)] = 0
    """After this time the wait has failed; 0 for never."""
    scheduled_wake: Annotated[Millis, Wire("scheduled_wake_unix_ms", "ms")] = None
    hibernation: Hibernation | None = None


RETRY: Final = "retry"
"""The `outcome` of a task that will be tried again."""
END_WORDS: Final[Mapping[TaskStatus, str]] = {
    TaskStatus.COMPLETED: "is completed",
    TaskStatus.FAILED: "has failed",
    TaskStatus.CANCELLED: "was cancelled",
    TaskStatus.REJECTED: "was rejected",
}
ENDED: Final = frozenset(END_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question to a person: choices to offer, and whether free text may be given."""

    question: str
    choices: tuple[str, ...] = ()
    text: bool | str = False
    """True, or the label of the text field."""
    question_id: str = ""
    """Which question it is: another one of the same task has another id."""

    @property
    def form(self) -> str:
        """The question as the `_form` of a wait's `input_match`."""
        parts: dict[str, Any] = {"question": self.question}
        if self.choices:
            parts["choices"] = self.choices
        if self.text:
            parts["text"] = self.text
        return json.dumps(parts, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The input that ended a task's wait; empty when a participant resumed the task."""

    by: str = ""
    """The identity of the sender; "" for a resume."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    payload: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A person's answer to the question of a task."""

    approved: bool
    choice: str = ""
    text: str = ""
    by: str = ""
    """The identity of the person."""


FORM: Final = "_form"
QUESTION_ID: Final = "question_id"


def question_of(match: Mapping[str, str]) -> Question | None:
    """Return the question in the `input_match` of a wait; None without one."""
    text = match.get(FORM)
    if text is None:
        return None
    found = json.loads(text)
    return Question(
        question=found["question"],
        choices=tuple(found.get("choices", ())),
        text=found.get("text", False),
        question_id=match.get(QUESTION_ID, ""),
    )


def read_input(text: str) -> Input:
    """Read an input as the gateway shows it in a task's metadata."""
    found = json.loads(text)
    return Input(by=found["by"], metadata=found["metadata"], payload=base64.b64decode(found["payload_base64"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as the gateway shows it, without its payload and launch parameters.

    `tasks.get` and `tasks.wait` give its result; a task of a list has none, though it may have one.
    """

    task_id: str
    task_type: str
    status: TaskStatus
    workspace: str
    target_topic: str
    assigned_to: str
    created_at: Seconds
    started_at: Seconds
    completed_at: Seconds
    failures: Annotated[int, Wire("attempt")]
    """Failed attempts so far."""
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
    grace_window_s: Annotated[float, Wire("grace_window_ms", SPAN)]
    """How long the worker may stay away before the task fails."""
    wait_spec: WaitSpec | None
    depends_on: tuple[str, ...]
    context_id: str
    paused_at: Seconds
    priority: TaskPriority
    correlation_id: str
    root_task_id: str
    completion_event: CompletionEvent | None

    @property
    def attempt(self) -> int:
        """The number of the current attempt, or of the last one; 1 for the first."""
        following = self.failures if self.status is TaskStatus.FAILED else self.failures + 1
        return max(min(following, self.max_attempts or following), 1)

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended, and no retry follows."""
        return self.status in ENDED and self.outcome != RETRY

    @property
    def outcome(self) -> str:
        """What follows a failure: `retry`, or none: `exhausted`, `no_policy`, `final`."""
        return self.metadata.get("_outcome", "")

    @property
    def next_attempt_at(self) -> datetime | None:
        """When a failed task is tried again; None if it is not."""
        return to_time(int(self.metadata.get("_next_attempt_ms", "0")), "ms")

    @property
    def queued_because(self) -> str:
        """Why the task does not run now, on one line; "" if it does, and in a list."""
        return self.metadata.get("_queued_because", "")

    @property
    def has_result(self) -> bool:
        """Whether the task has a result, also in a list."""
        return "_result_bytes" in self.metadata

    @property
    def result(self) -> Any:
        """The result: bytes, or what its JSON text means; None without one, and in a list."""
        if (encoded := self.metadata.get("_result_base64")) is not None:
            return base64.b64decode(encoded)
        text = self.metadata.get("_result")
        return None if text is None else json.loads(text)

    @property
    def result_checkpoint(self) -> str:
        """The key of the checkpoint that is the result; `tasks.saved_result` reads it."""
        return self.metadata.get("_result_checkpoint", "")

    @property
    def question(self) -> Question | None:
        """The question to a person for whose answer the task waits; None without one."""
        return None if self.wait_spec is None else question_of(self.wait_spec.input_match)

    @property
    def used_input(self) -> Input | None:
        """The input that ended its latest wait; None if none did, and in a list."""
        text = self.metadata.get("_input")
        return None if text is None else read_input(text)


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
