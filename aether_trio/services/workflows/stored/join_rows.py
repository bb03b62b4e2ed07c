"""Rows of joins, their members and refused actions, in portable SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from aether_trio.services.workflows.stored import timers
from aether_trio.services.workflows.stored.listed_rows import values_of
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, FetchOne, Program, Row, placeholders

TIMER: Final = "join"
"""The kind of the timers of joins."""
ACTION_TIMER: Final = "join_action"
"""The kind of the timers of actions that are tried again."""
ID: Final = "id"
MEMBER: Final = "member"
EXPECTED: Final = "expected"
"""Kinds of members: the ids that have arrived, the members of a set, and those expected."""


@dataclass(frozen=True, slots=True)
class JoinRow:
    """An instance of a join as stored; times are Unix ms, 0 for none.

    `state` is JSON of JoinState, of which other columns are a mirror. `kept` is JSON of what rules
    have declared of it. `expected` is -1 while it is not known.
    """

    join_id: str
    workspace: str
    join_name: str
    correlation_key: str
    mode: str
    arrived: int
    expected: int
    dirty: int
    status: str
    deadline_ms: int
    linger_until_ms: int
    due_ms: int
    created_ms: int
    updated_ms: int
    state: bytes
    kept: bytes


@dataclass(frozen=True, slots=True)
class WaitingAction:
    """An action that was refused and is tried again; `action` and `hops` are JSON."""

    id: str
    workspace: str
    join_name: str
    correlation_key: str
    owner: str
    hops: str
    action: bytes
    refusals: int


_COLUMNS: Final = tuple(one.name for one in fields(JoinRow))
_FIELDS: Final = ", ".join(_COLUMNS)
_ACTION_COLUMNS: Final = tuple(one.name for one in fields(WaitingAction))
_ACTION_FIELDS: Final = ", ".join(_ACTION_COLUMNS)
_CHANGING: Final = _COLUMNS[_COLUMNS.index("mode") :]
_SET: Final = ", ".join(f"{name} = excluded.{name}" for name in _CHANGING)


def id_of(workspace: str, name: str, key: str) -> str:
    """Return the id of an instance of a join."""
    return hash_of(f"{workspace}\0{name}\0{key}")


def hash_of(text: str) -> str:
    """Return what stands for a text of any length in keys of tables."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _join(row: Row) -> JoinRow:
    return JoinRow(**dict(zip(_COLUMNS, (*row[:-2], bytes(row[-2]), bytes(row[-1])), strict=True)))


def load(join_id: str) -> Program[JoinRow | None]:
    """Load an instance; None if there is none."""
    rows: list[Row] = yield Fetch(f"SELECT {_FIELDS} FROM workflow_joins WHERE join_id = $1", (join_id,))
    return _join(rows[0]) if rows else None


def listed(
    workspaces: Sequence[str], status: str, limit: int, behind: tuple[int, str] | None = None
) -> Program[list[JoinRow]]:
    """Load the latest changed instances of some workspaces, of one status if given.

    `behind`: only those behind an instance with this (last change in Unix ms, id).
    """
    found: list[JoinRow] = []
    for workspace in dict.fromkeys(workspaces):
        of = "workspace = $1", (workspace,)
        for one in [status] if status else (yield from values_of("workflow_joins", "status", *of)):
            where, values = "workspace = $1 AND status = $2", (workspace, one)
            args: tuple[Any, ...] = values
            if behind is not None:
                where, args = f"{where} AND (updated_ms, join_id) < ($3, $4)", (*values, *behind)
            rows: list[Row] = yield Fetch(
                f"SELECT {_FIELDS} FROM workflow_joins WHERE {where} "
                f"ORDER BY updated_ms DESC, join_id DESC LIMIT ${len(args) + 1}",
                (*args, limit),
            )
            found += map(_join, rows)
    return sorted(found, key=lambda row: (row.updated_ms, row.join_id), reverse=True)[:limit]


