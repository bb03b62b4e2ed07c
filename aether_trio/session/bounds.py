"""How long the fields of a request may be: one table for all operations, looked at before any handler.

What a request says is echoed (its id), stored (a wait, metadata, a registration), put into answers, events and lists,
and looked for. So every text has a bound, and so has a request as a whole. Three rules, in the words of docs/wire.md:

* a name (ids, keys, topics, words of the protocol) has at most `Limits.name_bytes`;
* a text for people or programs (`TEXTS`) has at most `Limits.text_bytes`;
* a request has at most `Limits.request_bytes` beside its content, which is what is of type `bytes` and what is in
  `JUDGED`; its operation judges that.

Most requests are shorter than a name may be, so one comparison lets them pass.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from aether_trio.model.limits import Limits

JUDGED: Final = frozenset(
    {
        # Their own bounds, with refusals of their own.
        "aether.v1.KVOperation.key",
        "aether.v1.CheckpointOperation.key",
        # A report has 64 KiB for all of it (services/progress.py).
        "aether.v1.ProgressReport.state",
        "aether.v1.ProgressReport.summary",
        "aether.v1.ProgressStep.name",
        "aether.v1.ProgressStep.detail",
        "aether.v1.ProgressStep.step_type",
        # Cut, not refused: a task that fails with a long text has failed (services/tasks/handlers/sanitize.py, cluster/locks/disconnects.py).
        "aether.v1.TaskOperation.reason",
        "aether.v1.SessionOperation.reason",
        # A header of HTTP, and a credential of its own.
        "aether.v1.ProxyHttpRequest.path",
        "aether.v1.TunnelOpen.session_token",
    }
)
"""Fields that their operation judges."""

TEXTS: Final = frozenset(
    {
        "description",
        "detail",
        "error",
        "error_message",
        "escalation_policy",
        "message",
        "reason",
        "resource_id_schema",
    }
)
"""Names of fields that hold more than a name."""


def excess_of(payload: Any) -> str | None:
    """What of this request is too long, as a sentence; None for a request within its bounds."""
    size = payload.ByteSize()
    if size <= Limits.name_bytes:
        return None
    content, excess = _look(payload, "")
    if excess is not None:
        return excess
    rest = size - content
    if rest > Limits.request_bytes:
        return f"the request has {rest} bytes beside its content; at most {Limits.request_bytes} are allowed"
    return None


def _look(message: Any, path: str) -> tuple[int, str | None]:
    """(bytes of content, what is too long)."""
    content = 0
    for field, value in message.ListFields():
        kind = field.type
        if kind == FieldDescriptor.TYPE_BYTES:
            content += sum(map(len, value)) if field.is_repeated else len(value)
        elif kind == FieldDescriptor.TYPE_STRING:
            if field.full_name in JUDGED:
                content += len(value.encode())
                continue
            most = Limits.text_bytes if field.name in TEXTS else Limits.name_bytes
            for text in value if field.is_repeated else (value,):
                if len(text) * 4 > most and (size := len(text.encode())) > most:
                    return content, f"{path}{field.name} has {size} bytes; at most {most} are allowed"
        elif kind == FieldDescriptor.TYPE_MESSAGE and not _is_map(field):
            for part in value if field.is_repeated else (value,):
                within, excess = _look(part, f"{path}{field.name}.")
                content += within
                if excess is not None:
                    return content, excess
    return content, None


def _is_map(field: Any) -> bool:
    """Maps have no bound of their own: they count for the whole request."""
    return bool(field.message_type.GetOptions().map_entry)
