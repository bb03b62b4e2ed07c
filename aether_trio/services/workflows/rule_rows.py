"""Rows of rules, in portable SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.services.workflows import changes
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

LATEST_DELETED: Final = 1_000
"""Deleted rules of which the ids are kept, for nodes that have the rules in memory."""
_FIELDS: Final = "id, workspace, name, document, digest, active, owner, created_ms, updated_ms, changed"


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as stored; times are Unix ms.

    `document` is canonical JSON, b"" if it is deleted.
    """

    id: int
    workspace: str
    name: str
    document: bytes
    digest: str
    active: bool
    owner: str
    created_ms: int
    updated_ms: int
    changed: int


def _stored(row: Row) -> StoredRule:
    return StoredRule(
        row[0], row[1], row[2], bytes(row[3]), row[4], bool(row[5]), row[6], row[7], row[8], row[9]
    )  # fmt: skip


def load(id: int) -> Program[StoredRule | None]:  # noqa: A002
    """Load a rule; None if there is none."""
    rows: list[Row] = yield Fetch(f"SELECT {_FIELDS} FROM workflow_rules WHERE id = $1 AND deleted = 0", (id,))
    return _stored(rows[0]) if rows else None


def named(workspace: str, name: str) -> Program[StoredRule | None]:
    """Load the rule with a name; None if there is none."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_rules WHERE workspace = $1 AND name = $2 AND deleted = 0", (workspace, name)
    )
    return _stored(rows[0]) if rows else None


def of_workspaces(workspaces: Sequence[str]) -> Program[list[StoredRule]]:
    """Load the rules of some workspaces, by id."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_rules WHERE workspace IN ({placeholders(len(workspaces))}) AND deleted = 0 "
        "ORDER BY id",
        workspaces,
    )
    return [_stored(row) for row in rows]


def changed_since(version: int) -> Program[list[StoredRule]]:
    """Load the rules that were changed after a version; deleted ones have no document."""
    rows: list[Row] = yield Fetch(f"SELECT {_FIELDS} FROM workflow_rules WHERE changed > $1 ORDER BY id", (version,))
    return [_stored(row) for row in rows]


def count() -> Program[int]:
    """Count the rules."""
    rows: list[Row] = yield Fetch("SELECT COUNT(*) FROM workflow_rules WHERE deleted = 0")
    number: int = rows[0][0]
    return number


def put(rule: StoredRule) -> Program[None]:
    """Write a rule, new or changed."""
    yield Execute(
        f"INSERT INTO workflow_rules ({_FIELDS}, deleted) VALUES ({placeholders(10)}, 0) ON CONFLICT (id) DO UPDATE SET "
        "workspace = excluded.workspace, name = excluded.name, document = excluded.document, digest = excluded.digest, "
        "active = excluded.active, owner = excluded.owner, updated_ms = excluded.updated_ms, changed = excluded.changed",
        (
            rule.id, rule.workspace, rule.name, rule.document, rule.digest, int(rule.active), rule.owner,
            rule.created_ms, rule.updated_ms, rule.changed,
        ),
    )  # fmt: skip


def delete(id: int) -> Program[None]:  # noqa: A002
    """Delete a rule, but for its id. Deletions before the latest ones leave nothing."""
    changed = yield from changes.begin(changes.RULE)
    yield Execute(
        "UPDATE workflow_rules SET deleted = 1, document = $3, active = 0, changed = $2 WHERE id = $1",
        (id, changed, b""),
    )
    rows: list[Row] = yield Fetch(
        "SELECT changed FROM workflow_rules WHERE deleted = 1 ORDER BY changed DESC LIMIT 1 OFFSET $1",
        (LATEST_DELETED,),
    )
    if rows:
        yield Execute("DELETE FROM workflow_rules WHERE deleted = 1 AND changed <= $1", (rows[0][0],))
        yield from changes.forget_before(changes.RULE, rows[0][0])
