"""Reads events as the workflow engine takes them from its topic.

The payload of an EVENT is JSON: `{source_agent, workspace, event_names, data}`. Who has sent it,
and which workspace it is about, is what the gateway knows of the message. What the JSON says of
that is kept apart (`claimed_workspace`, `claimed_agent`); it counts only for messages that the
gateway or an engine has written (completion events of tasks, events of rules).

A payload that is no such JSON, or is beyond a bound, is an event with a `reason` and without names.
Numbers are floats, as expressions want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, Final

from aether_trio.model.identity import Identity, IdentityError, Kind
from aether_trio.model.limits import MIB
from aether_trio.model.text import encodable
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.model.workflows.hops import Hops, decode
from aether_trio.services.workflows.documents.json_values import HALF, may_be_infinite, read_json
from aether_trio.wire.pb import aether_pb2 as pb

ENGINE: Final = Identity(Kind.WORKFLOW_ENGINE).text
HOPS: Final = "_hops"
"""The chain of causes: a member of events, and metadata of tasks."""

MAX_EVENT_BYTES: Final = 1 * MIB
MAX_DEPTH: Final = 64
"""Objects and arrays within one another, of a whole payload."""
MAX_NAMES: Final = 64
NAME_BYTES: Final = 256
_TASKS: Final = "tk::"
"""The topics of tasks begin so; only the gateway writes to those of their events."""
KEYS: Final = "kv::"
"""The sources of changes of keys begin so; only the gateway writes such messages."""
WEBHOOKS: Final = "webhook::"
"""The sources of messages from outside begin so; only the gateway writes such messages."""


@dataclass(frozen=True, slots=True)
class TakenEvent:
    """An event of the workflow engine's topic, or why a message there is none.

    `principal` is the identity that has sent or caused it, or the topic of a task's own events.
    `workspace` is "" if its sender is in none and named none. `agent` is the sender's
    implementation, "" if it has none. `reason`: a sentence's end that says why it cannot be
    handled; "" for a good event.
    """

    offset: int
    topic: str
    principal: str
    workspace: str
    agent: str
    names: tuple[str, ...]
    data: Any
    payload: bytes
    at_ms: int
    reason: str = ""
    claimed_workspace: str = ""
    claimed_agent: str = ""
    event_id: str = ""
    """The id of an event that the gateway has written: the topic may have copies of it."""
    subject: tuple[str, str] = ("", "")
    """The principal (type, id) in whose name it was sent; ("", "") for the sender's own."""
    hops: Hops = ()
    """Which rules and workflows have led to it, as it says."""
    source_topic: str = ""
    """The source of its message."""


class _PoisonError(ValueError):
    """What is wrong with a payload, as a sentence's end."""


def read_event(offset: int, frame: bytes, at_ms: int, topic: str = EVENT_INTAKE) -> TakenEvent | None:
    """Read a message of the engine's topic; None if it is no EVENT: it is ignored."""
    message = pb.DownstreamMessage.FromString(frame).msg
    if message.message_type != pb.EVENT:
        return None
    principal, agent, trusted = _sender(message.source_topic)
    subject = message.on_behalf_subject
    names: Sequence[str] = ()
    data, reason, claimed_workspace, claimed_agent, claimed_principal, event_id = None, "", "", "", "", ""
    hops: Hops = ()
    try:
        found = _parse(message.payload)
        claimed_workspace, claimed_agent = _text(found, "workspace"), _text(found, "source_agent")
        names, data = _names(found), found.get("data")
        event_id = _text(found, "event_id") if trusted else ""
        if message.source_topic.startswith((_TASKS, KEYS)):
            claimed_principal = _text(found, "source_principal")
        hops = _hops(found, message.source_topic)
    except _PoisonError as error:
        reason = str(error)
    workspace = message.workspace
    if trusted:
        workspace, agent = workspace or claimed_workspace, claimed_agent or agent
        principal = claimed_principal or principal
    return TakenEvent(
        offset,
        topic,
        principal,
        workspace,
        agent,
        tuple(names),
        data,
        message.payload,
        at_ms,
        reason,
        claimed_workspace,
        claimed_agent,
        event_id,
        (subject.principal_type, subject.principal_id),
        hops,
        message.source_topic,
    )


def _sender(source_topic: str) -> tuple[str, str, bool]:
    """Return (principal, implementation, whether the gateway or an engine wrote it)."""
    if source_topic == EVENT_INTAKE:
        return ENGINE, "workflow-engine", True
    if source_topic.startswith(_TASKS):
        return source_topic, "orchestrator", True
    if source_topic.startswith(KEYS):
        return source_topic, "kv", True
    if source_topic.startswith(WEBHOOKS):
        return source_topic, "webhook", True
    try:
        return source_topic, Identity.parse(source_topic, strict=False).implementation, False
    except IdentityError:
        return source_topic, "", False


def payload_problem(payload: bytes) -> str:
    """Return why an event's payload cannot be handled, as a sentence's end; or ""."""
    try:
        _names(_parse(payload))
    except _PoisonError as error:
        return str(error)
    return ""


def _parse(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_EVENT_BYTES:
        raise _PoisonError(f"its payload has {len(payload)} bytes; at most {MAX_EVENT_BYTES} are handled")
    too_deep = _PoisonError(f"its JSON is nested deeper than {MAX_DEPTH} levels")
    try:
        found = read_json(payload)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise _PoisonError(f"its payload is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _PoisonError(f"its JSON is {_kind(found)} and no object with event_names")
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH and is_deep(found):
        raise too_deep
    if may_be_infinite(payload) and _has_infinity(found):
        raise _PoisonError("its JSON has a number that is too large")
    document: dict[str, Any] = _encodable(found) if HALF.search(payload) else found
    return document


def _encodable(value: Any) -> Any:
    """Return a document without half characters, which no database stores."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    if isinstance(value, dict):
        return {encodable(key): _encodable(one) for key, one in value.items()}
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {str: "a text", float: "a number", bool: "true or false", list: "an array", dict: "an object"}
    return names[type(value)]


def _children(level: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in level:
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list):
            found += value
    return found


def is_deep(document: Any, levels: int = MAX_DEPTH) -> bool:
    """Return whether a JSON value is nested deeper than so many levels."""
    level = [document]
    for _ in range(levels):
        level = _children(level)
    return any(isinstance(one, dict | list) for one in level)


def _has_infinity(document: Any) -> bool:
    level = [document]
    while level:
        if any(isinstance(one, float) and isinf(one) for one in level):
            return True
        level = _children(level)
    return False


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > NAME_BYTES:
        raise _PoisonError(f"its {key} is no text of at most {NAME_BYTES} characters")
    return value


def _hops(found: dict[str, Any], source_topic: str) -> Hops:
    """Read the chain of causes, of the event or of the task that it tells of."""
    if HOPS in found or not source_topic.startswith(_TASKS):
        return decode(found.get(HOPS))
    data = found.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    return decode(metadata.get(HOPS)) if isinstance(metadata, dict) else ()


def _names(found: dict[str, Any]) -> list[str]:
    names = found.get("event_names")
    if names is None or names == []:
        raise _PoisonError("it has no event_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _PoisonError(f"its event_names are {_kind(names)} and no array of texts")
    if len(names) > MAX_NAMES:
        raise _PoisonError(f"it has {len(names)} event_names; at most {MAX_NAMES} are handled")
    for name in names:
        if not name or "\0" in name or len(name.encode()) > NAME_BYTES:
            raise _PoisonError(f"one of its event_names is empty, has a zero byte or over {NAME_BYTES} bytes")
    return list(dict.fromkeys(names))
