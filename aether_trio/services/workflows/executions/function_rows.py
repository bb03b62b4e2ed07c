"""Rows of steps of durable functions, and what is kept of a run beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aether_trio.model.text import storable
from aether_trio.model.workflows.happenings import NO_ITEM
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

_PUT: Final = f"""INSERT INTO workflow_steps
    (execution_id, step, item, status, attempt, task_id, started_ms, completed_ms, error, error_type, input, result)
    VALUES ($1, $2, {NO_ITEM}, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (execution_id, step, item) DO UPDATE SET status = excluded.status, attempt = excluded.attempt,
    task_id = excluded.task_id, started_ms = excluded.started_ms, completed_ms = excluded.completed_ms,
    error = excluded.error, error_type = excluded.error_type, input = excluded.input, result = excluded.result"""  # noqa: S608
_CLOSE: Final = f"""UPDATE workflow_steps SET status = $3, completed_ms = $4, error = $5, error_type = $6, result = $7
    WHERE execution_id = $1 AND step = $2 AND item = {NO_ITEM} AND completed_ms = 0"""  # noqa: S608


class FunctionStep(NamedTuple):
    """The row of a function's step; `attempt` is the generation that began it."""

    status: str
    attempt: int
    task_id: str
    started_ms: int

    @property
    def is_open(self) -> bool:
        """Whether its end is not known yet."""
        return self.status in ("running", "waiting")


class StepEnd(NamedTuple):
    """How a step has ended: completed, failed or cancelled; `result` is JSON."""

    outcome: str
    result: bytes = b"null"
    error: str = ""
    error_type: str = ""


@dataclass(slots=True)
class FunctionState:
    """What is kept of a function's run beside its steps and its history."""

    due: dict[str, int] = field(default_factory=dict)
    """When time ends a step (Unix ms), by its key; "" for a run that was put off."""
    waits: dict[str, str] = field(default_factory=dict)
    """The signals for which steps wait, by their keys."""
    events: dict[str, str] = field(default_factory=dict)
    """The events for which steps wait, by their keys."""
    signals: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the entries with signals that no step has taken yet, by their names."""
    signal_bytes: int = 0
    """The size of these entries."""
    opened: int = 0
    """How many steps are open."""
    begun: int = 0
    """How many steps have begun, in this try of the run."""
    allowance: int = 0
    """How many may begin, as a person has allowed; 0: as many as the budget has."""
    cancelled: int = 0
    """The number of the entry that asks for the end of the function, 0 for none."""
    cancel_ms: int = 0
    """When the function is ended that does not end itself."""

    @classmethod
    def from_json(cls, data: bytes) -> FunctionState:
        """Decode what `to_json` has encoded."""
        return cls(**json.loads(data))

    def to_json(self) -> bytes:
        """Encode it for storage."""
        found = {
            "due": self.due,
            "waits": self.waits,
            "events": self.events,
            "signals": self.signals,
            "signal_bytes": self.signal_bytes,
            "opened": self.opened,
            "begun": self.begun,
            "allowance": self.allowance,
            "cancelled": self.cancelled,
            "cancel_ms": self.cancel_ms,
        }
        return json.dumps({name: value for name, value in found.items() if value}, separators=(",", ":")).encode()

    @property
    def due_ms(self) -> int:
        """The next moment at which time does something, 0 for none."""
        moments = [*self.due.values(), *([self.cancel_ms] if self.cancel_ms else [])]
        return min(moments, default=0)


@dataclass(slots=True)
class RunningFunction:
    """The run of a function in a transaction; `written` are its new entries."""

    row: ExecutionRow
    state: FunctionState
    written: list[tuple[int, int, bytes]] = field(default_factory=list)
    by_worker: bool = False
    """Whether its worker does this, and is answered with what is new."""


def load_steps(execution_id: str, keys: Sequence[str]) -> Program[dict[str, FunctionStep]]:
    """Load the rows of these steps that exist."""
    if not keys:
        return {}
    rows: list[Row] = yield Fetch(
        f"SELECT step, status, attempt, task_id, started_ms FROM workflow_steps WHERE execution_id = $1 "  # noqa: S608
        f"AND item = {NO_ITEM} AND step IN ({placeholders(len(keys), 2)})",
        (execution_id, *keys),
    )
    return {row[0]: FunctionStep(*row[1:]) for row in rows}


def open_steps(execution_id: str) -> Program[list[tuple[str, str]]]:
    """Load the steps that have not ended: (key, id of its task or "")."""
    rows: list[Row] = yield Fetch(
        "SELECT step, task_id FROM workflow_steps WHERE execution_id = $1 AND completed_ms = 0", (execution_id,)
    )
    return [(row[0], row[1]) for row in rows]


def put_open(execution_id: str, key: str, step: FunctionStep, given: bytes | None) -> Program[None]:
    """Write that a step is begun, with what it was given."""
    args = (execution_id, key, step.status, step.attempt, step.task_id, step.started_ms, 0, "", "", given, None)
    yield Execute(_PUT, args)


def put_ended(execution_id: str, key: str, attempt: int, started_ms: int, now_ms: int, end: StepEnd) -> Program[None]:
    """Write a step that has ended, and may have had no row."""
    result = end.result if end.outcome == "completed" else None
    args = (execution_id, key, end.outcome, attempt, "", started_ms, now_ms, *_reason(end), None, result)
    yield Execute(_PUT, args)


def _reason(end: StepEnd) -> tuple[str, str]:
    return storable(end.error), storable(end.error_type)


def close(execution_id: str, key: str, now_ms: int, end: StepEnd) -> Program[bool]:
    """Write the end of an open step; return False if it is not open."""
    result = end.result if end.outcome == "completed" else None
    args: tuple[Any, ...] = (execution_id, key, end.outcome, now_ms, *_reason(end), result)
    count: int = yield Execute(_CLOSE, args)
    return bool(count)
