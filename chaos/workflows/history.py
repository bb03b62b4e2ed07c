"""Record what a run has asked for, and which of it was acknowledged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Json = Any


@dataclass
class Begun:
    """An execution that was asked for; `execution_id` is "" until it is known."""

    play: str
    key: str
    given: Json
    execution_id: str = ""
    ended: str = ""
    """The status with which it has ended, as a client was told."""


@dataclass
class Sent:
    """A request that must act once if it was acknowledged, and at most once if not.

    `kind` is event, signal or answer; `about` is the name of the event, or the execution.
    """

    id: str
    kind: str
    about: str
    data: Json
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment that a worker recorded; `at_ms` by the machine's clock."""

    worker: str
    what: str
    at_ms: float
    task_id: str = ""
    epoch: int = 0
    attempt: int = 0
    execution_id: str = ""
    place: str = ""


@dataclass
class WorkflowHistory:
    """What clients and workers of a run have seen; its tables are in snapshot.py."""

    begun: dict[str, Begun] = field(default_factory=dict)
    """By its key."""
    sent: dict[str, Sent] = field(default_factory=dict)
    """By its id."""
    cancelled: dict[str, bool] = field(default_factory=dict)
    """Executions that were to be cancelled, and whether that was acknowledged."""
    moments: list[Moment] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Faults that found nothing to hit."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that had to be made again, by why."""
    tracebacks: list[str] = field(default_factory=list)
    unsettled: str = ""
    """What was open when patience was at its end; "" for nothing."""
    seconds: float = 0.0

    def send(self, sent: Sent) -> Sent:
        """Note a request before it is made."""
        self.sent[sent.id] = sent
        return sent

    def write(self, file: Path) -> None:
        """Write all but the moments, which the workers have written, as JSON."""
        found = {**vars(self), "moments": []}
        for name in ("begun", "sent"):
            found[name] = {key: asdict(one) for key, one in found[name].items()}
        file.write_text(json.dumps(found))

    @classmethod
    def read(cls, file: Path) -> WorkflowHistory:
        """Read what `write` has written."""
        found = json.loads(file.read_text())
        found["begun"] = {key: Begun(**one) for key, one in found["begun"].items()}
        found["sent"] = {id_: Sent(**one) for id_, one in found["sent"].items()}
        for name in ("faults", "refused"):
            found[name] = Counter(found[name])
        return cls(**found)


def read_moments(files: Iterable[Path]) -> list[Moment]:
    """Read the moments that workers recorded, each worker in its file."""
    found = []
    for file in files:
        for line in file.read_text().splitlines():
            said = json.loads(line)
            found.append(
                Moment(
                    file.stem,
                    said["what"],
                    said["at"] * 1000,
                    said.get("task", ""),
                    said.get("epoch", 0),
                    said.get("attempt", 0),
                    said.get("execution", ""),
                    said.get("place", ""),
                )
            )
    return sorted(found, key=lambda one: one.at_ms)
