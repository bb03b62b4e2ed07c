"""Rows of state machines and their instances, in portable SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from aether_trio.model.workflows.sources import bus_sources
from aether_trio.services.workflows.stored import changes, sources
from aether_trio.services.workflows.stored.listed_rows import page_of_rows, rows_by_id
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

TIMER: Final = "instance"
"""The kind of the timers of instances."""


@dataclass(frozen=True, slots=True)
class StoredMachine:
    """A state machine as stored; times are Unix ms, `document` is canonical JSON."""

    workspace: str
    id: str
    document: bytes
    digest: str
    owner: str
    active: bool
    created_ms: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An instance as stored; times are Unix ms, 0 for what has not happened.

    `defined_in` is the workspace of its machine. `data` is JSON. `recent` has the ids of the latest
    operations that have moved it, with spaces between.
    """

    workspace: str
    defined_in: str
    machine_id: str
    instance_id: str
    state: str
    data: bytes
    transitions: int
    recent: str
    timeout_ms: int
    completed_ms: int
    created_ms: int
    updated_ms: int

    @property
    def timer_key(self) -> str:
        """Its key in `workflow_timers`: neither of the first two parts has spaces."""
        return f"{self.defined_in} {self.machine_id} {len(self.workspace)} {self.workspace}{self.instance_id}"


_MACHINE: Final = "workspace, id, document, digest, owner, active, created_ms, updated_ms"
_COLUMNS: Final = tuple(one.name for one in fields(InstanceRow))
_FIELDS: Final = ", ".join(_COLUMNS)
_OF: Final = "workspace = $1 AND defined_in = $2 AND machine_id = $3 AND instance_id = $4"
_KEYS: Final = 4
_SET: Final = ", ".join(f"{name} = ${number}" for number, name in enumerate(_COLUMNS, 1) if number > _KEYS)
_TIMER_KEY: Final = (
    "defined_in || ' ' || machine_id || ' ' || CAST(LENGTH(workspace) AS TEXT) || ' ' || workspace || instance_id"
)


def _machine(row: Row) -> StoredMachine:
    return StoredMachine(row[0], row[1], bytes(row[2]), row[3], row[4], bool(row[5]), row[6], row[7])


def _instance(row: Row) -> InstanceRow:
    found = dict(zip(_COLUMNS, row, strict=True))
    return InstanceRow(**{**found, "data": bytes(found["data"])})


def _values(row: InstanceRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _COLUMNS)


# -- machines --------------------------------------------------------------------------------------


def load(workspace: str, id: str) -> Program[StoredMachine | None]:  # noqa: A002
    """Load a machine, also one that is not active; None if there is none."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_MACHINE} FROM workflow_machines WHERE workspace = $1 AND id = $2", (workspace, id)
    )
    return _machine(rows[0]) if rows else None


def of_workspaces(
    workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[StoredMachine]]:
    """Load active machines of workspaces, by workspace and id, behind one if given."""
    select = f"SELECT {_MACHINE} FROM workflow_machines WHERE workspace = $1 AND active = 1"
    found = yield from rows_by_id(select, workspaces, limit, behind)
    return [_machine(row) for row in found]


def changed_since(version: int, limit: int) -> Program[list[tuple[int, StoredMachine]]]:
    """Load machines that were changed after a version, each with its version."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_MACHINE}, changed FROM workflow_machines WHERE changed > $1 ORDER BY changed LIMIT $2",
        (version, limit),
    )
    return [(row[-1], _machine(row)) for row in rows]


def put(machine: StoredMachine) -> Program[None]:
    """Write a machine, new or changed."""
    changed = yield from changes.begin(changes.MACHINE)
    yield Execute(
        f"INSERT INTO workflow_machines ({_MACHINE}, changed) VALUES ({placeholders(9)}) "
        "ON CONFLICT (workspace, id) DO UPDATE SET document = excluded.document, digest = excluded.digest, "
        "owner = excluded.owner, active = excluded.active, updated_ms = excluded.updated_ms, "
        "changed = excluded.changed",
        (
            machine.workspace, machine.id, machine.document, machine.digest, machine.owner, int(machine.active),
            machine.created_ms, machine.updated_ms, changed,
        ),
    )  # fmt: skip
    taken = bus_sources(json.loads(machine.document)) if machine.active else frozenset()
    yield from sources.note(sources.MACHINE, f"{machine.workspace} {machine.id}", machine.workspace, taken)


def deactivate(workspace: str, id: str, now_ms: int) -> Program[bool]:  # noqa: A002
    """Deactivate a machine; its instances rest. Return whether it was active."""
    changed = yield from changes.begin(changes.MACHINE)
    count: int = yield Execute(
        "UPDATE workflow_machines SET active = 0, updated_ms = $3, changed = $4 "
        "WHERE workspace = $1 AND id = $2 AND active = 1",
        (workspace, id, now_ms, changed),
    )
    yield from sources.note(sources.MACHINE, f"{workspace} {id}", workspace, ())
    yield Execute(
        f"DELETE FROM workflow_timers WHERE kind = $1 AND key IN (SELECT {_TIMER_KEY} FROM workflow_instances "
        "WHERE defined_in = $2 AND machine_id = $3 AND completed_ms = 0 AND timeout_ms > 0)",
        (TIMER, workspace, id),
    )
    return bool(count)


