"""Statuses on the wire, retry delays, waits, and when time moves a task."""

from __future__ import annotations

from dataclasses import fields
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import (
    Backoff,
    Facts,
    Mode,
    MoveStep,
    Reason,
    RetrySchedule,
    StoredStatus,
    TaskRow,
    Wait,
    decide,
)
from aether_trio.model.tasks.retry import MAX_DELAY_MS
from aether_trio.model.tasks.status import grace_ms, priority_of, stored_as
from aether_trio.model.tasks.task import COLUMNS
from aether_trio.model.tasks.timed_transitions import (
    Due,
    TimeLimits,
    happening,
    moments,
    move_of,
    next_due,
    start_delay_ms,
)
from aether_trio.model.tasks.waiting_queue import queue_of

S = StoredStatus
NEVER = TimeLimits(0, 0, 0, 0, 0, 0)
NOW = 1_700_000_000_000


# -- statuses --------------------------------------------------------------------------------------


def test_statuses_on_the_wire() -> None:
    # Reference, tasks.md 1.3.
    assert {status.value: status.wire for status in S} == {
        "pending": 1, "assigned": 1, "starting": 1, "running": 2, "completed": 3, "failed": 4, "cancelled": 5,
        "waiting_input": 6, "waiting_authority": 7, "waiting_dependency": 8, "hibernated": 9, "rejected": 10, "dlq": 4,
    }  # fmt: skip
    assert stored_as(1) == {S.PENDING, S.ASSIGNED, S.STARTING}
    assert stored_as(0) == stored_as(11) == frozenset()


def test_grace_windows_and_priorities() -> None:
    assert [grace_ms(number) for number in (0, 1, 2, 3, 9)] == [30_000, 30_000, 600_000, 300_000, 30_000]
    assert [priority_of(number) for number in (0, 10, 37)] == [30, 10, 37]


# -- retries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetrySchedule(backoff=Backoff.FIXED, initial_delay_ms=250), [250, 250, 250, 250]),
        (RetrySchedule(backoff=Backoff.FIXED), [0, 0, 0, 0]),
        (RetrySchedule(), [1000, 2000, 4000, 8000]),
        (RetrySchedule(backoff=Backoff.EXPONENTIAL, initial_delay_ms=10, max_delay_ms=35), [10, 20, 35, 35]),
        (RetrySchedule(backoff=Backoff.EXPLICIT_SCHEDULE, schedule_ms=(5, 70)), [5, 70, 70, 70]),
        (RetrySchedule(backoff=Backoff.EXPLICIT_SCHEDULE, initial_delay_ms=9), [9, 9, 9, 9]),
        (RetrySchedule(backoff=Backoff.FIXED, initial_delay_ms=-5), [0, 0, 0, 0]),
    ],
)
def test_delays(policy: RetrySchedule, delays: list[int]) -> None:
    assert [policy.delay_ms(failures, lambda: 0.5) for failures in range(1, 5)] == delays


def test_attempts_default_to_three() -> None:
    assert [RetrySchedule(max_attempts=count).attempts for count in (0, -1, 1, 8)] == [3, 3, 1, 8]


def test_jitter_stays_within_its_share() -> None:
    policy = RetrySchedule(backoff=Backoff.FIXED, initial_delay_ms=1000, jitter_factor=0.25)
    delays = [policy.delay_ms(1, Random(seed).random) for seed in range(200)]
    assert min(delays) >= 750
    assert max(delays) <= 1250
    assert max(delays) - min(delays) > 300


