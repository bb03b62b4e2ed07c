"""Rows of live tasks that CLAIM and COMPLETE do not read from the database."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.services.tasks.transaction import live_rows
from aether_trio.services.tasks.transaction.live_rows import LiveRows


def row(task_id: str, events: int = 0, status: StoredStatus = StoredStatus.RUNNING, spec: bytes = b"") -> TaskRow:
    return TaskRow(task_id, "t", "w", status=status, events=events, spec=spec)


def test_a_committed_row_is_known_until_it_is_written_again() -> None:
    rows = LiveRows()
    one, two = object(), object()
    assert rows.get("a") is None
    rows.writes("a", one)
    assert rows.get("a") is None
    rows.committed([row("a", 1)], one, 0)
    assert rows.get("a") == row("a", 1)
    rows.writes("a", two)
    assert rows.get("a") is None
    rows.committed([row("a", 2)], two, 0)
    assert rows.get("a") == row("a", 2)


def test_of_two_that_wrote_a_row_the_last_one_counts() -> None:
    rows = LiveRows()
    one, two = object(), object()
    rows.writes("a", one)
    rows.writes("a", two)
    rows.committed([row("a", 2)], two, 0)
    rows.committed([row("a", 1)], one, 0)
    assert rows.get("a") == row("a", 2)
    rows.writes("a", one)
    rows.writes("a", two)
    rows.committed([row("a", 3)], one, 0)
    assert rows.get("a") is None


def test_what_began_before_all_was_forgotten_is_not_remembered() -> None:
    rows = LiveRows()
    writer = object()
    rows.writes("a", writer)
    rows.forget()
    rows.committed([row("a")], writer, 0)
    assert rows.get("a") is None
    rows.writes("a", writer)
    rows.committed([row("a")], writer, rows.generation)
    assert rows.get("a") is not None
    rows.forget()
    assert rows.get("a") is None


def test_a_row_that_a_statement_changes_is_unknown_also_to_its_writer() -> None:
    rows = LiveRows()
    writer = object()
    rows.writes("a", writer)
    rows.committed([row("a", 1)], writer, 0)
    rows.forget_row("a")
    assert rows.get("a") is None
    rows.writes("a", writer)
    rows.forget_row("a")
    rows.committed([row("a", 2)], writer, 0)
    assert rows.get("a") is None


def test_an_execution_is_not_remembered_as_no_worker_claims_it() -> None:
    rows = LiveRows()
    execution, step = row("a"), row("b")
    execution.workflow, step.workflow = WorkflowPart.RUN, WorkflowPart.STEP
    for one in (execution, step):
        rows.writes(one.task_id, rows)
    rows.committed([execution, step], rows, 0)
    assert rows.get("a") is None
    assert rows.get("b") == step


@pytest.mark.parametrize(
    "other",
    [row("a", status=StoredStatus.COMPLETED), row("a", status=StoredStatus.PENDING), row("a", spec=bytes(5_000))],
)
def test_a_row_that_is_not_live_or_large_is_not_remembered(other: TaskRow) -> None:
    rows = LiveRows()
    rows.writes("a", rows)
    rows.committed([other], rows, 0)
    assert rows.get("a") is None


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rows, "MAX_ROWS", 3)
    rows = LiveRows()
    for number in range(20):
        rows.writes(str(number), rows)
        rows.committed([row(str(number))], rows, rows.generation)
        rows.writes(f"never committed {number}", rows)
        assert sum(rows.get(str(one)) is not None for one in range(20)) <= 3
    assert rows.generation


@pytest.mark.parametrize("seed", range(20))
def test_what_is_known_is_what_the_table_has(seed: int) -> None:
    """Programs run one after another; their callers hear of the commits in any order."""
    chance = random.Random(seed)
    rows = LiveRows()
    table: dict[str, int] = {}
    finished: list[tuple[object, int, Mapping[str, int]]] = []
    for number in range(400):
        kind = chance.random()
        if kind < 0.4 and finished:
            writer, generation, written = finished.pop(chance.randrange(len(finished)))
            rows.committed([row(name, events) for name, events in written.items()], writer, generation)
        elif kind < 0.45:
            rows.forget()
            table[chance.choice("abcd")] = number
        else:
            writer, generation = object(), rows.generation
            written = dict.fromkeys(chance.sample("abcd", 2), number)
            for name in written:
                rows.writes(name, writer)
            if chance.random() < 0.9:  # else it was rolled back
                table |= written
                finished.append((writer, generation, written))
        for name in "abcd":
            known = rows.get(name)
            assert known is None or known.events == table[name]
