"""The gateway sends a task's creator a progress update at each new status.

Updates are for people, and for clients that listen to progress anyhow (tasks.md 1.14). One may be
lost: a client that must see each change subscribes to the task's events.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from aether_trio.delivery.ephemeral_topics import EphemeralSink, EphemeralTopics
from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.tasks import TaskRow
from aether_trio.model.topics import progress_of, progress_of_user
from aether_trio.wire.delivery import encode_progress
from aether_trio.wire.pb import aether_pb2 as pb

SOURCE: Final = "gateway"
PARTICIPANT: Final = "subject_participant"
"""Metadata key of tasks whose user is sent updates too, if it is "1" or "true"."""


def publish(
    ephemeral_topics: EphemeralTopics, task: TaskRow, now_ms: int, kick: Callable[[EphemeralSink], None]
) -> None:
    """Send a task's new status to its creator, and to the user who takes part in it."""
    status = task.status.value
    update = pb.ProgressUpdate(
        source=SOURCE,
        task_id=task.task_id,
        state=status,
        summary=f"task {status}: {task.error}" if task.error else f"task {status}",
        timestamp_ms=now_ms,
        workspace=task.workspace,
        recipient=task.creator,
        kind=pb.PROGRESS_KIND_TASK,
        metadata={"status": status, "task_type": task.task_type},
    )
    ephemeral_topic = _ephemeral_topic_of(task.creator, task.workspace)
    if ephemeral_topic:
        ephemeral_topics.publish(ephemeral_topic, SOURCE, update.recipient, encode_progress(update), kick)
    if task.subject_type.lower() != "user":
        return
    kept = pb.CreateTaskRequest.FromString(task.spec).metadata
    if kept.get(PARTICIPANT, "").lower() in {"1", "true"}:
        update.recipient = f"us::{task.subject_id}"
        for name in ("thread_id", "message_id"):
            if name in kept:
                update.metadata[name] = kept[name]
        update.metadata["started_at_ms"] = str(task.started_ms)
        ephemeral_topics.publish(
            progress_of_user(task.subject_id), SOURCE, update.recipient, encode_progress(update), kick
        )


@lru_cache(maxsize=4096)
def _ephemeral_topic_of(creator: str, workspace: str) -> str:
    """Return the progress topic of a task's creator; "" for one without a topic."""
    try:
        identity = Identity.parse(creator, strict=False)
    except IdentityError:
        return ""
    if identity.kind is Kind.USER:
        return progress_of_user(identity.user_id)
    return progress_of(identity.workspace or workspace)
