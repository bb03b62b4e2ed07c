"""Which events of the gateway any definition takes (model/workflows/sources.py).

    a definition is written ─▶ rows of `workflow_sources`, an access change, in its transaction
                     every node applies the change before the operation is answered ─▶ `wanted`

So the cause of an event looks into memory to know whether it has to be written, and pays nothing
else if no definition of its workspace takes it. An entry may be left over for a moment: then an
event is written that starts nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from aether_trio.model.workflows.keys import place_key, place_of
from aether_trio.model.workflows.sources import KEY_DELETED, KEY_PUT, WantedKeyEvents, is_key_source, takes_key
from aether_trio.services.access.changes import AccessChanges, Draft, NoAudit, begin, finish
from aether_trio.storage.base import Execute, Fetch, Program, Row

EVERYWHERE: Final = "*"
ITEM: Final = "workflow_source"
"""The kind of the items of access changes; a key is a workspace and an event."""
RULE: Final = "rule"
TRIGGER: Final = "trigger"
WAIT: Final = "wait"
MACHINE: Final = "machine"
SCHEDULE: Final = "schedule"
"""What takes an event."""


class WantedEvents:
    """The events of the gateway that definitions take, in memory. Any thread reads it."""

    def __init__(self) -> None:
        self._wanted: Mapping[str, frozenset[str]] = {}
        """The workspaces whose events are taken, by the event's name; never changed in place."""
        self._keys: tuple[tuple[str, frozenset[str]], ...] = ()
        """Those of them that are about keys."""

    def keys(self, workspace: str, key: str) -> WantedKeyEvents | None:
        """Return the events of a key that are taken; None for none."""
        found = [
            name
            for name, workspaces in self._keys
            if (workspace in workspaces or EVERYWHERE in workspaces) and takes_key(name, key)
        ]
        if not found:
            return None
        return WantedKeyEvents(
            tuple(name for name in found if name.startswith(KEY_PUT)),
            tuple(name for name in found if name.startswith(KEY_DELETED)),
        )

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def follow(self, changes: AccessChanges) -> None:
        """Take in all changes, on all nodes; before the changes are started."""
        changes.when_applied(ITEM, self.changed, _load)

    def changed(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        """Take in changed items; `everything`: these are all there are."""
        wanted = {} if everything else dict(self._wanted)
        for key, value in items:
            workspace, event = place_of(key)
            workspaces = wanted.get(event, frozenset())
            workspaces = workspaces - {workspace} if value is None else workspaces | {workspace}
            wanted[event] = workspaces
            if not workspaces:
                del wanted[event]
        self._wanted = wanted
        self._keys = tuple((name, found) for name, found in wanted.items() if is_key_source(name))

    def among(self, names: Sequence[str], workspace: str) -> tuple[str, ...]:
        """Return those of these names that are taken in a workspace."""
        wanted = self._wanted
        return tuple(
            name for name in names if (found := wanted.get(name)) and (workspace in found or EVERYWHERE in found)
        )


def note(kind: str, key: str, workspace: str, events: Collection[str]) -> Program[None]:
    """Write which events of the gateway a definition takes from now on, and whose.

    `key` is that of the definition among those of its kind.
    """
    rows: list[Row] = yield Fetch(
        "SELECT workspace, event FROM workflow_sources WHERE kind = $1 AND key = $2", (kind, key)
    )
    before, after = set(rows), {(workspace, event) for event in events}
    if before == after:
        return
    draft = Draft(0)
    yield from begin(draft)
    for where, event in sorted(before - after):
        yield Execute(
            "DELETE FROM workflow_sources WHERE kind = $1 AND key = $2 AND workspace = $3 AND event = $4",
            (kind, key, where, event),
        )
        left: list[Row] = yield Fetch(
            "SELECT 1 FROM workflow_sources WHERE event = $1 AND workspace = $2 LIMIT 1", (event, where)
        )
        if not left:
            draft.record(ITEM, place_key(where, event), None)
    for where, event in sorted(after - before):
        yield Execute(
            "INSERT INTO workflow_sources (kind, key, workspace, event) VALUES ($1, $2, $3, $4)",
            (kind, key, where, event),
        )
        draft.record(ITEM, place_key(where, event), True)
    yield from finish(draft, NoAudit())


def note_waits(workspace: str, id: str, events: Collection[str]) -> Program[None]:  # noqa: A002
    """Write for which events of the gateway a workflow's new version waits.

    Executions of former versions that still run go on waiting for theirs.
    """
    key = f"{workspace} {id}"
    rows: list[Row] = yield Fetch("SELECT event FROM workflow_sources WHERE kind = $1 AND key = $2", (WAIT, key))
    kept = {event for (event,) in rows} - set(events)
    if kept and workspace != EVERYWHERE:
        running: list[Row] = yield Fetch(
            "SELECT 1 FROM workflow_executions WHERE workspace = $1 AND workflow_id = $2 AND completed_ms = 0 LIMIT 1",
            (workspace, id),
        )
        if not running:
            kept.clear()
    yield from note(WAIT, key, workspace, {*events, *kept})


def _load() -> Program[list[tuple[str, Any]]]:
    rows: list[Row] = yield Fetch("SELECT DISTINCT workspace, event FROM workflow_sources")
    return [(place_key(workspace, event), True) for workspace, event in rows]
