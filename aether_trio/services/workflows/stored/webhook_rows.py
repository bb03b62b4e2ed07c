"""Rows of webhooks, and of what they have accepted, in portable SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Final

from aether_trio.services.workflows.stored.listed_rows import rows_by_id
from aether_trio.storage.base import Execute, FetchOne, Program, Row

_COLUMNS: Final = "workspace, id, event, document, owner, active, key_id, secrets, created_ms, updated_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWebhook:
    """A webhook as stored; times are Unix ms. `document` has no secrets."""

    workspace: str
    id: str
    event: str
    document: bytes
    owner: str
    active: bool
    key_id: str
    secrets: bytes = field(repr=False)
    created_ms: int
    updated_ms: int

    @property
    def place(self) -> str:
        """What names it: WORKSPACE/NAME."""
        return f"{self.workspace}/{self.id}"


def _stored(row: Row) -> StoredWebhook:
    workspace, id, event, document, owner, active, key_id, secrets, created_ms, updated_ms = row  # noqa: A001
    return StoredWebhook(
        workspace=workspace, id=id, event=event, document=bytes(document), owner=owner, active=bool(active),
        key_id=key_id, secrets=bytes(secrets), created_ms=created_ms, updated_ms=updated_ms,
    )  # fmt: skip


def load(workspace: str, id: str) -> Program[StoredWebhook | None]:  # noqa: A002
    """Load a webhook; None if there is none."""
    rows: list[Row] = yield FetchOne(
        f"SELECT {_COLUMNS} FROM workflow_webhooks WHERE workspace = $1 AND id = $2",  # noqa: S608
        (workspace, id),
    )
    return _stored(rows[0]) if rows else None


def listed(
    workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[StoredWebhook]]:
    """Load a page of the webhooks of some workspaces, by workspace and name."""
    select = f"SELECT {_COLUMNS} FROM workflow_webhooks WHERE workspace = $1"  # noqa: S608
    rows = yield from rows_by_id(select, workspaces, limit, behind)
    return [_stored(row) for row in rows]


def put(webhook: StoredWebhook) -> Program[None]:
    """Write a webhook, new or changed."""
    values = tuple(int(value) if isinstance(value, bool) else value for value in astuple(webhook))
    yield Execute(
        f"INSERT INTO workflow_webhooks ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "  # noqa: S608
        "ON CONFLICT (workspace, id) DO UPDATE SET event = excluded.event, document = excluded.document, "
        "owner = excluded.owner, active = excluded.active, key_id = excluded.key_id, secrets = excluded.secrets, "
        "updated_ms = excluded.updated_ms",
        values,
    )


def delete(workspace: str, id: str) -> Program[bool]:  # noqa: A002
    """Delete a webhook; return whether it was there."""
    count: int = yield Execute("DELETE FROM workflow_webhooks WHERE workspace = $1 AND id = $2", (workspace, id))
    return bool(count)


def take_id(digest: str, body_hash: str, now_ms: int) -> Program[str | None]:
    """Note that a message is accepted, or return the hash of the one that was before.

    That is "" for a message that was accepted before hashes were kept.
    """
    count: int = yield Execute(
        "INSERT INTO workflow_webhook_ids (hash, at_ms, body_hash) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
        (digest, now_ms, body_hash),
    )
    if count:
        return None
    rows: list[Row] = yield FetchOne("SELECT body_hash FROM workflow_webhook_ids WHERE hash = $1", (digest,))
    return rows[0][0] if rows else ""
