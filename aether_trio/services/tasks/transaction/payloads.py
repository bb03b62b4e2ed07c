"""Payloads of tasks: short ones in the task row, longer ones in `task_payloads`."""

from __future__ import annotations

from typing import Final

from aether_trio.storage.base import Deferred, Fetch, Program, Row

INLINE_BYTES: Final = 512
"""Maximum size of a payload in the task's row, which each change of status writes again."""


def inline_part(payload: bytes) -> bytes | None:
    """Return the payload that is written to the task's row; None if it is too long."""
    return payload if len(payload) <= INLINE_BYTES else None


def insert_large(task_id: str, payload: bytes) -> Program[None]:
    """Write the payload of a new task to `task_payloads`."""
    yield Deferred("task_payloads", "INSERT INTO task_payloads (task_id, payload) VALUES ($1, $2)", (task_id, payload))


def load(task_id: str) -> Program[bytes]:
    """Read the payload of a task from its row or from `task_payloads`."""
    for table in ("tasks", "task_payloads"):
        rows: list[Row] = yield Fetch(f"SELECT payload FROM {table} WHERE task_id = $1", (task_id,))  # noqa: S608
        if rows and rows[0][0] is not None:
            payload: bytes = rows[0][0]
            return payload
    return b""
