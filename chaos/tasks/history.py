"""Record a run: the tables at the end, the workers' notes, the creators and kills."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aether_trio.model.tasks.status import TERMINAL, StoredStatus
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.tasks.place import Alone, Place


@dataclass(frozen=True, slots=True)
class TaskRow:
    task_id: str
    status: str
    epoch: int
    failures: int
    max_attempts: int
    next_retry_ms: int
    created_ms: int
    updated_ms: int
    error_type: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One assignment of a task, in Unix milliseconds, 0 for never."""

    task_id: str
    epoch: int
    worker: str
    assigned_ms: int
    started_ms: int
    ended_ms: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a task's status, in wire numbers; 0 to 0: an event of another kind."""

    task_id: str
    number: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment that a worker recorded; `at_ms` by the machine's clock."""

    worker: str
    what: str
    task_id: str
    attempt: int
    at_ms: float


@dataclass
class TaskHistory:
    keys: dict[str, str] = field(default_factory=dict)
    """Idempotency key -> the id that its creator was told; "" while it was told none."""
    tasks: list[TaskRow] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    letters: set[str] = field(default_factory=set)
    busy: dict[str, int] = field(default_factory=dict)
    """The live tasks that the table of workers counts."""
    kills: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    """Requests of tasks that had to be made again, by why."""
    seconds: float = 0.0

    def write(self, file: Path) -> None:
        with file.open("w") as lines:
            for what in ("tasks", "attempts", "events"):
                for record in getattr(self, what):
                    lines.write(json.dumps({"what": what, **asdict(record)}) + "\n")


async def read(place: Place, history: TaskHistory) -> None:
    """Add the tables to the history."""
    history.tasks = [
        TaskRow(row[0], row[1], *map(int, row[2:8]), row[8])
        for row in await place.sql(
            "SELECT task_id, status, epoch, retry_count, max_attempts, next_retry_ms, created_ms, updated_ms, error_type FROM tasks"
        )
    ]
    # The latest assignment is in the task's own row, those before it have rows of their own
    # (services/tasks/transaction/worker_choice.py). One to a worker of another node is in both, and
    # its own row does not say how it ended.
    latest = "GREATEST" if _is_postgres(place) else "MAX"
    attempts: dict[tuple[str, int], Attempt] = {}
    for row in await place.sql(
        f"SELECT task_id, epoch, assigned_to, assigned_ms, started_ms, {latest}(completed_ms, failed_ms), status FROM tasks "
        "WHERE assigned_to <> ''"
    ):
        ended = StoredStatus(row[6]) in TERMINAL
        attempts[row[0], int(row[1])] = Attempt(
            row[0], int(row[1]), row[2], int(row[3]), int(row[4]), int(row[5]) * ended, row[6] * ended
        )
    for row in await place.sql(
        "SELECT task_id, epoch, worker, assigned_ms, started_ms, ended_ms, outcome FROM task_attempts WHERE outcome <> ''"
    ):
        attempts[row[0], int(row[1])] = Attempt(
            row[0], int(row[1]), row[2], int(row[3]), int(row[4]), int(row[5]), row[6]
        )
    history.attempts = [attempts[key] for key in sorted(attempts)]
    hex_of = "encode(event, 'hex')" if _is_postgres(place) else "hex(event)"
    for task_id, number, text in await place.sql(
        f"SELECT task_id, number, {hex_of} FROM task_events ORDER BY task_id, number"
    ):
        changed = pb.TaskEvent.FromString(bytes.fromhex(text)).status_changed
        history.events.append(Event(task_id, int(number), changed.from_status, changed.to_status))
    history.letters = {row[0] for row in await place.sql("SELECT task_id FROM task_dead_letters WHERE resolved_ms = 0")}
    history.busy = {row[0]: int(row[1]) for row in await place.sql("SELECT identity, live FROM task_workers")}


def _is_postgres(place: Place) -> bool:
    return not isinstance(place, Alone)


def read_moments(files: Iterable[Path]) -> list[Moment]:
    """Read the moments of tasks that workers recorded, each worker in its file."""
    found = []
    for file in files:
        for line in file.read_text().splitlines():
            said = json.loads(line)
            if "task" not in said:
                continue
            found.append(Moment(file.stem, said["what"], said["task"], said["attempt"], said["at"] * 1000))
    return sorted(found, key=lambda one: one.at_ms)
