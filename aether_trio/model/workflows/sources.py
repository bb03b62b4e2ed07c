"""Names of events that the gateway emits, and which of them a definition takes.

| name | what has happened |
|---|---|
| `task.STATUS` | a task was created, or its status has changed (`TASK_EVENTS`) |
| `kv.put:KEY`, `kv.delete:KEY` | a key of a workspace was written or deleted; KEY may end with `*` |

Those of keys are for rules and triggers, whose owners are asked whether they may read the key.

Nothing is emitted that no definition takes: the cause of an event looks at these names first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aether_trio.model.tasks.status import StoredStatus
from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.reading import quoted

KEY_PUT: Final = "kv.put:"
KEY_DELETED: Final = "kv.delete:"
CREATED: Final = "task.created"
ATTEMPT_FAILED: Final = "task.attempt_failed"
"""An attempt has failed, and another one follows."""

TASK_EVENTS: Final[Mapping[StoredStatus, tuple[str, ...]]] = MappingProxyType(
    {
        StoredStatus.PENDING: ("task.queued",),
        StoredStatus.ASSIGNED: ("task.queued",),
        StoredStatus.STARTING: ("task.queued",),
        StoredStatus.RUNNING: ("task.running",),
        StoredStatus.COMPLETED: ("task.completed",),
        StoredStatus.FAILED: ("task.failed",),
        StoredStatus.CANCELLED: ("task.cancelled",),
        StoredStatus.DLQ: ("task.failed", "task.dlq"),
        StoredStatus.REJECTED: ("task.rejected",),
        StoredStatus.WAITING_INPUT: ("task.waiting_input",),
        StoredStatus.WAITING_AUTHORITY: ("task.waiting_authority",),
        StoredStatus.WAITING_DEPENDENCY: ("task.waiting_dependency",),
        StoredStatus.HIBERNATED: ("task.hibernated",),
    }
)
"""The names of the event of a task that has this status now, if that is an event."""
TASK_NAMES: Final = frozenset({CREATED, ATTEMPT_FAILED}.union(*TASK_EVENTS.values()))


_TASK: Final = "task."
_KEY: Final = "kv."
_ALIKE: Final = 0.7
"""From which likeness on a name counts as a misspelt one; others are of clients."""


class WantedKeyEvents(NamedTuple):
    """The names of events that are wanted of a key: when written, when deleted."""

    put: Sequence[str]
    deleted: Sequence[str]


def is_source(name: str) -> bool:
    """Return whether an event of this name may be one that the gateway emits."""
    return name in TASK_NAMES


def is_key_source(name: str) -> bool:
    """Return whether this is the name of changes of keys."""
    return name.startswith((KEY_PUT, KEY_DELETED))


def doubt_about(name: str, *, keys: bool) -> str:
    """Return why an event never comes that is named like one of the gateway's, or "".

    `keys`: whether the definition takes changes of keys.
    """
    if is_key_source(name):
        return "" if keys else "changes of keys are for rules and triggers: let a rule emit an event for this"
    if name.startswith(_KEY):
        return f"the gateway emits no event {quoted(name)}: changes of keys are kv.put:KEY and kv.delete:KEY"
    if not name.startswith(_TASK) or is_source(name):
        return ""
    near = difflib.get_close_matches(name[len(_TASK) :], sorted(one[len(_TASK) :] for one in TASK_NAMES), 1, _ALIKE)
    return f"the gateway emits no event {quoted(name)}: did you mean {quoted(_TASK + near[0])}?" if near else ""


def takes_key(name: str, key: str) -> bool:
    """Return whether the name of changes of keys is about a key."""
    pattern = name.partition(":")[2]
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern


def rule_sources(document: Mapping[str, Json]) -> frozenset[str]:
    """Return the names of the gateway's events that a rule's document takes."""
    return _sources([document.get("source_event")], keys=True)


def trigger_sources(document: Mapping[str, Json]) -> frozenset[str]:
    """Return the names that the trigger of a workflow takes."""
    trigger = document.get("trigger")
    return _sources([trigger.get("event")] if isinstance(trigger, dict) else [], keys=True)


def wait_sources(document: Mapping[str, Json]) -> frozenset[str]:
    """Return the names that the steps of a workflow wait for."""
    return _sources(_waits(document.get("steps")))


def bus_sources(document: Mapping[str, Json]) -> frozenset[str]:
    """Return the names that the `bus` of a machine takes."""
    bus = document.get("bus")
    entries = bus if isinstance(bus, list) else [bus]
    return _sources([one.get("event") for one in entries if isinstance(one, dict)])


def event_sources(event: str) -> frozenset[str]:
    """Return the name, if it is one of the gateway's events."""
    return _sources([event])


def _waits(steps: Json) -> Iterator[Any]:
    for step in steps if isinstance(steps, list) else ():
        wait = step.get("wait") if isinstance(step, dict) else None
        if isinstance(wait, dict):
            yield wait.get("event")


def _sources(names: Any, *, keys: bool = False) -> frozenset[str]:
    return frozenset(
        name for name in names if isinstance(name, str) and (is_source(name) or (keys and is_key_source(name)))
    )
