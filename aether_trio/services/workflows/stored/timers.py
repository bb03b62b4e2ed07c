"""The due moments of executions, schedules and other things of workflows, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aether_trio.storage.base import Execute, Program, placeholders

SET_BACK_MS: Final = 5_000
"""How far decided slots may lie in the future before the clock counts as set back."""


def set_timer(kind: str, key: str, due_ms: int) -> Program[None]:
    """Set or clear (0) the due moment of a thing."""
    if due_ms:
        yield Execute(
            "INSERT INTO workflow_timers (kind, key, due_ms) VALUES ($1, $2, $3) "
            "ON CONFLICT (kind, key) DO UPDATE SET due_ms = excluded.due_ms",
            (kind, key, due_ms),
        )
    else:
        yield Execute("DELETE FROM workflow_timers WHERE kind = $1 AND key = $2", (kind, key))


def make_due(kinds: Sequence[str], now_ms: int) -> Program[None]:
    """Let timers be due that were due when they were set: the clock was set back."""
    kinds_in = placeholders(len(kinds), 2)
    yield Execute(
        f"UPDATE workflow_timers SET due_ms = $1 WHERE kind IN ({kinds_in}) AND due_ms > $1",  # noqa: S608
        (now_ms, *kinds),
    )
