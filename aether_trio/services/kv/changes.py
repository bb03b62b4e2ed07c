"""Changes of keys as events: rows that are written with the change.

    transaction of the write ─▶ `kv_changes` ─▶ mover (services/workflows/events/kv_events.py) ─▶
    deleted

Only keys of the scope `workspace` have events. `KeyEvents` says which events of a key are wanted,
from memory, so keys that no definition takes pay nothing else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aether_trio.model.limits import KIB
from aether_trio.model.workflows.sources import WantedKeyEvents
from aether_trio.services.kv.entries import Entry
from aether_trio.storage.base import Execute, Program

VALUE_BYTES: Final = 64 * KIB
"""A longer value is left out of the event."""
NAMES: Final = 64
"""Names of one event; what has more is several events."""
_SHARED: Final = b"shared/ws/"
"""The spaces of the scope `workspace` begin so (spaces.py)."""


KeyEvents = Callable[[str, str], WantedKeyEvents | None]
"""Returns the wanted events of (workspace, key); None for none. Any thread."""


@dataclass(frozen=True, slots=True)
class KeyWatch:
    """Whose key a request changes, and what is wanted of it."""

    workspace: str
    key: str
    principal: str
    operation: str
    wanted: WantedKeyEvents

    def changed(self, entry: Entry | None) -> Program[None]:
        """Write the event of a change in its transaction; None: the key was deleted."""
        names = self.wanted.deleted if entry is None else self.wanted.put
        for begin in range(0, len(names), NAMES):
            data: dict[str, Any] = {"key": self.key, "operation": self.operation}
            if entry is not None and entry.value is None:
                data["members"] = entry.items
            elif entry is not None and entry.value is not None and len(entry.value) <= VALUE_BYTES:
                data |= _value(entry.value)
            event = {
                "source_principal": self.principal,
                "workspace": self.workspace,
                "event_names": list(names[begin : begin + NAMES]),
                "event_id": f"kv:{uuid.uuid4()}",
                "data": data,
            }
            yield Execute("INSERT INTO kv_changes (payload) VALUES ($1)", (json.dumps(event).encode(),))


def _value(value: bytes) -> dict[str, Any]:
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {}


def workspace_of(space: bytes) -> str | None:
    """Return the workspace whose shared space this is; None for another one."""
    if not space.startswith(_SHARED):
        return None
    return space.removeprefix(_SHARED).replace(b"%2F", b"/").replace(b"%25", b"%").decode()


def expired(names: Sequence[tuple[bytes, bytes]], wanted: KeyEvents) -> Program[None]:
    """Write the events of keys that a sweep has deleted as they had expired."""
    for space, key in names:
        workspace = workspace_of(space)
        if workspace is None:
            continue
        text = key.decode("utf-8", "replace")
        found = wanted(workspace, text)
        if found is not None:
            yield from KeyWatch(workspace, text, "", "EXPIRE", found).changed(None)