@given(
    st.builds(
        RetrySchedule,
        max_attempts=st.integers(-(2**31), 2**31 - 1),
        backoff=st.integers(0, 9),
        initial_delay_ms=st.integers(-(2**63), 2**63 - 1),
        max_delay_ms=st.integers(-(2**63), 2**63 - 1),
        jitter_factor=st.floats(allow_nan=False),
        schedule_ms=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(tuple),
    ),
    st.integers(-5, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_any_policy_gives_a_delay_that_fits(policy: RetrySchedule, failures: int, uniform: float) -> None:
    assert 0 <= policy.delay_ms(failures, lambda: uniform) <= MAX_DELAY_MS


def test_what_is_stored_comes_back() -> None:
    policy = RetrySchedule(4, 3, 1, 2, 0.5, (1, 2), (500,), honor_retry_after=True)
    assert RetrySchedule.from_json(policy.to_json()) == policy
    wait = Wait(4, "ag::w::i::s", {"a": "b"}, "r", ("x", "y"), True, 5, 6, "k", "s", ("e",), "retry")
    assert Wait.from_json(wait.to_json()) == wait


# -- waits -----------------------------------------------------------------------------------------


def test_a_wait_for_dependencies_is_over_when_all_or_any_have_ended() -> None:
    every, first = Wait(3, depends_on=("a", "b", "b")), Wait(3, depends_on=("a", "b"), wake_on_any=True)
    assert [every.is_over(ended) for ended in range(3)] == [False, False, True]
    assert [first.is_over(ended) for ended in range(3)] == [False, True, True]
    assert Wait(3).is_over(0)


def test_an_input_is_taken_when_every_pair_matches() -> None:
    wait = Wait(1, input_match={"form": "7", "kind": "answer"})
    assert wait.takes({"form": "7", "kind": "answer", "more": "x"})
    assert not wait.takes({"form": "7"})
    assert not wait.takes({"form": "8", "kind": "answer"})
    assert Wait(1).takes({})


def test_an_unknown_reason_is_input() -> None:
    assert Wait(99).status is S.WAITING_INPUT
    assert [Wait(reason).word for reason in Reason] == ["", "input", "authority", "dependency", "hibernation"]


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_is_made_from_its_columns() -> None:
    task = TaskRow("t", "work", "w", mode=Mode.POOL, status=S.RUNNING, events=7)
    assert tuple(item.name for item in fields(TaskRow)) == COLUMNS
    assert TaskRow.from_row(tuple(task.values())) == task
    assert task.changed({"events": 8}).events == 8


def test_where_a_task_waits() -> None:
    pool = TaskRow("t", "work", "w", mode=Mode.POOL, target_implementation="i")
    assert queue_of(pool) == "pool::w::i"
    assert queue_of(pool.changed({"status": S.ASSIGNED})) == ""
    assert queue_of(TaskRow("t", "x", "w", mode=Mode.TARGETED, target="ag::w::i::s")) == "ag::w::i::s"
    assert queue_of(TaskRow("t", "x", "w", creator="us::u::win")) == "us::u::win"
    assert queue_of(TaskRow("t", "agent_startup", "w", mode=Mode.POOL)) == ""


# -- time ------------------------------------------------------------------------------------------


def row(status: S = S.RUNNING, **changes: Any) -> TaskRow:
    usual: dict[str, Any] = {"created_ms": NOW, "pending_ms": NOW, "started_ms": NOW + 1000, "heartbeat_ms": NOW + 2000}
    return TaskRow(**({"task_id": "t", "task_type": "work", "workspace": "w", "status": status} | usual | changes))


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (row(), []),
        (row(start_to_close_ms=5), [(NOW + 1005, Due.START_TO_CLOSE)]),
        (row(heartbeat_timeout_ms=5), [(NOW + 2005, Due.HEARTBEAT)]),
        (row(disconnected_ms=NOW + 9, grace_ms=30), [(NOW + 39, Due.GRACE_OVER)]),
        (row(disconnected_ms=NOW + 9), []),
        (row(S.PENDING, schedule_to_start_ms=7), [(NOW + 7, Due.SCHEDULE_TO_START)]),
        (row(S.ASSIGNED, schedule_to_start_ms=7, start_to_close_ms=5), [(NOW + 7, Due.SCHEDULE_TO_START)]),
        (row(S.FAILED, next_retry_ms=NOW + 3, schedule_to_close_ms=9),
         [(NOW + 3, Due.RETRY), (NOW + 9, Due.SCHEDULE_TO_CLOSE)]),
        (row(S.FAILED), []),
        (row(S.COMPLETED, schedule_to_close_ms=9), []),
        (row(S.DLQ), []),
        (row(S.WAITING_INPUT, paused_ms=NOW, wait=Wait(1, timeout_ms=4, wake_ms=NOW + 2).to_json(), start_to_close_ms=1),
         [(NOW + 4, Due.WAIT_OVER), (NOW + 2, Due.WAKE)]),
        (row(S.HIBERNATED, paused_ms=NOW, wait=Wait(4, timeout_ms=4, escalation="alert").to_json()), []),
    ],
)  # fmt: skip
def test_moments(task: TaskRow, wanted: list[tuple[int, Due]]) -> None:
    assert list(moments(task, NEVER)) == wanted
    assert next_due(task, NEVER) == min((at_ms for at_ms, _ in wanted), default=0)


