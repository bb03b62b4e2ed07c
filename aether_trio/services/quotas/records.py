"""Reads and writes the quotas of workspaces: database programs.

A change records items of the kind "quota": the key is workspace and name, the value a number, None
when it was cleared. Each node applies them to its WorkspaceQuotas in the order of the changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from aether_trio.model.quotas import WorkspaceQuotas, quota_text
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.storage.base import Execute, Fetch, Program

QUOTA: Final = "quota"
_BETWEEN: Final = "\x1f"
"""Between workspace and name in an item's key; the name of a quota has none."""


def follow(changes: AccessChanges, quotas: WorkspaceQuotas) -> None:
    """Keep quotas in memory up to date with the changes of all nodes."""

    def applied(items: Sequence[tuple[str, Any]], everything: bool) -> None:
        changed = [(*_names(key), value) for key, value in items]
        quotas.apply(changed, everything=everything)

    changes.when_applied(QUOTA, applied, load)


def _names(key: str) -> tuple[str, str]:
    workspace, _, name = key.rpartition(_BETWEEN)
    return workspace, name


def _value(text: str) -> float:
    return float(text) if "." in text or "e" in text else int(text)


def load() -> Program[list[tuple[str, Any]]]:
    """Read all quotas, as items."""
    rows = yield Fetch("SELECT workspace, name, value FROM quotas")
    return [(f"{workspace}{_BETWEEN}{name}", _value(value)) for workspace, name, value in rows]


def quotas_of(workspace: str) -> Program[dict[str, float]]:
    """Read the quotas that are set for a workspace, by name."""
    rows = yield Fetch("SELECT name, value FROM quotas WHERE workspace = $1 ORDER BY name", (workspace,))
    return {name: _value(value) for name, value in rows}


def put_quotas(draft: Draft, workspace: str, values: Mapping[str, float | None]) -> Program[None]:
    """Set quotas of a workspace by name; None clears one."""
    for name, value in values.items():
        if value is None:
            cleared: int = yield Execute("DELETE FROM quotas WHERE workspace = $1 AND name = $2", (workspace, name))
            if cleared:
                draft.record(QUOTA, f"{workspace}{_BETWEEN}{name}", None)
            continue
        yield Execute(
            "INSERT INTO quotas (workspace, name, value) VALUES ($1, $2, $3) "
            "ON CONFLICT (workspace, name) DO UPDATE SET value = excluded.value",
            (workspace, name, quota_text(value)),
        )
        draft.record(QUOTA, f"{workspace}{_BETWEEN}{name}", value)


def delete_quotas_of(draft: Draft, workspace: str) -> Program[None]:
    """Clear all quotas of a workspace."""
    known = yield from quotas_of(workspace)
    yield from put_quotas(draft, workspace, dict.fromkeys(known))
