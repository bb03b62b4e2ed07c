"""Notes which operations have acted, for commits that are not answered.

A program whose commit was not answered runs again. What it asks for may have happened by then, and
may even have ended the execution: a signal is taken by the first wait, so a second run would give
it to the next one. So the operation's id is committed with what it does.
"""

from __future__ import annotations

from typing import Final

from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.storage.base import Execute, Fetch, Program, Row

KEPT_MS: Final = 3_600_000
"""How long an operation is known: its program runs again within seconds."""


class MadeOperation:
    """An operation of a client, for all runs of its program."""

    def __init__(self, operation_id: str) -> None:
        self._id = operation_id
        self._runs = 0

    def subject(self) -> Program[str]:
        """Return on what an earlier run has acted; "" if none was committed."""
        self._runs += 1
        if self._runs == 1:
            return ""
        rows: list[Row] = yield Fetch(
            "SELECT execution_id FROM workflow_made_operations WHERE operation_id = $1", (self._id,)
        )
        return rows[0][0] if rows else ""

    def note(self, tx: Transaction, subject: str) -> Program[None]:
        """Note that the operation acts on an execution, or a schedule_subject."""
        now_ms = tx.context.now_ms
        yield Execute(
            "DELETE FROM workflow_made_operations WHERE execution_id = $1 AND at_ms < $2",
            (subject, now_ms - KEPT_MS),
        )
        yield Execute(
            "INSERT INTO workflow_made_operations (operation_id, execution_id, at_ms) VALUES ($1, $2, $3)",
            (self._id, subject, now_ms),
        )


def schedule_subject(workspace: str, id: str) -> str:  # noqa: A002
    """Return as what a schedule is noted."""
    return f"schedule {workspace} {id}"


def forget(subject: str) -> Program[None]:
    """Forget the operations on something that is deleted."""
    yield Execute("DELETE FROM workflow_made_operations WHERE execution_id = $1", (subject,))
