"""Convert rows of tasks to protocol messages, and requests to rows.

The protocol has no field for the number of an assignment. A client that asks for it
(session/init_connection.py) finds it in metadata, and names the assignment that it means after the
task's id: "TASK_ID@3". The gateway makes the ids, which have no "@".

Times on the wire are Unix seconds, 0 for what has not happened. Launch parameters are never shown,
payloads only where a GET asks for one (handlers/details.py).
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.tasks import RetrySchedule, StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.result import NO_RESULT
from aether_trio.model.tasks.task import ASSIGNMENT
from aether_trio.wire.pb import aether_pb2 as pb

CHECKPOINT_KEY: Final = "_hibernation_checkpoint_key"
RESUME_SESSION_ID: Final = "_hibernation_resume_session_id"
DEAD_LETTER: Final = "_dead_letter"
"""Metadata key of a dead task: "true", or the name of who has resolved the dead letter."""
RESULT_BYTES: Final = "_result_bytes"
"""Metadata key of a completed task with a result: the size of the result."""
OUTCOME: Final = "_outcome"
"""Metadata key of a failed task: whether and why (not) it is tried again."""
NEXT_ATTEMPT: Final = "_next_attempt_ms"
"""Metadata key of a failed task that will be tried again: when, in Unix ms."""
ON_PARENT_CANCELLED: Final = "on_parent_cancelled"
"""Metadata key of a child, as the protocol has no field: its end if its parent's is CANCELLED."""
ABANDON: Final = "abandon"
"""The child goes on; the default."""
CANCEL: Final = "cancel"
"""The child is cancelled with its parent."""
_RESOLVED: Final = "_dead_letter_resolved"

_KEPT: Final = frozenset({
    "launch_param_overrides", "metadata", "retry_policy", "completion_event", "originating_schedule_id",
    "target_offline_policy",
})  # fmt: skip
_LINEAGE: Final = (
    "authority_mode", "subject_type", "subject_id", "root_subject_type", "root_subject_id", "authority_grant_id",
    "root_authority_grant_id", "parent_authority_grant_id",
)  # fmt: skip
"""Metadata keys that tell on whose behalf a task is done, as its row's columns do."""
RESERVED: Final = frozenset({
    *_LINEAGE, "authority_audience_type", "authority_audience_id", "authority_delegate_type", "authority_delegate_id",
    "creator_type", "creator_id", "creator_actor_type", "creator_actor_id",
})  # fmt: skip
"""Metadata keys that only the gateway sets, as are those that begin with _."""


def _is_reserved(key: str) -> bool:
    return key.startswith("_") or key in RESERVED


def kept_of(request: pb.CreateTaskRequest) -> bytes:
    """Encode the parts of a CreateTaskRequest for which the task's row has no columns."""
    kept = pb.CreateTaskRequest()
    for field, value in request.ListFields():
        name = field.name
        if name not in _KEPT:
            continue
        if name in ("launch_param_overrides", "metadata"):
            getattr(kept, name).update(value)
            for reserved in [key for key in value if _is_reserved(key)] if name == "metadata" else ():
                del kept.metadata[reserved]
        elif isinstance(value, (str, int)):
            setattr(kept, name, value)
        else:
            getattr(kept, name).CopyFrom(value)
    return kept.SerializeToString()


def may_start_target(task: TaskRow) -> bool:
    """Return whether the gateway may start the task's target if it is not connected."""
    policy = _kept(task).target_offline_policy
    return policy in (pb.TARGET_OFFLINE_POLICY_UNSPECIFIED, pb.TARGET_OFFLINE_POLICY_ORCHESTRATE)


def ends_with_parent(task: TaskRow) -> bool:
    """Return whether the creator wants the task cancelled when its parent is."""
    return _kept(task).metadata.get(ON_PARENT_CANCELLED) == CANCEL