def set_timers(workspace: str, id: str) -> Program[int]:  # noqa: A002
    """Set the timers of a machine's instances again; return the first moment, or 0."""
    of = "WHERE defined_in = $1 AND machine_id = $2 AND completed_ms = 0 AND timeout_ms > 0"
    yield Execute(
        f"INSERT INTO workflow_timers (kind, key, due_ms) SELECT '{TIMER}', {_TIMER_KEY}, timeout_ms "
        f"FROM workflow_instances {of} ON CONFLICT (kind, key) DO UPDATE SET due_ms = excluded.due_ms",
        (workspace, id),
    )
    rows: list[Row] = yield Fetch(f"SELECT MIN(timeout_ms) FROM workflow_instances {of}", (workspace, id))
    return rows[0][0] or 0


def open_states(workspace: str, id: str) -> Program[dict[str, int]]:  # noqa: A002
    """Count the instances of a machine that have not completed, by their state."""
    rows: list[Row] = yield Fetch(
        "SELECT state, COUNT(*) FROM workflow_instances WHERE defined_in = $1 AND machine_id = $2 "
        "AND completed_ms = 0 GROUP BY state ORDER BY state",
        (workspace, id),
    )
    return dict(rows)


# -- instances -------------------------------------------------------------------------------------


def load_instance(workspace: str, defined_in: str, machine_id: str, instance_id: str) -> Program[InstanceRow | None]:
    """Load an instance of a machine; None if there is none."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_instances WHERE {_OF}", (workspace, defined_in, machine_id, instance_id)
    )
    return _instance(rows[0]) if rows else None


def with_id(workspaces: Sequence[str], instance_id: str) -> Program[list[InstanceRow]]:
    """Load the instances with an id, of all machines, in some workspaces."""
    rows: list[Row] = yield Fetch(
        f"SELECT {_FIELDS} FROM workflow_instances WHERE workspace IN ({placeholders(len(workspaces), 2)}) "
        "AND instance_id = $1 ORDER BY workspace, machine_id, defined_in LIMIT 100",
        (instance_id, *workspaces),
    )
    return [_instance(row) for row in rows]


def listed(
    workspaces: Sequence[str], machine_id: str, limit: int, behind: tuple[int, str] | None = None
) -> Program[list[InstanceRow]]:
    """Load the latest changed instances of a machine, or of all, in some workspaces.

    `behind`: only those behind an instance with this (last change in Unix ms, timer key).
    """
    found: list[InstanceRow] = []
    for workspace in dict.fromkeys(workspaces):

        def part(last: Row | None, count: int, workspace: str = workspace) -> Program[list[Row]]:
            where = "workspace = $1"
            args: tuple[Any, ...] = (workspace,)
            if machine_id:
                where, args = "workspace = $1 AND machine_id = $2", (workspace, machine_id)
            after = behind
            if last is not None:
                instance = _instance(last)
                after = instance.updated_ms, instance.timer_key
            if after is not None:
                moment = f"${len(args) + 1}"
                where += f" AND updated_ms <= {moment} AND (updated_ms < {moment} OR {_TIMER_KEY} < ${len(args) + 2})"
                args = (*args, *after)
            rows: list[Row] = yield Fetch(
                f"SELECT {_FIELDS} FROM workflow_instances WHERE {where} "
                f"ORDER BY updated_ms DESC, {_TIMER_KEY} DESC LIMIT ${len(args) + 1}",
                (*args, count),
            )
            return rows

        found += map(_instance, (yield from page_of_rows(part, limit)))
    return sorted(found, key=lambda one: (one.updated_ms, one.timer_key), reverse=True)[:limit]


def of_timer(key: str) -> Program[InstanceRow | None]:
    """Load the instance of a timer; None if there is none."""
    defined_in, machine_id, size, rest = key.split(" ", 3)
    workspace, instance_id = rest[: int(size)], rest[int(size) :]
    return (yield from load_instance(workspace, defined_in, machine_id, instance_id))


def insert_instance(row: InstanceRow) -> Program[bool]:
    """Insert an instance; return False if there is one."""
    count: int = yield Execute(
        f"INSERT INTO workflow_instances ({_FIELDS}) VALUES ({placeholders(len(_COLUMNS))}) "
        "ON CONFLICT (workspace, defined_in, machine_id, instance_id) DO NOTHING",
        _values(row),
    )
    return bool(count)


def update_instance(row: InstanceRow) -> Program[None]:
    """Write the changed row of an instance."""
    yield Execute(f"UPDATE workflow_instances SET {_SET} WHERE {_OF}", _values(row))


def delete_instance(row: InstanceRow) -> Program[None]:
    """Delete an instance."""
    yield Execute(
        f"DELETE FROM workflow_instances WHERE {_OF}", (row.workspace, row.defined_in, row.machine_id, row.instance_id)
    )
