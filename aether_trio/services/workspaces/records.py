"""Reads and writes the descriptions of workspaces: database programs.

A change records an item of the kind "workspace"; the value is what is stored, None when it was
deleted. A workspace without a row exists by use alone, while participants are connected in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from aether_trio.services.access.changes import Draft
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

WORKSPACE: Final = "workspace"
MAX_WORKSPACES: Final = 10_000

_COLUMNS: Final = "workspace_id, display_name, description, tenant_id, metadata, created_ms, updated_ms, created_by"


@dataclass(frozen=True, slots=True)
class WorkspaceRecord:
    """A workspace, as stored."""

    workspace_id: str
    display_name: str
    description: str
    tenant_id: str
    metadata: Mapping[str, str]
    created_ms: int
    updated_ms: int
    created_by: str


def _record(row: Row) -> WorkspaceRecord:
    workspace_id, display_name, description, tenant_id, metadata, created_ms, updated_ms, created_by = row
    return WorkspaceRecord(
        workspace_id,
        display_name,
        description,
        tenant_id,
        msgspec.json.decode(metadata),
        created_ms,
        updated_ms,
        created_by,
    )


def find(workspace_id: str) -> Program[WorkspaceRecord | None]:
    """Read a workspace."""
    rows = yield Fetch(f"SELECT {_COLUMNS} FROM workspaces WHERE workspace_id = $1", (workspace_id,))
    return _record(rows[0]) if rows else None


def find_many(workspace_ids: Sequence[str]) -> Program[dict[str, WorkspaceRecord]]:
    """Read those of these workspaces that are stored, by id."""
    if not workspace_ids:
        return {}
    rows = yield Fetch(
        f"SELECT {_COLUMNS} FROM workspaces WHERE workspace_id IN ({placeholders(len(workspace_ids))})", workspace_ids
    )
    return {row[0]: _record(row) for row in rows}


def list_ids() -> Program[list[tuple[str, str]]]:
    """Read (id, tenant) of all workspaces."""
    rows = yield Fetch("SELECT workspace_id, tenant_id FROM workspaces")
    return [(workspace_id, tenant_id) for workspace_id, tenant_id in rows]


def create(draft: Draft, record: WorkspaceRecord) -> Program[str]:
    """Write a new workspace; return why it cannot be, "" if it is written."""
    [[count]] = yield Fetch("SELECT count(*) FROM workspaces")
    if count >= MAX_WORKSPACES:
        return "full"
    if (yield from find(record.workspace_id)) is not None:
        return "exists"
    yield Execute(
        f"INSERT INTO workspaces ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        (
            record.workspace_id, record.display_name, record.description, record.tenant_id,
            msgspec.json.encode(record.metadata), record.created_ms, record.updated_ms, record.created_by,
        ),
    )  # fmt: skip
    draft.record(WORKSPACE, record.workspace_id, _value(record))
    return ""


def update(draft: Draft, record: WorkspaceRecord) -> Program[None]:
    """Write a stored workspace anew."""
    yield Execute(
        "UPDATE workspaces SET display_name = $2, description = $3, tenant_id = $4, metadata = $5, updated_ms = $6 "
        "WHERE workspace_id = $1",
        (
            record.workspace_id, record.display_name, record.description, record.tenant_id,
            msgspec.json.encode(record.metadata), record.updated_ms,
        ),
    )  # fmt: skip
    draft.record(WORKSPACE, record.workspace_id, _value(record))


def delete(draft: Draft, workspace_id: str) -> Program[bool]:
    """Delete a workspace; return whether there was one."""
    count: int = yield Execute("DELETE FROM workspaces WHERE workspace_id = $1", (workspace_id,))
    if count:
        draft.record(WORKSPACE, workspace_id, None)
    return bool(count)


def _value(record: WorkspaceRecord) -> list[str]:
    return [record.display_name, record.description, record.tenant_id]