def policy_of(request: pb.CreateTaskRequest) -> RetrySchedule | None:
    """Return the retry policy of a CreateTaskRequest, if it has one."""
    if not request.HasField("retry_policy"):
        return None
    policy = request.retry_policy
    return RetrySchedule(
        policy.max_attempts,
        int(policy.backoff),
        policy.initial_delay_ms,
        policy.max_delay_ms,
        policy.jitter_factor if policy.jitter_factor == policy.jitter_factor else 0.0,
        tuple(policy.schedule_ms),
        tuple(policy.retryable_status_codes),
        policy.honor_retry_after,
    )


def named(text: str) -> tuple[str, int]:
    """Split "TASK_ID@3" into the task's id and the number of its assignment (0: none)."""
    task_id, at, number = text.rpartition("@")
    if not at or not (number.isascii() and number.isdigit() and len(number) <= 15):
        return text, 0
    return task_id, int(number)


def info(task: TaskRow, *, numbered: bool = False) -> pb.TaskInfo:
    """Convert the row of a task to the TaskInfo that participants are shown."""
    return show(pb.TaskInfo(), task, numbered=numbered)


def show(shown: pb.TaskInfo, task: TaskRow, *, numbered: bool = False) -> pb.TaskInfo:
    """Write the row of a task into an empty TaskInfo; unset fields cost nothing."""
    row = task.__dict__
    shown.status = pb.TaskStatus.ValueType(task.status.wire)
    for name in _SHOWN:
        if value := row[name]:
            setattr(shown, name, value)
    for name, other in _SHOWN_AS:
        if value := row[other]:
            setattr(shown, name, value)
    if task.process_ended:
        shown.ClearField("grace_window_ms")
    for name, other in _SHOWN_S:
        if value := row[other]:
            setattr(shown, name, value // 1000)
    if task.target:
        shown.target_topic = _topic(task.target)
    wait = task.waits_for
    if wait is not None:
        shown.wait_spec.CopyFrom(_wait_spec(wait))
        shown.depends_on.extend(wait.depends_on)
    kept = _kept(task)
    if metadata := _metadata(task, kept, numbered=numbered):
        shown.metadata.update(metadata)
    if kept.HasField("completion_event"):
        shown.completion_event.CopyFrom(kept.completion_event)
    return shown


_SHOWN: Final = (
    "task_id", "task_type", "workspace", "assigned_to", "max_attempts", "error", "authority_mode", "subject_type",
    "subject_id", "root_subject_type", "root_subject_id", "authority_grant_id", "root_authority_grant_id",
    "parent_authority_grant_id", "parent_task_id", "task_class", "context_id", "priority", "correlation_id",
    "root_task_id",
)  # fmt: skip
_SHOWN_AS: Final = (("attempt", "retry_count"), ("creator_actor_id", "creator"), ("grace_window_ms", "grace_ms"))
_SHOWN_S: Final = tuple(
    (f"{name}_at", f"{name}_ms") for name in ("created", "started", "completed", "disconnected", "paused")
)
_NOTHING_KEPT: Final = pb.CreateTaskRequest()


def _kept(task: TaskRow) -> pb.CreateTaskRequest:
    """Decode a row's kept parts of the CreateTaskRequest, which may only be read."""
    return pb.CreateTaskRequest.FromString(task.spec) if task.spec else _NOTHING_KEPT


def assignment(task: TaskRow, payload: bytes, *, numbered: bool = False) -> pb.TaskAssignment:
    """Make the TaskAssignment that a worker is sent for its task."""
    kept = _kept(task)
    given = pb.TaskAssignment(
        task_id=task.task_id,
        task_type=task.task_type,
        assigned_to=task.assigned_to,
        metadata=_metadata(task, kept, numbered=numbered),
        assigned_at=task.assigned_ms // 1000,
        target_implementation=task.target_implementation,
        workspace=task.workspace,
        specifier=task.target_specifier,
        payload=payload,
        task_class=pb.TaskClass.ValueType(task.task_class),
        checkpoint_key=task.checkpoint_key,
        resume_session_id=task.resume_session_id,
    )
    if task.authority_grant_id:
        given.authorization.CopyFrom(
            pb.AuthorizationContext(
                authority_mode=task.authority_mode,
                subject=pb.PrincipalRef(principal_type=task.subject_type, principal_id=task.subject_id),
                grant_id=task.authority_grant_id,
            )
        )
    return given


def descriptor(task: TaskRow) -> pb.HibernationDescriptor:
    """Return the hibernation descriptor that a hibernated task's worker gave."""
    wait = task.waits_for
    return pb.HibernationDescriptor() if wait is None else _wait_spec(wait).hibernation


def hibernation_of(task: TaskRow) -> dict[str, str]:
    """Return metadata that names the checkpoint and session of a hibernated task."""
    if not task.checkpoint_key:
        return {}
    return {CHECKPOINT_KEY: task.checkpoint_key, RESUME_SESSION_ID: task.resume_session_id}


def _metadata(task: TaskRow, kept: pb.CreateTaskRequest, *, numbered: bool) -> dict[str, str]:
    lineage = task.authority_grant_id
    failed = task.status in _FAILED
    if kept is _NOTHING_KEPT and not (
        numbered or task.checkpoint_key or lineage or failed or task.result_bytes != NO_RESULT
    ):
        return {}
    metadata = {**kept.metadata, **hibernation_of(task)}
    if lineage:
        metadata |= {name: getattr(task, name) for name in _LINEAGE}
    if numbered and task.epoch:
        metadata[ASSIGNMENT] = str(task.epoch)
    if task.result_bytes != NO_RESULT and task.status is StoredStatus.COMPLETED:
        metadata[RESULT_BYTES] = str(task.result_bytes)
    if failed:
        metadata[OUTCOME] = _outcome(task)
        if task.next_retry_ms:
            metadata[NEXT_ATTEMPT] = str(task.next_retry_ms)
    note = metadata.pop(_RESOLVED, "")
    if task.status is StoredStatus.DLQ:
        stamp, _, by = note.partition(" ")
        metadata[DEAD_LETTER] = f"resolved by {by}" if stamp == str(task.failed_ms) else "true"
    return metadata


_FAILED: Final = frozenset({StoredStatus.FAILED, StoredStatus.DLQ})


def _outcome(task: TaskRow) -> str:
    """Return what follows the failure of a task, or why nothing does."""
    if task.next_retry_ms:
        return "retry"
    without_policy = task.policy is None and task.status is StoredStatus.FAILED
    if task.retry_count >= task.max_attempts and not without_policy:
        return "exhausted"
    return "no_policy" if without_policy else "final"


def resolved_by(task: TaskRow, by: str) -> TaskRow:
    """Return a dead task with a note of who resolved it, void if it dies again later."""
    note = pb.CreateTaskRequest(metadata={_RESOLVED: f"{task.failed_ms} {by}"}).SerializeToString()
    return task.changed({"spec": task.spec + note})  # concatenated messages are merged


def _topic(identity: str) -> str:
    try:
        return Identity.parse(identity, strict=False).topic
    except IdentityError:
        return ""


def _wait_spec(wait: Wait) -> pb.WaitSpec:
    spec = pb.WaitSpec(
        reason=pb.WaitReason.ValueType(wait.reason),
        expected_principal=wait.expected_principal,
        input_match=dict(wait.input_match),
        authority_request_id=wait.authority_request_id,
        depends_on=wait.depends_on,
        wake_on_any=wait.wake_on_any,
        timeout_ms=wait.timeout_ms,
        scheduled_wake_unix_ms=wait.wake_ms,
    )
    if wait.checkpoint_key:
        spec.hibernation.checkpoint_key = wait.checkpoint_key
        spec.hibernation.resume_session_id = wait.resume_session_id
        spec.hibernation.wake_event_types.extend(wait.wake_event_types)
        spec.hibernation.escalation_policy = wait.escalation
    return spec
