"""Plans of schedules on a virtual clock: each slot by its policy, and never twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows.schedules import (
    BACKFILL,
    BUSY_MS,
    EVENT,
    FIRST_BACKOFF_MS,
    MAX_BACKOFF_MS,
    MOST_OWED,
    MOST_RANGES,
    POLICIES,
    FiringState,
    FiringTerms,
    PlannedFiring,
    backfill,
    firing_moment,
    jitter_of,
    new_state,
    next_slot,
    plan,
    plan_planned,
    refused,
    resumed,
    started,
)
from aether_trio.model.workflows.timetables import read_moment, read_timetable
from aether_trio.services.workflows.documents.cron import cron_matches
from tests.model.workflows.naive_cron import slots_of_year

MINUTE = 60_000
HOUR = 60 * MINUTE
BEGIN = read_moment("2026-03-28T12:00:00Z")


def terms(expression: str = "* * * * *", policy: str = "skip", zone: str = "Europe/Berlin", **more: int) -> FiringTerms:
    table = read_timetable("cron", expression, timezone=zone, matches=cron_matches)
    return FiringTerms(key="w/nightly", timetable=table, miss_policy=policy, **more)


class Player:
    """A schedule on a clock that the test sets; the state goes through JSON each time."""

    def __init__(self, of: FiringTerms, now_ms: int = BEGIN) -> None:
        self.terms = of
        self.state = new_state(now_ms)
        self.now_ms = now_ms
        self.due_ms = plan(of, self.state, now_ms).next_due_ms
        self.fired: list[int] = []

    def look(self, now_ms: int, running: int = 0, *, refuse: bool = False) -> list[int]:
        """Plan at a moment; return what fires."""
        self.now_ms = now_ms
        self.state = FiringState.from_json(json.loads(json.dumps(self.state.to_json())))
        found = plan(self.terms, self.state, now_ms, running)
        self.state, self.due_ms = found.state, found.next_due_ms
        if refuse and found.firings:
            self.state = refused(self.terms, found.state, found.firings, now_ms)
            self.due_ms = self.state.retry_ms
            return []
        self.state = started(self.state) if found.firings else self.state
        self.fired += found.firings
        return [(slot - BEGIN) // MINUTE for slot in found.firings]


# -- a year ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo"])
@pytest.mark.parametrize(
    ("expression", "policy"),
    [
        ("30 * * * *", "skip"),
        ("30 2 * * *", "skip"),
        ("0,45 1-3,23 * * *", "fire_once"),
        ("*/30 2 * * *", "fire_all"),
        ("0 0 * * *", "skip"),
    ],
)
def test_a_year_from_due_moment_to_due_moment(expression: str, policy: str, zone: str) -> None:
    wanted = slots_of_year(expression, zone, 2026)
    begin, end = read_moment("2026-01-02T00:00:00Z"), read_moment("2026-12-31T00:00:00Z")
    one = Player(terms(expression, policy, zone), begin)
    while one.due_ms < end:
        one.look(one.due_ms + 3)
    assert one.fired == [slot for slot in wanted if begin < slot < end]
    assert one.state.missed == 0
    assert len(one.state.claimed) == 1


# -- policies --------------------------------------------------------------------------------------


def test_what_is_late_within_the_tolerance_is_no_miss() -> None:
    one = Player(terms(tolerance_ms=30_000))
    assert one.look(BEGIN + MINUTE + 30_000) == [1]
    assert one.look(BEGIN + 2 * MINUTE + 30_001) == []
    assert one.state.missed == 1


@pytest.mark.parametrize(
    ("policy", "fires", "missed"),
    [("skip", [180], 179), ("fire_once", [180], 179), ("fire_all", [*range(81, 181)], 80)],
)
def test_after_an_outage_of_three_hours(policy: str, fires: list[int], missed: int) -> None:
    one = Player(terms(policy=policy))
    assert one.look(BEGIN + 3 * HOUR + 500) == fires
    assert one.state.missed == missed
    assert one.look(BEGIN + 3 * HOUR + MINUTE) == [181]


def test_a_long_tolerance_is_no_flood() -> None:
    one = Player(terms(tolerance_ms=5 * HOUR))
    assert one.look(BEGIN + 3 * HOUR) == [*range(81, 181)]
    assert one.state.missed == 80


def test_an_outage_of_a_year_is_no_walk_through_it() -> None:
    for policy in POLICIES:
        one = Player(terms(policy=policy))
        assert len(one.look(BEGIN + 365 * 24 * HOUR + 30_000)) == {"fire_all": 100}.get(policy, 1)


def test_once_fires_once_and_never_for_what_was_before() -> None:
    table = read_timetable("once", "2026-03-28T12:05:00Z", matches=cron_matches)
    one = Player(FiringTerms(key="k", timetable=table))
    assert one.due_ms == BEGIN + 5 * MINUTE
    assert one.look(BEGIN + 5 * MINUTE) == [5]
    assert one.due_ms == 0
    assert Player(FiringTerms(key="k", timetable=table, miss_policy="fire_all"), BEGIN + HOUR).due_ms == 0


# -- how many run ----------------------------------------------------------------------------------


def test_skip_misses_a_slot_while_enough_run() -> None:
    one = Player(terms(max_concurrent=1))
    assert one.look(BEGIN + MINUTE) == [1]
    assert one.look(BEGIN + 2 * MINUTE, running=1) == []
    assert one.look(BEGIN + 2 * MINUTE + 500) == []
    assert one.look(BEGIN + 3 * MINUTE) == [3]
    assert one.state.missed == 1


def test_fire_once_owes_one_slot_until_a_run_has_ended() -> None:
    one = Player(terms(policy="fire_once", max_concurrent=2))
    assert one.look(BEGIN + MINUTE, running=2) == []
    assert one.look(BEGIN + 2 * MINUTE, running=2) == []
    assert one.due_ms == BEGIN + 2 * MINUTE + BUSY_MS
    assert one.look(BEGIN + 2 * MINUTE + 700, running=1) == [2]
    assert one.look(BEGIN + 2 * MINUTE + 800) == []


def test_fire_all_owes_each_slot_and_starts_as_many_as_fit() -> None:
    one = Player(terms(policy="fire_all", max_concurrent=2))
    for minute in range(1, 6):
        assert one.look(BEGIN + minute * MINUTE, running=2) == []
    assert one.look(BEGIN + 5 * MINUTE + 1) == [1, 2]
    assert one.look(BEGIN + 5 * MINUTE + 2, running=1) == [3]
    assert one.look(BEGIN + 6 * MINUTE) == [4, 5]
    for minute in range(7, 150):
        one.look(BEGIN + minute * MINUTE, running=2)
    assert len(one.state.owed) == MOST_OWED


# -- refusals --------------------------------------------------------------------------------------


def test_a_refused_slot_is_tried_again_later_and_later() -> None:
    one = Player(terms("0 * * * *"))
    moments = []
    one.look(BEGIN + HOUR, refuse=True)
    for _ in range(5):
        moments.append(one.due_ms - one.now_ms)
        assert one.look(one.due_ms - 1) == []
        one.look(one.due_ms, refuse=True)
    assert moments == [FIRST_BACKOFF_MS << n for n in range(5)]
    assert one.look(one.due_ms) == [60]
    assert one.state.missed == 0
    one.look(BEGIN + 2 * HOUR, refuse=True)
    assert one.due_ms - one.now_ms == FIRST_BACKOFF_MS


def test_the_backoff_ends_at_an_hour_and_starts_again_when_the_clock_is_set_back() -> None:
    one = Player(terms("0 0 1 1 *", policy="fire_once"), BEGIN)
    for _ in range(30):
        one.look(one.due_ms, refuse=True)
    assert one.due_ms - one.now_ms == MAX_BACKOFF_MS
    slot = read_moment("2026-12-31T23:00:00Z")
    assert one.look(slot + MINUTE) == [(slot - BEGIN) // MINUTE]


def test_a_refused_slot_comes_again_when_the_clock_is_set_back_before_it() -> None:
    one = Player(terms(policy="fire_all"))
    assert one.look(BEGIN + MINUTE) == [1]
    for minute in range(2, 6):
        one.look(BEGIN + minute * MINUTE, refuse=minute > 2)
    assert one.fired == [BEGIN + MINUTE, BEGIN + 2 * MINUTE]
    assert one.look(BEGIN + 3 * MINUTE + 7) == [3]
    assert one.due_ms == BEGIN + 4 * MINUTE
    assert one.look(one.due_ms) == [4]
    assert one.look(BEGIN + 6 * MINUTE) == [5, 6]


@pytest.mark.parametrize(("policy", "owed"), [("skip", [3]), ("fire_once", [3]), ("fire_all", [1, 2, 3])])
def test_a_newer_slot_takes_the_place_of_a_refused_one(policy: str, owed: list[int]) -> None:
    one = Player(terms(policy=policy))
    one.look(BEGIN + MINUTE, refuse=True)
    one.look(BEGIN + 2 * MINUTE, refuse=True)
    one.look(BEGIN + 3 * MINUTE, refuse=True)
    assert one.look(one.due_ms) == owed
    assert one.state.missed == 3 - len(owed)


# -- pauses and backfills --------------------------------------------------------------------------


def test_slots_of_a_pause_never_fire() -> None:
    one = Player(terms(policy="fire_all"))
    one.look(BEGIN + MINUTE, refuse=True)
    one.state = resumed(one.state, BEGIN + 10 * MINUTE + 1)
    assert one.look(BEGIN + 11 * MINUTE) == [11]
    assert one.state.missed == 1


def test_a_backfill_has_the_slots_of_its_time() -> None:
    found = backfill(terms("0 */6 * * *", zone="UTC"), new_state(BEGIN), BEGIN - 24 * HOUR, BEGIN)
    assert [(slot - BEGIN) // HOUR for slot in found] == [-24, -18, -12, -6]


# -- jitter ----------------------------------------------------------------------------------------


@given(st.integers(0, 10 * MINUTE), st.text(max_size=20), st.integers(0, 10_000))
def test_jitter_is_always_the_same_and_at_most_the_setting(most: int, key: str, minute: int) -> None:
    slot = BEGIN + minute * MINUTE
    of = replace(terms(), key=key, jitter_ms=most)
    late = firing_moment(of, slot, 0) - slot
    assert 0 <= late <= min(most, MINUTE - 1)
    assert late == firing_moment(of, slot, 0) - slot
    assert jitter_of(key, slot, most) <= most


def test_jitter_spreads_schedules_and_slots() -> None:
    assert len({jitter_of(f"w/{n}", BEGIN, 1_000_000) for n in range(1_000)}) > 990
    assert len({jitter_of("w/1", BEGIN + n * MINUTE, 1_000_000) for n in range(1_000)}) > 990


def test_with_jitter_each_slot_fires_at_its_moment() -> None:
    one = Player(terms(jitter_ms=5 * MINUTE))
    for minute in range(1, 200):
        due_ms = one.due_ms
        assert due_ms == firing_moment(one.terms, BEGIN + minute * MINUTE, BEGIN)
        assert one.look(due_ms - 1) == []
        assert one.look(due_ms) == [minute]


# -- the clock -------------------------------------------------------------------------------------


def test_a_clock_that_was_a_year_ahead_leaves_the_schedule_as_it_was() -> None:
    one = Player(terms())
    assert one.look(BEGIN + MINUTE) == [1]
    assert one.look(BEGIN + 365 * 24 * HOUR + 500) == [365 * 24 * 60]
    assert one.look(BEGIN + MINUTE + 20_000) == []
    assert one.due_ms == BEGIN + 2 * MINUTE
    assert one.look(BEGIN + 2 * MINUTE) == [2]
    assert one.look(BEGIN + 3 * MINUTE) == [3]


def test_a_clock_that_is_set_back_fires_no_slot_again() -> None:
    one = Player(terms())
    for minute in range(1, 61):
        assert one.look(BEGIN + minute * MINUTE) == [minute]
    for minute in range(30, 61):
        assert one.look(BEGIN + minute * MINUTE) == []
        assert one.due_ms == BEGIN + 61 * MINUTE
    assert one.look(BEGIN + 61 * MINUTE) == [61]


def test_an_interval_goes_on_when_its_creation_lies_in_the_future() -> None:
    table = read_timetable("interval", "1m", matches=cron_matches)
    one = Player(FiringTerms(key="k", timetable=table), BEGIN + 1000 * HOUR)
    assert one.look(BEGIN) == []
    assert one.look(BEGIN + MINUTE) == [1]


def test_of_more_claimed_ranges_than_are_kept_none_fires_again() -> None:
    one = Player(terms(tolerance_ms=30_000))
    for minute in range(2, 81, 2):
        assert one.look(BEGIN + minute * MINUTE) == [minute]
    odd = [minute for minute in range(1, 81) if minute % 2]
    assert len(one.state.claimed) == MOST_RANGES
    again = [minute for now in range(1, 91) for minute in one.look(BEGIN + now * MINUTE)]
    assert len(set(one.fired)) == len(one.fired)
    # As far back as the ranges reach, what was missed has its moment again.
    assert again == [*[minute for minute in odd if minute > 80 - 2 * MOST_RANGES], *range(81, 91)]


class Oracle:
    """What fires on a clock that only goes forward, by walking through all slots."""

    def __init__(self, policy: str, tolerance_ms: int, most: int) -> None:
        self.policy, self.tolerance_ms, self.most = policy, tolerance_ms, most
        self.last_ms = BEGIN
        self.owed: list[int] = []

    def look(self, now_ms: int, running: int) -> list[int]:
        slots = list(range(self.last_ms // MINUTE * MINUTE + MINUTE, now_ms + 1, MINUTE))
        self.last_ms = now_ms
        match self.policy:
            case "skip":
                wanted = [slot for slot in slots if now_ms - slot <= self.tolerance_ms]
            case "fire_once":
                wanted = [*self.owed, *slots][-1:]
            case _:
                wanted = [*self.owed, *slots][-MOST_OWED:]
        room = max(self.most - running, 0) if self.most else len(wanted)
        self.owed = [] if self.policy == "skip" else wanted[room:]
        return [(slot - BEGIN) // MINUTE for slot in wanted[:room]]


@given(
    policy=st.sampled_from(POLICIES),
    tolerance_ms=st.sampled_from((0, 10_000, MINUTE, 5 * MINUTE)),
    most=st.integers(0, 3),
    looks=st.lists(
        st.tuples(st.sampled_from((0, 1, 999, 20_000, MINUTE, 90_000, 10 * MINUTE, 3 * HOUR)), st.integers(0, 3)),
        max_size=40,
    ),
)
def test_on_a_clock_that_goes_forward_plans_are_those_of_a_walk(
    policy: str, tolerance_ms: int, most: int, looks: list[tuple[int, int]]
) -> None:
    one = Player(terms(policy=policy, tolerance_ms=tolerance_ms, max_concurrent=most))
    oracle = Oracle(policy, tolerance_ms, most)
    now_ms = BEGIN
    for step_ms, running in looks:
        now_ms += step_ms
        assert one.look(now_ms, running) == oracle.look(now_ms, running)
    assert len(one.fired) == len(set(one.fired))
    assert next_slot(one.terms, one.state) > now_ms


JUMPS = st.sampled_from(
    (
        1,
        400,
        30_000,
        MINUTE,
        5 * MINUTE,
        HOUR,
        26 * HOUR,
        400 * 24 * HOUR,
        -1,
        -700,
        -MINUTE,
        -HOUR,
        -26 * HOUR,
        -90_000,
        -3 * MINUTE,
        -400 * 24 * HOUR,
    )
)


@given(
    expression=st.sampled_from(("* * * * *", "*/5 2-3 * * *", "30 2 * * *", "0 * * * *")),
    zone=st.sampled_from(("Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo")),
    policy=st.sampled_from(POLICIES),
    jitter_ms=st.sampled_from((0, 20_000, 10 * MINUTE)),
    most=st.integers(0, 2),
    looks=st.lists(st.tuples(JUMPS, st.integers(0, 2), st.booleans(), st.booleans()), max_size=30),
)
def test_whatever_the_clock_does_no_slot_fires_twice_and_none_that_passes_is_lost(
    expression: str,
    zone: str,
    policy: str,
    jitter_ms: int,
    most: int,
    looks: list[tuple[int, int, bool, bool]],
) -> None:
    of = terms(expression, policy, zone, jitter_ms=jitter_ms, max_concurrent=most)
    one = Player(of, BEGIN + 500 * 24 * HOUR)
    for jump_ms, running, refuse, to_due in looks:
        # To the schedule's own moment, or anywhere.
        now_ms = one.due_ms if to_due and one.due_ms else one.now_ms + jump_ms
        due_slot = next_slot(of, one.state)
        before = len(one.fired)
        one.look(now_ms, running, refuse=refuse)
        new = one.fired[before:]
        assert len(one.fired) == len(set(one.fired))
        assert firing_moment(of, max(new, default=0), one.state.anchor_ms) <= now_ms
        if (
            to_due
            and due_slot
            and firing_moment(of, due_slot, one.state.anchor_ms) == now_ms
            and not (most and running >= most)
        ):
            # The slot's moment has come, nothing is in its way: it fires, or is owed by a refusal.
            assert due_slot in one.fired or due_slot in one.state.owed
        assert one.due_ms == 0 or one.due_ms > now_ms or one.state.owed


# -- planned slots ---------------------------------------------------------------------------------


def planned(*seconds_late: int, kind: str = EVENT, refusals: int = 0) -> list[PlannedFiring]:
    return [PlannedFiring(kind, str(late), BEGIN - late * 1000, BEGIN - late * 1000, refusals) for late in seconds_late]


def decided(policy: str, due: list[PlannedFiring], running: int = 0, most: int = 0) -> tuple[list[str], list[str], int]:
    of = replace(terms(policy=policy, max_concurrent=most), tolerance_ms=60_000)
    fire, missed, again_ms = plan_planned(of, new_state(BEGIN), due, BEGIN, running)
    return [one.key for one in fire], [one.key for one in missed], again_ms


def test_late_events_by_policy() -> None:
    due = planned(300, 200, 100, 10, 0)
    assert decided("skip", due) == (["10", "0"], ["300", "200", "100"], 0)
    assert decided("fire_once", due) == (["100", "10", "0"], ["300", "200"], 0)
    assert decided("fire_all", due) == (["300", "200", "100", "10", "0"], [], 0)
    assert decided("skip", planned(300, refusals=1)) == (["300"], [], 0)


def test_planned_slots_wait_for_a_run_to_end() -> None:
    due = planned(3, 2, 1)
    assert decided("fire_all", due, running=1, most=2) == (["3"], [], BEGIN + BUSY_MS)
    assert decided("skip", due, running=1, most=2) == (["3"], ["2", "1"], 0)
    backfilled = planned(3000, 2000, kind=BACKFILL)
    assert decided("skip", backfilled, running=1, most=2) == (["3000"], [], BEGIN + BUSY_MS)
    waiting = replace(new_state(BEGIN), retry_ms=BEGIN + 5)
    assert plan_planned(terms(), waiting, due, BEGIN) == ((), (), BEGIN + 5)
