"""How many users there are when, in which process, and when each one sends."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from loadtests.conversations import NS, Conversations
from loadtests.shapes import RAMP_STEPS, SHAPES, spread, target


def test_all_shapes_but_the_ramp_want_all_users_at_once() -> None:
    for name, shape in SHAPES.items():
        assert target(shape, 1000, 0.0, 60.0) == (100 if name == "ramp" else 1000)


def test_the_ramp_rises_in_even_steps_and_stays() -> None:
    seen = [target(SHAPES["ramp"], 1005, second, 60.0) for second in range(120)]
    assert sorted(seen) == seen
    assert len(set(seen)) == RAMP_STEPS
    assert seen[0] == 101
    assert seen[54:] == [1005] * 66


@pytest.mark.parametrize(("users", "processes"), [(2, 1), (20, 2), (21, 2), (15_000, 4), (7, 3), (3, 9)])
def test_every_user_is_in_one_process_and_pairs_stay_together(users: int, processes: int) -> None:
    parts = spread(users, processes)
    indexes = [index for first, count in parts for index in range(first, first + count)]
    assert indexes == list(range(users))
    assert all(first % 2 == 0 and count > 0 for first, count in parts)
    assert len(parts) <= processes


def conversations(
    pairs: int, places: int, rate: float, *, ready: set[int] | None = None, open_places: int | None = None
) -> Conversations:
    return Conversations(
        pairs, places, rate, 10.0, random.Random(1), 0,
        lambda pair: ready is None or pair in ready,
        lambda: places if open_places is None else open_places,
    )  # fmt: skip


def test_messages_are_due_at_the_rate_and_both_of_a_pair_speak() -> None:
    talk = conversations(pairs=500, places=10, rate=2.0)
    spoken = list(talk.due(100 * NS))
    assert len(spoken) == pytest.approx(10 * 2 * 2.0 * 100, rel=0.1)
    times = [at for at, _ in spoken]
    assert times == sorted(times)
    sides = Counter(speaker % 2 for _, speaker in spoken)
    assert sides[0] == pytest.approx(sides[1], rel=0.2)


def test_a_late_caller_gets_what_it_missed_with_the_intended_times() -> None:
    asked_often, asked_once = conversations(50, 5, 1.0), conversations(50, 5, 1.0)
    often = [entry for second in range(1, 31) for entry in asked_often.due(second * NS)]
    assert often == list(asked_once.due(30 * NS))


def test_at_any_time_as_many_pairs_talk_as_there_are_places() -> None:
    talk = conversations(pairs=500, places=10, rate=20.0)
    list(talk.due(20 * NS))
    assert len({speaker // 2 for _, speaker in talk.due(21 * NS)}) <= 2 * 10
    later = {speaker // 2 for _, speaker in talk.due(200 * NS)}
    assert len(later) > 50  # others get their turn


def test_only_pairs_that_are_there_talk() -> None:
    talk = conversations(pairs=10, places=4, rate=5.0, ready={3})
    assert {speaker // 2 for _, speaker in talk.due(60 * NS)} == {3}
    silent = conversations(pairs=10, places=4, rate=5.0, ready=set())
    assert list(silent.due(60 * NS)) == []
    assert silent.next_ns is not None
    assert silent.next_ns > 60 * NS - NS


def test_fewer_places_are_open_while_fewer_are_connected() -> None:
    half = len(list(conversations(100, 10, 1.0, open_places=5).due(60 * NS)))
    whole = len(list(conversations(100, 10, 1.0).due(60 * NS)))
    assert half == pytest.approx(whole / 2, rel=0.3)


def test_no_user_or_no_rate_is_silence() -> None:
    assert conversations(0, 4, 1.0).next_ns is None
    assert conversations(10, 0, 1.0).next_ns is None
    assert conversations(10, 4, 0.0).next_ns is None
