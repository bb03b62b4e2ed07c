"""Refuses client requests whose fields are too long, by one table of bounds.

Texts of requests are stored, echoed and listed. So every text has a bound, and so has a request as
a whole, before any handler runs. The four rules of docs/wire.md:

* a name (ids, keys, topics, words of the protocol) has at most `Limits.name_bytes`;
* a text for people or programs (`TEXTS`) has at most `Limits.text_bytes`;
* a list of numbers has at most `Limits.numbers`: a packed one is a field of any length;
* a request has at most `Limits.request_bytes` without its content. Content is what is of type
  `bytes`, what is in `CHECKED_BY_OPERATION`, which the operation checks, and the result in a
  COMPLETE of a task.

Most requests are shorter than a name may be, so one comparison lets them pass.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from aether_trio.model.limits import Limits
from aether_trio.model.tasks.result import RESULT_KEYS
from aether_trio.wire.pb import aether_pb2 as pb

CHECKED_BY_OPERATION: Final = frozenset(
    {
        # Their operation has bounds and refusals for them.
        "aether.v1.KVOperation.key",
        "aether.v1.CheckpointOperation.key",
        # A report has 64 KiB in all (services/progress.py).
        "aether.v1.ProgressReport.state",
        "aether.v1.ProgressReport.summary",
        "aether.v1.ProgressStep.name",
        "aether.v1.ProgressStep.detail",
        "aether.v1.ProgressStep.step_type",
        # Cut, not refused: a task that fails with a long text has failed
        # (services/tasks/handlers/sanitize.py, cluster/locks/remote_disconnects.py).
        "aether.v1.TaskOperation.reason",
        "aether.v1.SessionOperation.reason",
        # A policy's document (services/access/policy_service.py), or the short reason of a rule.
        "aether.v1.ACLGrantRequest.reason",
        # A header of HTTP, and a credential.
        "aether.v1.ProxyHttpRequest.path",
        "aether.v1.TunnelOpen.session_token",
    }
)
"""Fields that their operation checks."""

TEXTS: Final = frozenset(
    {"description", "detail", "error", "error_message", "escalation_policy", "message", "reason", "resource_id_schema"}
)
"""Names of fields that hold more than a name."""


def excess_of(payload: Any) -> str | None:
    """Return a sentence on the field of a request that is too long; None if none is."""
    size = payload.ByteSize()
    if size <= Limits.name_bytes:
        return None
    content, excess = _measure(payload, "")
    if excess is not None:
        return excess
    if isinstance(payload, pb.TaskOperation) and payload.op == pb.TaskOperation.COMPLETE:
        match = payload.wait_spec.input_match
        content += sum(len(match[name].encode()) for name in RESULT_KEYS if name in match)
    rest = size - content
    if rest > Limits.request_bytes:
        return f"the request has {rest} bytes without its content; at most {Limits.request_bytes} are allowed"
    return None


def _measure(message: Any, path: str) -> tuple[int, str | None]:
    """Return (bytes that the operation itself bounds, sentence on a too long field)."""
    content = 0
    for field, value in message.ListFields():
        kind = field.type
        if kind == FieldDescriptor.TYPE_BYTES:
            content += sum(map(len, value)) if field.is_repeated else len(value)
        elif kind == FieldDescriptor.TYPE_STRING:
            if field.full_name in CHECKED_BY_OPERATION:
                content += len(value.encode())
                continue
            most = Limits.text_bytes if field.name in TEXTS else Limits.name_bytes
            for text in value if field.is_repeated else (value,):
                if len(text) * 4 > most and (size := len(text.encode())) > most:
                    return content, f"{path}{field.name} has {size} bytes; at most {most} are allowed"
        elif kind == FieldDescriptor.TYPE_MESSAGE and not _is_map(field):
            for part in value if field.is_repeated else (value,):
                within, excess = _measure(part, f"{path}{field.name}.")
                content += within
                if excess is not None:
                    return content, excess
        elif field.is_repeated and kind != FieldDescriptor.TYPE_MESSAGE and len(value) > Limits.numbers:
            return content, f"{path}{field.name} has {len(value)} numbers; at most {Limits.numbers} are allowed"
    return content, None


def _is_map(field: Any) -> bool:
    return bool(field.message_type.GetOptions().map_entry)
