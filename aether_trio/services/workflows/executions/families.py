"""Bounds what one execution causes: in one transaction, and altogether.

    a step starts a sub-workflow ─▶ it begins in the same transaction, if few have
                                 └▶ else it is put off: a row, and a timer that is due now
    timer of the root ─▶ a burst of those that were put off ─▶ the timer again, while any are left

So a workflow that calls itself four times cannot begin its whole tree in one transaction, and the
others have their turns between two bursts. Cancellations of sub-workflows are put off likewise, and
come before the begins.

Executions at the depths from 2 on are counted for their *family*: the execution above all others.
One that goes on with the work of another (`continue_as`) is the root of what it starts, in the
family of the other one, so that no chain leaves it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from aether_trio.model.workflows.happenings import BEGUN_AT_ONCE
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.stored import timers
from aether_trio.storage.base import Deferred, Execute, Fetch, Program, Row

TIMER: Final = "put_off"
"""The kind of the timers; their keys are roots."""
AT_ONCE: Final = BEGUN_AT_ONCE + 1
"""What one transaction begins, and cancels: a page of a map, and its execution."""
COUNTED_DEPTH: Final = 2
"""The depth of executions from which on they are counted."""
_COUNT: Final = """INSERT INTO workflow_families (root_id, family, executions) VALUES ($1, $1, 1)
    ON CONFLICT (root_id) DO UPDATE SET executions = workflow_families.executions + 1, family = excluded.family"""
_OPEN: Final = """INSERT INTO workflow_families (root_id, family, executions) SELECT execution_id, execution_id, 0
    FROM workflow_executions WHERE execution_id = $1 ON CONFLICT DO NOTHING"""
_JOIN: Final = """INSERT INTO workflow_families (root_id, family, executions) VALUES ($1, $2, 0)
    ON CONFLICT (root_id) DO UPDATE SET family = excluded.family"""


class PutOff(IntEnum):
    """What is put off; a lower number comes first."""

    CANCEL = 0
    BEGIN = 1


class ExecutionFamily(NamedTuple):
    """The execution above all others, and how many are counted for it."""

    id: str
    executions: int


class PutOffRow(NamedTuple):
    """A row of `workflow_put_off`."""

    number: int
    what: PutOff
    execution_id: str


def load(root_id: str) -> Program[ExecutionFamily]:
    """Load the family of what a root starts: itself if the other one is forgotten."""
    rows: list[Row] = yield Fetch(
        "SELECT f.family, f.executions FROM workflow_families r JOIN workflow_families f ON f.root_id = r.family "
        "WHERE r.root_id = $1",
        (root_id,),
    )
    return ExecutionFamily(*rows[0]) if rows else ExecutionFamily(root_id, 0)


def count(family: str) -> Program[None]:
    """Count one more execution of a family."""
    yield Deferred("workflow_families", _COUNT, (family,))


def join(root_id: str, other_root_id: str) -> Program[None]:
    """Let what a root starts be of the same family as what another one starts."""
    family = (yield from load(other_root_id)).id
    yield Execute(_OPEN, (family,))
    yield Execute(_JOIN, (root_id, family))


def put_off(tx: Transaction, root_id: str, execution_id: str, what: PutOff) -> Program[None]:
    """Let an execution begin or end in a transaction that follows."""
    sql = "INSERT INTO workflow_put_off (root_id, execution_id, what) VALUES ($1, $2, $3)"
    yield Execute(sql, (root_id, execution_id, int(what)))
    yield from _set_timer(tx, root_id)


def first_put_off(root_id: str) -> Program[list[PutOffRow]]:
    """Read the first that are put off below a root: as many as one transaction takes."""
    rows: list[Row] = yield Fetch(
        "SELECT number, what, execution_id FROM workflow_put_off WHERE root_id = $1 ORDER BY what, number LIMIT $2",
        (root_id, 2 * AT_ONCE),
    )
    return [PutOffRow(number, PutOff(what), execution_id) for number, what, execution_id in rows]


def take(row: PutOffRow) -> Program[None]:
    """Delete the row of what is done now."""
    yield Execute("DELETE FROM workflow_put_off WHERE number = $1", (row.number,))


def go_on(tx: Transaction, root_id: str) -> Program[None]:
    """Set the timer of a root again if anything is put off there, or clear it."""
    rows: list[Row] = yield Fetch("SELECT 1 FROM workflow_put_off WHERE root_id = $1 LIMIT 1", (root_id,))
    if rows:
        yield from _set_timer(tx, root_id)
    else:
        yield from timers.set_timer(TIMER, root_id, 0)


def _set_timer(tx: Transaction, root_id: str) -> Program[None]:
    # The upsert waits for a transaction of another node that is about to delete the row.
    now_ms = tx.context.now_ms
    yield from timers.set_timer(TIMER, root_id, now_ms)
    tx.effects.note_due(now_ms)