def test_stale_and_kept() -> None:
    limits = TimeLimits(10, 20, 30, 40, 50, 60)
    cases = [
        (row(task_class=1), [(NOW + 10, Due.STALE)]),
        (row(task_class=0), []),
        (row(S.PENDING, mode=Mode.POOL, pending_ms=NOW - 5, updated_ms=NOW + 5), [(NOW + 35, Due.STALE)]),
        (row(S.PENDING, task_type="agent_startup", mode=Mode.POOL), [(NOW + 20, Due.STALE)]),
        (row(S.ASSIGNED, task_type="agent_startup", mode=Mode.POOL), []),
        (row(S.COMPLETED, updated_ms=NOW), [(NOW + 40, Due.FORGET)]),
        (row(S.FAILED, updated_ms=NOW), [(NOW + 50, Due.FORGET)]),
        (row(S.CANCELLED, updated_ms=NOW), [(NOW + 60, Due.FORGET)]),
        (row(S.DLQ, updated_ms=NOW), []),
    ]
    for task, wanted in cases:
        assert list(moments(task, limits)) == wanted


def test_the_first_of_what_is_due_happens() -> None:
    task = row(start_to_close_ms=500, disconnected_ms=NOW + 1000, grace_ms=100)
    assert happening(task, NEVER, NOW + 1099) is None
    assert happening(task, NEVER, NOW + 1100) is Due.GRACE_OVER
    assert happening(task, NEVER, NOW + 99_999) is Due.GRACE_OVER


@pytest.mark.parametrize(
    ("due", "task", "status", "says"),
    [
        (Due.RETRY, row(S.FAILED, next_retry_ms=NOW), S.PENDING, ""),
        (Due.WAKE, row(S.HIBERNATED, wait=Wait(4).to_json()), S.PENDING, ""),
        (Due.WAIT_OVER, row(S.WAITING_INPUT, wait=Wait(1).to_json()), S.FAILED, "wait timeout"),
        (Due.WAIT_OVER, row(S.HIBERNATED, wait=Wait(4, escalation="retry").to_json()), S.PENDING, ""),
        (Due.GRACE_OVER, row(grace_ms=30_000), S.FAILED, "grace window (30000ms)"),
        (Due.GRACE_OVER, row(S.ASSIGNED, begun=1, max_attempts=1), S.DLQ, "never heard of again"),
        (Due.GRACE_OVER, row(S.ASSIGNED, max_attempts=1), S.PENDING, ""),
        (Due.GRACE_OVER, row(S.ASSIGNED, deliveries=15), S.DLQ, "given 16 times and never begun"),
        (Due.GRACE_OVER, row(S.ASSIGNED, deliveries=15, excused_ms=NOW), S.PENDING, ""),
        (Due.SCHEDULE_TO_START, row(S.PENDING, schedule_to_start_ms=5), S.FAILED, "schedule_to_start"),
        (Due.START_TO_CLOSE, row(start_to_close_ms=5), S.FAILED, "start_to_close"),
        (Due.HEARTBEAT, row(heartbeat_timeout_ms=5), S.FAILED, "heartbeat"),
        (Due.SCHEDULE_TO_CLOSE, row(schedule_to_close_ms=5), S.DLQ, "schedule_to_close"),
        (Due.STALE, row(S.PENDING, mode=Mode.POOL), S.CANCELLED, "pending"),
    ],
)
def test_what_a_moment_makes_of_a_task(due: Due, task: TaskRow, status: S, says: str) -> None:
    step = decide(task, *move_of(task, due, Facts(NOW)))
    assert isinstance(step, MoveStep)
    assert step.after.status is status
    assert says in step.after.error


