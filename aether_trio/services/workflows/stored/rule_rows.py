"""Rows of rules, in portable SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from aether_trio.model.workflows.sources import rule_sources
from aether_trio.services.workflows.stored import changes, sources
from aether_trio.services.workflows.stored.listed_rows import page_of_rows
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

LATEST_DELETED: Final = 1_000
"""Deleted rules of which the ids are kept, for nodes that have the rules in memory."""


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as stored; times are Unix ms.

    `document` is canonical JSON. What events it takes is in columns, too: `equalities` is JSON of
    [path, literal] and [path, [literals]]. `reach` is that of the owner's
    credential (requests/reach.py).
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
    source_event: str
    source_agent: str
    priority: int
    equalities: str
    reach: str = ""


@dataclass(frozen=True, slots=True)
class RuleHead:
    """What of a rule is in memory: which events it takes, and for whom it acts.

    It is not active if it is deleted.
    """

    id: int
    workspace: str
    name: str
    active: bool
    owner: str
    changed: int
    source_event: str
    source_agent: str
    priority: int
    equalities: str


_COLUMNS: Final = tuple(one.name for one in fields(StoredRule))
_FIELDS: Final = ", ".join(_COLUMNS)
_HEAD: Final = ", ".join(one.name for one in fields(RuleHead))
_SET: Final = ", ".join(f"{name} = ${number}" for number, name in enumerate(_COLUMNS, 1) if name != "id")


def _stored(row: Row) -> StoredRule:
    found: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    return StoredRule(**{**found, "document": bytes(found["document"]), "active": bool(found["active"])})


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


def all_named(workspaces: Sequence[str], name: str) -> Program[list[StoredRule]]:
    """Load the rules with a name, in the order of these workspaces."""
    found: list[StoredRule] = []
    for workspace in workspaces:
        rule = yield from named(workspace, name)
        if rule is not None:
            found.append(rule)
    return found


def of_workspaces(workspaces: Sequence[str], after: int, limit: int) -> Program[list[StoredRule]]:
    """Load rules of some workspaces with larger ids than `after`, by id."""
    found: list[StoredRule] = []
    for workspace in workspaces:

        def part(last: Row | None, count: int, workspace: str = workspace) -> Program[list[Row]]:
            rows: list[Row] = yield Fetch(
                f"SELECT {_FIELDS} FROM workflow_rules WHERE workspace = $1 AND deleted = 0 AND id > $2 "
                "ORDER BY id LIMIT $3",
                (workspace, after if last is None else _stored(last).id, count),
            )
            return rows

        found += map(_stored, (yield from page_of_rows(part, limit)))
    return sorted(found, key=lambda rule: rule.id)[:limit]


def changed_since(version: int, limit: int) -> Program[list[RuleHead]]:
    """Read the rules that were changed after a version, the first changes first."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_HEAD} FROM workflow_rules WHERE changed > $1 ORDER BY changed LIMIT $2", (version, limit)
    )
    return [RuleHead(*row) for row in rows]


def head(id: int) -> Program[RuleHead | None]:  # noqa: A002
    """Read what is in memory of a rule; None if there is none."""
    rows: list[Row] = yield Fetch(f"SELECT {_HEAD} FROM workflow_rules WHERE id = $1", (id,))
    return RuleHead(*rows[0]) if rows else None


def count() -> Program[int]:
    """Return how many rules there are."""
    return changes.members(changes.RULE)


def insert(rule: StoredRule) -> Program[None]:
    """Insert a new rule."""
    yield Execute(
        f"INSERT INTO workflow_rules ({_FIELDS}, deleted) VALUES ({placeholders(len(_COLUMNS))}, 0)", _values(rule)
    )
    yield from changes.add_members(changes.RULE, 1)
    if taken := _sources_of(rule):
        yield from sources.note(sources.RULE, str(rule.id), rule.workspace, taken)


def update(rule: StoredRule) -> Program[None]:
    """Write a rule that is there already."""
    yield Execute(f"UPDATE workflow_rules SET {_SET} WHERE id = $1", _values(rule))
    yield from sources.note(sources.RULE, str(rule.id), rule.workspace, _sources_of(rule))


def _sources_of(rule: StoredRule) -> frozenset[str]:
    return rule_sources(json.loads(rule.document)) if rule.active else frozenset()


def _values(rule: StoredRule) -> tuple[Any, ...]:
    values = (getattr(rule, name) for name in _COLUMNS)
    return tuple(int(value) if isinstance(value, bool) else value for value in values)


def delete(id: int) -> Program[None]:  # noqa: A002
    """Delete a rule, but for its id. Deletions before the latest ones leave nothing."""
    changed = yield from changes.begin(changes.RULE)
    deleted: int = yield Execute(
        "UPDATE workflow_rules SET deleted = 1, document = $3, active = 0, changed = $2 WHERE id = $1 AND deleted = 0",
        (id, changed, b""),
    )
    if not deleted:
        return
    yield from changes.add_members(changes.RULE, -1)
    yield from sources.note(sources.RULE, str(id), "", ())
    rows: list[Row] = yield Fetch(
        "SELECT changed FROM workflow_rules WHERE deleted = 1 ORDER BY changed DESC LIMIT 1 OFFSET $1",
        (LATEST_DELETED,),
    )
    if rows:
        yield Execute("DELETE FROM workflow_rules WHERE deleted = 1 AND changed <= $1", (rows[0][0],))
        yield from changes.forget_before(changes.RULE, rows[0][0])