def put(row: JoinRow, before: JoinRow | None) -> Program[None]:
    """Write an instance and its timer, which `before` had."""
    yield Execute(
        f"INSERT INTO workflow_joins ({_FIELDS}) VALUES ({placeholders(len(_COLUMNS))}) "
        f"ON CONFLICT (join_id) DO UPDATE SET {_SET}",
        tuple(getattr(row, name) for name in _COLUMNS),
    )
    if before is None or before.due_ms != row.due_ms:
        yield from timers.set_timer(TIMER, row.join_id, row.due_ms)


def delete(join_id: str) -> Program[None]:
    """Forget an instance, with its members and its timer."""
    yield from delete_members(join_id)
    yield Execute("DELETE FROM workflow_joins WHERE join_id = $1", (join_id,))
    yield from timers.set_timer(TIMER, join_id, 0)


# -- members ---------------------------------------------------------------------------------------


def add_member(join_id: str, kind: str, member: str) -> Program[bool]:
    """Note a member; return False if it was there."""
    count: int = yield Execute(
        "INSERT INTO workflow_join_members (join_id, kind, member) VALUES ($1, $2, $3) "
        "ON CONFLICT (join_id, kind, member) DO NOTHING",
        (join_id, kind, hash_of(member)),
    )
    return bool(count)


def has_member(join_id: str, kind: str, member: str) -> Program[bool]:
    """Return whether there is a member."""
    rows: list[Row] = yield Fetch(
        "SELECT 1 FROM workflow_join_members WHERE join_id = $1 AND kind = $2 AND member = $3",
        (join_id, kind, hash_of(member)),
    )
    return bool(rows)


def set_expected(join_id: str, members: Iterable[str]) -> Program[None]:
    """Write the expected set in place of the one before."""
    yield from delete_members(join_id, EXPECTED)
    yield ExecuteMany(
        "INSERT INTO workflow_join_members (join_id, kind, member) VALUES ($1, $2, $3)",
        [(join_id, EXPECTED, hash_of(member)) for member in members],
    )


def count_present(join_id: str) -> Program[int]:
    """Count the members of the expected set that have arrived."""
    rows: list[Row] = yield Fetch(
        "SELECT COUNT(*) FROM workflow_join_members m JOIN workflow_join_members e ON e.join_id = m.join_id "
        "AND e.kind = $3 AND e.member = m.member WHERE m.join_id = $1 AND m.kind = $2",
        (join_id, MEMBER, EXPECTED),
    )
    number: int = rows[0][0]
    return number


def delete_members(join_id: str, kind: str = "") -> Program[None]:
    """Delete the members of a kind, or of all."""
    where, args = "join_id = $1", [join_id]
    if kind:
        where, args = f"{where} AND kind = $2", [join_id, kind]
    yield Execute(f"DELETE FROM workflow_join_members WHERE {where}", args)


# -- actions ---------------------------------------------------------------------------------------


def load_action(id: str) -> Program[WaitingAction | None]:  # noqa: A002
    """Load an action that is tried again; None if there is none."""
    rows: list[Row] = yield FetchOne(f"SELECT {_ACTION_FIELDS} FROM workflow_join_actions WHERE id = $1", (id,))
    if not rows:
        return None
    found: dict[str, Any] = dict(zip(_ACTION_COLUMNS, rows[0], strict=True))
    return WaitingAction(**{**found, "action": bytes(found["action"])})


def put_action(action: WaitingAction, due_ms: int) -> Program[None]:
    """Write an action that is tried again at a moment."""
    yield Execute(
        f"INSERT INTO workflow_join_actions ({_ACTION_FIELDS}) VALUES ({placeholders(len(_ACTION_COLUMNS))}) "
        "ON CONFLICT (id) DO UPDATE SET refusals = excluded.refusals",
        tuple(getattr(action, name) for name in _ACTION_COLUMNS),
    )
    yield from timers.set_timer(ACTION_TIMER, action.id, due_ms)


def delete_action(id: str) -> Program[None]:  # noqa: A002
    """Delete an action that is not tried again, and its timer."""
    yield Execute("DELETE FROM workflow_join_actions WHERE id = $1", (id,))
    yield from timers.set_timer(ACTION_TIMER, id, 0)
