"""Task invariants find violations; a short real run on each engine holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.tasks.checks import check_all
from chaos.tasks.history import Attempt, Event, Moment, TaskHistory, TaskRow
from chaos.tasks.run import TaskWishes, run

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = 1, 2, 3, 4, 5


def history() -> TaskHistory:
    return TaskHistory(
        keys={"k": "t"},
        tasks=[TaskRow("t", "completed", 2, 1, 3, 0, 1_000, 5_000, "")],
        attempts=[
            Attempt("t", 1, "ag::w::i::a", 1_000, 1_010, 2_000, "failed"),
            Attempt("t", 2, "ag::w::i::b", 3_000, 3_010, 5_000, "completed"),
        ],
        events=[
            Event("t", 1, PENDING, RUNNING),
            Event("t", 2, RUNNING, FAILED),
            Event("t", 3, FAILED, PENDING),
            Event("t", 4, PENDING, RUNNING),
            Event("t", 5, RUNNING, COMPLETED),
        ],
        moments=[
            Moment("a", "began", "t", 1, 1_020),
            Moment("a", "failed", "t", 1, 2_010),
            Moment("b", "began", "t", 2, 3_020),
            Moment("b", "completed", "t", 2, 5_010),
        ],
        busy={"ag::w::i::b": 0},
    )


def _task(seen: TaskHistory, **changes: Any) -> None:
    seen.tasks[0] = replace(seen.tasks[0], **changes)


def _attempt(seen: TaskHistory, number: int, **changes: Any) -> None:
    seen.attempts[number] = replace(seen.attempts[number], **changes)


def _begun_late(seen: TaskHistory) -> None:
    """The first worker begins what it was given when the second one is at it."""
    seen.moments = [seen.moments[2], replace(seen.moments[0], at_ms=4_000), seen.moments[3]]


VIOLATIONS: dict[str, tuple[str, Callable[[TaskHistory], object]]] = {
    "it runs on": ("every task has ended, for good", lambda seen: _task(seen, status="running")),
    "it is to be tried again": ("every task has ended, for good", lambda seen: _task(seen, next_retry_ms=9)),
    "it is not there": ("each was made once", lambda seen: seen.keys.update(other="u")),
    "two keys, one task": ("each was made once", lambda seen: seen.keys.update(other="t")),
    "no creator was answered": ("each was made once", lambda seen: seen.keys.clear()),
    "an event is lost": ("events tell of each change once, and of one end", lambda seen: seen.events.pop(1)),
    "an event is told twice": (
        "events tell of each change once, and of one end",
        lambda seen: seen.events.insert(1, seen.events[0]),
    ),
    "it has ended twice": (
        "events tell of each change once, and of one end",
        lambda seen: seen.events.append(Event("t", 6, COMPLETED, FAILED)),
    ),
    "two at once": ("one epoch at a time", lambda seen: _attempt(seen, 0, ended_ms=9_000)),
    "an attempt without an end": ("one epoch at a time", lambda seen: _attempt(seen, 1, outcome="")),
    "an epoch is missing": ("one epoch at a time", lambda seen: seen.attempts.pop(0)),
    "begun too often": ("no more attempts than the policy allows", lambda seen: _task(seen, max_attempts=1)),
    "begun by whom it was not given": (
        "workers did what the epochs say",
        lambda seen: seen.moments.append(Moment("c", "began", "t", 2, 4_000)),
    ),
    "begun twice": ("workers did what the epochs say", lambda seen: seen.moments.append(seen.moments[2])),
    "begun beside whom completes it": ("workers did what the epochs say", _begun_late),
    "completed by two": (
        "workers did what the epochs say",
        lambda seen: seen.moments.append(Moment("a", "completed", "t", 1, 5_000)),
    ),
    "a letter of a living task": ("dead letters are the dead tasks", lambda seen: seen.letters.add("t")),
    "a worker that has nothing is busy": ("no idle worker counts as busy", lambda seen: seen.busy.update(x=1)),
}


def test_a_good_history_violates_nothing() -> None:
    assert [verdict.violations for verdict in check_all(history())] == [()] * 8


def test_a_task_may_be_cancelled_while_it_waits_for_its_next_attempt() -> None:
    seen = history()
    _task(seen, status="cancelled")
    seen.attempts.pop()
    seen.events = [*seen.events[:2], Event("t", 3, FAILED, CANCELLED)]
    seen.moments = seen.moments[:2]
    assert [one for verdict in check_all(seen) for one in verdict.violations] == []


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found(name: str) -> None:
    invariant, spoil = VIOLATIONS[name]
    seen = history()
    spoil(seen)
    assert invariant in [verdict.invariant for verdict in check_all(seen) if verdict.violations]


@pytest.mark.crash
@pytest.mark.parametrize("nodes", [0, 2], ids=["sqlite", "postgres"])
async def test_tasks_outlive_a_worker_and_a_gateway_that_are_killed(nodes: int) -> None:
    said: list[str] = []
    wishes = TaskWishes(
        seed=7, tasks=240, nodes=nodes, workers=3, mean_s=0.8, heartbeat_ms=2_000, grace_share=0.0, kills=2, pace_s=0.25
    )
    result = await run(wishes, said.append)
    story = "\n".join(said)
    assert result.history.kills == {"worker": 1, "node": 1}, story
    violations = [f"{verdict.invariant}: {one}" for verdict in result.verdicts for one in verdict.violations]
    assert violations == [], story
    assert [verdict.invariant for verdict in result.verdicts if not verdict.looked_at] == []
