"""The history of a run of a durable function, as its entries tell it.

The entries are those of docs/wire.md ("Durable functions"). Everything that a run knows follows
from them, so a worker that reads them goes on where another one has stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple


class RunEntry(NamedTuple):
    """An entry of a history: number from 1 on, Unix ms, and what happened."""

    number: int
    at_ms: int
    entry: Mapping[str, Any]


@dataclass(slots=True)
class StepRecord:
    """What is known of a step; `outcome` is "" until it has ended."""

    key: str
    kind: str
    code: str
    given: Mapping[str, Any]
    assignment: int = 0
    """The number of the assignment that has begun it."""
    opened: int = 0
    """How often it was begun."""
    outcome: str = ""
    result: Any = None
    error: str = ""
    error_type: str = ""
    attempts: int = 0
    """Attempts in a worker that have failed, and were followed by another one."""
    next_ms: int = 0
    at_ms: int = 0


def branch_of(key: str) -> str:
    """Return the path of a step's branch: "" or one that ends with /."""
    return key[: key.rfind("/") + 1]


@dataclass(slots=True)
class Records:
    """What the entries of a history say, in order."""

    number: int = 0
    """The number of the last entry."""
    started_ms: int = 0
    execution_id: str = ""
    workflow: str = ""
    input: Any = None
    steps: dict[str, StepRecord] = field(default_factory=dict)
    order: dict[str, list[str]] = field(default_factory=dict)
    """The steps of each branch, as they were begun."""
    cancelled: bool = False
    paused: bool = False
    ended: Mapping[str, Any] | None = None
    """The entry that has ended the run."""

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> Records:
        """Read a whole history: entries as HISTORY or `run_in_memory` gives them."""
        made = cls()
        for number, one in enumerate(entries, 1):
            at_ms = one.get("at_ms")
            if at_ms is None:
                at_ms = datetime.fromisoformat(one["at"]).timestamp() * 1000 if "at" in one else 0
            made.add(RunEntry(int(one.get("number", number)), round(at_ms), one))
        return made

    def add(self, one: RunEntry) -> str:
        """Take in an entry; return the key of the step that it is about, "" for none."""
        if one.number <= self.number:
            return ""
        self.number = one.number
        entry, key = one.entry, one.entry.get("step", "")
        match entry["type"]:
            case "Started":
                self.started_ms, self.input = one.at_ms, entry.get("input")
                self.execution_id, self.workflow = entry.get("execution_id", ""), entry.get("workflow", "")
            case "StepOpened":
                found = self._record(key, entry, counted="about" not in entry)
                found.kind, found.code = entry["kind"], entry.get("code", "")
                found.assignment, found.outcome = entry.get("assignment", 0), ""
                found.opened, found.at_ms = found.opened + 1, one.at_ms
            case "StepTried":
                found = self._record(key, entry)
                found.attempts, found.next_ms = entry["attempt"], entry.get("next_ms", 0)
                found.error, found.error_type = entry.get("error", ""), entry.get("error_type", "")
            case "StepClosed":
                found = self._record(key, entry)
                found.outcome, found.result, found.at_ms = entry["outcome"], entry.get("result"), one.at_ms
                found.error, found.error_type = entry.get("error", ""), entry.get("error_type", "")
            case "CancelAsked":
                self.cancelled = True
            case "PauseAsked":
                self.paused = True
            case "ResumeAsked":
                self.paused = False
            case "RetryAsked":
                self._retry()
            case "Ended":
                self.ended = entry
        return str(key)

    def _record(self, key: str, entry: Mapping[str, Any], *, counted: bool = True) -> StepRecord:
        found = self.steps.get(key)
        if found is None:
            found = self.steps[key] = StepRecord(
                key, entry.get("kind", ""), entry.get("code", ""), entry.get("given", {})
            )
            if counted:
                self.order.setdefault(branch_of(key), []).append(key)
        return found

    def _retry(self) -> None:
        """Forget the steps with which the branches of the ended run have failed."""
        self.ended, self.cancelled, self.paused = None, False, False
        for path in list(self.order):
            keys = self.order[path]
            while keys and self.steps[keys[-1]].outcome != "completed":
                gone = keys.pop()
                self.steps = {
                    key: one for key, one in self.steps.items() if key != gone and not key.startswith(f"{gone}?")
                }
            if not keys:
                del self.order[path]
