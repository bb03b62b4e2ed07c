"""Versions of kinds of definitions, so that memory is compared with the tables.

A change of rules, workflows or machines raises the version of its kind in its transaction
(`begin`), and the rows that it writes name that version. What a node has in memory is of a version:
the transaction that uses it reads the version first, and the rows that were changed since. So each
change counts from its commit on, on all nodes, without a broadcast.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aether_trio.storage.base import Execute, Fetch, Program, Row

RULE: Final = "rule"
WORKFLOW: Final = "workflow"
MACHINE: Final = "machine"
KEPT_EVENT: Final = "kept_event"
"""Numbers of events that are kept for waits."""


class ChangeVersion(NamedTuple):
    """How often a kind was changed, and since when no deletion is forgotten."""

    version: int
    floor: int


def begin(kind: str) -> Program[int]:
    """Raise the version of a kind; return it. Changes of a kind follow one another."""
    rows: list[Row] = yield Fetch(
        "INSERT INTO workflow_changes (kind, version, floor, members) VALUES ($1, 1, 0, 0) "
        "ON CONFLICT (kind) DO UPDATE SET version = workflow_changes.version + 1 RETURNING version",
        (kind,),
    )
    version: int = rows[0][0]
    return version


def current(kind: str) -> Program[ChangeVersion]:
    """Read the version of a kind."""
    rows: list[Row] = yield Fetch("SELECT version, floor FROM workflow_changes WHERE kind = $1", (kind,))
    return ChangeVersion(*rows[0]) if rows else ChangeVersion(0, 0)


def forget_before(kind: str, floor: int) -> Program[None]:
    """Note that deletions up to a version may have left nothing."""
    yield Execute("UPDATE workflow_changes SET floor = $2 WHERE kind = $1 AND floor < $2", (kind, floor))


def add_members(kind: str, number: int) -> Program[None]:
    """Count things of a kind that are new, or gone (negative), after `begin`."""
    yield Execute("UPDATE workflow_changes SET members = members + $2 WHERE kind = $1", (kind, number))


def members(kind: str) -> Program[int]:
    """Return how many things of a kind there are, of a kind that counts them."""
    rows: list[Row] = yield Fetch("SELECT members FROM workflow_changes WHERE kind = $1", (kind,))
    return int(rows[0][0]) if rows else 0