def test_what_is_forgotten_makes_no_move() -> None:
    with pytest.raises(ValueError, match="FORGET deletes a task"):
        move_of(row(S.COMPLETED), Due.FORGET, Facts(NOW))


def test_backoff_of_deadlines_without_a_policy() -> None:
    # Reference, tasks.md 1.7, intended effects.
    def delays(due: Due, **fields: Any) -> list[int]:
        found = []
        for count in range(6):
            task = row(max_attempts=99, retry_count=count, **fields)
            step = decide(task, *move_of(task, due, Facts(NOW)))
            assert isinstance(step, MoveStep)
            found.append(step.after.next_retry_ms - NOW)
        return found

    assert delays(Due.SCHEDULE_TO_START, status=S.PENDING)[:3] == [1500, 2000, 2500]
    assert delays(Due.START_TO_CLOSE)[:3] == [2000, 3000, 4000]
    assert delays(Due.HEARTBEAT) == [30_000, 30_000, 30_000, 8000, 10_000, 12_000]


def test_a_start_that_has_failed_is_tried_again_after_twice_as_long_each_time() -> None:
    assert [start_delay_ms(row(retry_count=count)) for count in (0, 1, 2)] == [1000, 2000, 4000]
    assert start_delay_ms(row(retry_count=10**6)) == 65_536_000


@pytest.mark.parametrize("due", [Due.GRACE_OVER, Due.WAIT_OVER, Due.SCHEDULE_TO_CLOSE, Due.STALE, Due.WAKE, Due.RETRY])
def test_only_deadlines_of_an_attempt_bring_a_delay_of_their_own(due: Due) -> None:
    task = row(grace_ms=5, wait=Wait(1).to_json())
    assert move_of(task, due, Facts(NOW))[1].delay_ms == 0


@pytest.mark.parametrize(
    ("expected", "identity", "is_expected"),
    [
        ("", "ag::w::i::1", True),
        ("ag::w::i::1", "ag::w::i::1", True),
        ("agent:ag::w::i::1", "ag::w::i::1", True),
        ("task:ag::w::i::1", "ag::w::i::1", False),
        ("ag::w::i::1", "ag::v::i::1", False),
        ("service:sv::s::1", "sv::s::1", True),
        ("wfe::shard0", "wfe::shard0", True),
        ("ann", "us::ann::1", True),
        ("user:ann", "us::ann::2", True),
        ("us::ann", "us::ann::1", True),
        ("us::ann::1", "us::ann::1", True),
        ("us::ann::1", "us::ann::2", False),
        ("ann", "us::Ann::1", False),
        ("user:ann", "us::user:ann::1", False),
        ("user:user:ann", "us::user:ann::1", True),
        ("us::user:ann", "us::user:ann::1", True),
        ("sv::s::1", "us::sv::1", False),
    ],
)
def test_who_is_the_expected_principal(expected: str, identity: str, is_expected: bool) -> None:
    wait = Wait(1, expected_principal=expected)
    assert wait.is_expected(Identity.parse(identity)) is is_expected
    assert wait.takes({}, identity) is is_expected
    assert Wait(1, expected_principal="ann").takes({}, "no identity") is False
