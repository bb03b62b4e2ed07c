"""What a fork of a run of a durable function keeps: its history up to a step.

    Started, …, an entry of STEP, …   ──▶   Started (its own), …, RetryAsked

The entries keep their numbers, so what refers to them stays right. RetryAsked lets the worker
forget the steps that had not completed by then, as it does when a run is retried.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from aether_trio.model.text import shown
from aether_trio.model.workflows.forks import ForkError, KeptPart
from aether_trio.model.workflows.reading import did_you_mean
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow, StoredFork
from aether_trio.services.workflows.executions.new_executions import ForkOf
from aether_trio.storage.base import Execute, Program

MOST_ENTRIES: Final = 10_000
MOST_BYTES: Final = 10 * 1024 * 1024
COPIED_AT_ONCE: Final = 500
"""Rows of steps in one statement."""
_PAGE: Final = 1_000
_COPY: Final = (
    "INSERT INTO workflow_history (execution_id, number, at_ms, entry) SELECT CAST($1 AS TEXT), number, at_ms, entry "
    "FROM workflow_history WHERE execution_id = $2 AND number > 1 AND number <= $3"
)


@dataclass(slots=True)
class _Past:
    """What the entries of a run say, up to the first one of a step."""

    step: str
    found: bool = False
    entries: int = 0
    bytes: int = 0
    steps: dict[str, str] = field(default_factory=dict)
    """How each step has ended: "" if it has not."""
    waits: dict[str, str] = field(default_factory=dict)
    """The signals for which steps wait, by their keys."""
    signals: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the entries with signals that no step has taken, by their names."""

    def add(self, number: int, entry: Mapping[str, Any], size: int) -> None:
        """Take in the next entry, unless the step has begun."""
        key = entry.get("step", "")
        self.found = self.found or key == self.step
        if self.found:
            return
        self.entries = number
        self.bytes += size if number > 1 else 0
        match entry["type"]:
            case "StepOpened":
                self.steps[key] = ""
                name = entry.get("given", {}).get("signal")
                if entry.get("kind") == "wait" and isinstance(name, str):
                    self._wait(key, name)
            case "StepTried":
                self.steps[key] = ""
            case "StepClosed":
                self.steps[key] = entry["outcome"]
                self.waits.pop(key, None)
            case "SignalReceived":
                name = entry["name"]
                taker = next((key for key, one in self.waits.items() if one == name), None)
                if taker is None:
                    self.signals.setdefault(name, []).append(number)
                else:
                    del self.waits[taker]
            case "Ended":
                self.waits.clear()

    def _wait(self, key: str, name: str) -> None:
        kept = self.signals.get(name)
        if not kept:
            self.waits[key] = name
            return
        kept.pop(0)
        if not kept:
            del self.signals[name]


async def plan_function_fork(
    read: Callable[[Callable[[], Program[Any]]], Awaitable[Any]], row: ExecutionRow, step: str
) -> KeptPart:
    """Read what a fork from a step keeps of a run. Raises ForkError."""
    past, after = _Past(step), 0
    while not past.found:
        page = await read(partial(execution_rows.history, row.execution_id, after, _PAGE))
        if not page:
            raise ForkError(
                f"execution {row.execution_id} has begun no step {shown(step)}{did_you_mean(step, past.steps)}"
            )
        for number, _, data in page:
            past.add(number, json.loads(data), len(data))
        after = page[-1][0]
        if past.entries > MOST_ENTRIES or past.bytes > MOST_BYTES:
            raise ForkError(
                f"more than {MOST_ENTRIES} entries or {MOST_BYTES >> 20} MiB of history come before step {shown(step)}: "
                "a fork keeps no more"
            )
    done = tuple(key for key, outcome in past.steps.items() if outcome == "completed")
    kept = {"entries": past.entries, "bytes": past.bytes, "signals": past.signals, "begun": len(past.steps)}
    return KeptPart(kept, done, (), ())


def copy_kept(execution_id: str, fork: ForkOf, now_ms: int) -> Program[None]:
    """Write what a fork keeps, before it begins. Raises ForkError."""
    last = fork.kept.state["entries"]
    if last > 1:
        count: int = yield Execute(_COPY, (execution_id, fork.origin, last))
        if count != last - 1:
            raise ForkError(f"execution {fork.origin} not found")
    for names in _chunks(fork.kept.whole):
        yield from execution_rows.copy_steps(fork.origin, execution_id, names, ())
    kept = json.dumps(fork.kept.state).encode()
    yield from execution_rows.insert_fork(StoredFork(execution_id, fork.origin, fork.step, now_ms, kept))


def _chunks(names: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    for first in range(0, len(names), COPIED_AT_ONCE):
        yield names[first : first + COPIED_AT_ONCE]
