"""Counts repeated events, so that one row a minute stands for all of them.

The first event of a kind is a row at once, so that it can be found soon. What repeats it within the
minute costs an integer, and becomes one row with `count` at the end of the minute. Nothing is
dropped: a kind that does not fit into the table is written event by event.

A client chooses much of what makes a kind: names of resources, workspaces, topics. So a session has
separate rows for SESSION_KINDS kinds a minute. Its further ones share a row for each operation and
outcome, with the resource "*".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from aether_trio.model.audit import TEXT_BYTES, AuditEvent
from aether_trio.model.clock import Clock

MAX_KINDS: Final = 20_000
SESSION_KINDS: Final = 400
OTHERS: Final = "*"
KEPT_CHARACTERS: Final = 2 * TEXT_BYTES
"""Of a text that a client chooses; a row has TEXT_BYTES of it at most."""
_TEXTS: Final = ("resource_id", "resource_type", "workspace", "operation", "error_message", "actor_id")


class EventSource(NamedTuple):
    """The session whose kinds are bounded, and the workspace that it is in."""

    session_id: str
    workspace: str


@dataclass(slots=True)
class CountedEvent:
    """The first event of a kind within this minute, and how often it was repeated."""

    event: AuditEvent
    count: int = 0


class EventCounts:
    """Puts the first event of each kind to `put`, and counts its repeats."""

    def __init__(self, put: Callable[[AuditEvent], None], clock: Clock, *, most: int = MAX_KINDS) -> None:
        self._put = put
        self._clock = clock
        self._most = most
        self._kinds: dict[Hashable, CountedEvent] = {}
        self._of_sessions: Counter[str] = Counter()
        """How many kinds each session has within this minute."""

    def __contains__(self, kind: Hashable) -> bool:
        return _short_kind(kind) in self._kinds

    def count(
        self, kind: Hashable, make: Callable[[], AuditEvent], times: int = 1, source: EventSource | None = None
    ) -> None:
        """Note `times` events of a kind; `make` is called for the first one of a minute."""
        kind = _short_kind(kind)
        known = self._kinds.get(kind)
        if known is not None:
            known.count += times
            return
        made = _short_event(make())
        if source is not None:
            if self._of_sessions[source.session_id] >= SESSION_KINDS:
                made = _one_of_others(made, source)
                kind = (source.session_id, OTHERS, made.event_type, made.operation, made.success, made.authority_mode)
                if (known := self._kinds.get(kind)) is not None:
                    known.count += times
                    return
            self._of_sessions[source.session_id] += 1
        event = _counted(made, times)
        self._put(event)
        if len(self._kinds) < self._most:
            self._kinds[kind] = CountedEvent(event)

    def fold(self) -> None:
        """Put a row for the repeats of each kind; begin anew."""
        kinds, self._kinds = self._kinds, {}
        self._of_sessions.clear()
        now_ms = self._clock.now_ms()
        for repeats in kinds.values():
            if repeats.count:
                self._put(replace(_counted(repeats.event, repeats.count), at_ms=now_ms))


def _one_of_others(event: AuditEvent, source: EventSource) -> AuditEvent:
    """Return an event without what tells it from others of its session."""
    event = replace(event, resource_id=OTHERS, workspace=source.workspace, error_message="", metadata={"others": True})
    if event.authority_mode == "direct":
        return event
    return replace(
        event,
        subject_type="",
        subject_id=OTHERS,
        root_subject_type="",
        root_subject_id=OTHERS,
        authority_grant_id=OTHERS,
        root_authority_grant_id="",
        parent_authority_grant_id="",
    )


def _short(value: Any) -> Any:
    return value[:KEPT_CHARACTERS] if isinstance(value, str) else value


def _short_kind(kind: Hashable) -> Hashable:
    """Return a kind without the rest of long texts, which are the client's."""
    if isinstance(kind, tuple) and any(isinstance(one, str) and len(one) > KEPT_CHARACTERS for one in kind):
        return tuple(map(_short, kind))
    return kind


def _short_event(event: AuditEvent) -> AuditEvent:
    """Return an event that takes bounded memory until its repeats are counted."""
    long = {name: _short(text) for name in _TEXTS if len(text := getattr(event, name)) > KEPT_CHARACTERS}
    if any(isinstance(one, str) and len(one) > KEPT_CHARACTERS for one in event.metadata.values()):
        long["metadata"] = {key: _short(value) for key, value in event.metadata.items()}
    return replace(event, **long) if long else event


def _counted(event: AuditEvent, times: int) -> AuditEvent:
    if times == 1 and "count" not in event.metadata:
        return event
    return replace(event, metadata={**event.metadata, "count": times})
