"""Record a run: changes that were answered, attempts of holders, the tables."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from chaos.history import Disturbance


@dataclass(slots=True)
class Change:
    """A right was given or taken; times are seconds of the run.

    It was asked for at `asked_s`, perhaps several times, and known to be done at `answered_s`.
    `missing` are the nodes that the answer names, all of them when no answer came to the request
    that has made the change.
    """

    right: str
    given: bool
    asked_s: float
    answered_s: float = 0.0
    missing: frozenset[str] = frozenset()
    attempts: int = 1


@dataclass(slots=True)
class Attempt:
    """What a holder tried on a node; `allowed` is None while it is not known."""

    right: str
    holder: str
    node: str
    what: str
    sent_s: float
    done_s: float = 0.0
    allowed: bool | None = None
    reason: str = ""


class Recorded(NamedTuple):
    """A change in the tables, or an audit row of one: when, what, of which thing."""

    at_ms: int
    operation: str
    key: str


@dataclass
class AccessHistory:
    """All records of one run."""

    nodes: tuple[str, ...] = ()
    changes: dict[str, list[Change]] = field(default_factory=dict)
    """By right, in their order; each ends before the next one is asked for."""
    attempts: list[Attempt] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    recorded: Counter[Recorded] = field(default_factory=Counter)
    """What access_changes and authority_grants have."""
    audited: Counter[Recorded] = field(default_factory=Counter)
    """What audit_log has of such changes."""
    verified: list[str] = field(default_factory=list)
    """What `aether audit verify` found, which is nothing."""
    verified_rows: int = 0
    heads: int = 0
    """Signed heads that the nodes wrote to their file."""
    cut: str = ""
    """Which rows were cut off at the end."""
    found_cut: int | None = None
    """The exit code of `aether audit verify` after that."""
    tracebacks: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Requests of administrators that had to be made again, by why."""
    seconds: float = 0.0

    def write(self, file: Path) -> None:
        """Write what was seen as lines of JSON."""
        with file.open("w") as lines:
            for disturbance in self.disturbances:
                lines.write(json.dumps({"record": "fault", **asdict(disturbance)}) + "\n")
            for changes in self.changes.values():
                for change in changes:
                    fields = {**asdict(change), "missing": sorted(change.missing)}
                    lines.write(json.dumps({"record": "change", **fields}) + "\n")
            for attempt in self.attempts:
                lines.write(json.dumps({"record": "attempt", **asdict(attempt)}) + "\n")
