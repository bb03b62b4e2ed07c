"""FloodBudgets: bursts, leaks, and frames that are earned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http2 import flood_budgets
from aether_trio.transport.http2.flood_budgets import FloodBudgets
from aether_trio.transport.http2.frames import Http2Violation
from aether_trio.transport.http2.limits import NO_ALLOWANCES, Allowance, Allowances


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, allowance: Allowance) -> FloodBudgets:
    return FloodBudgets(flood_budgets.allowance_table(Allowances(pings=allowance, window_updates=allowance)), clock)


def test_kinds_do_not_share() -> None:
    budget = make(Clock(), Allowance(1, 0.0))
    budget.spend(flood_budgets.PING_FLOOD)
    budget.spend(flood_budgets.SETTINGS_FLOOD)
    budget.spend(flood_budgets.WINDOW_UPDATE_FLOOD)


def test_a_burst_passes_and_what_leaks_away_is_forgiven_once() -> None:
    clock = Clock()
    budget = make(clock, Allowance(5, 1.0))
    for _ in range(5):
        budget.spend(flood_budgets.PING_FLOOD)
    clock.now += 3
    for _ in range(3):
        budget.spend(flood_budgets.PING_FLOOD)
    with pytest.raises(Http2Violation):
        budget.spend(flood_budgets.PING_FLOOD)


def test_earned_frames_are_forgiven_once() -> None:
    budget = make(Clock(), Allowance(2, 0.0))
    for earned in range(100):
        budget.spend(flood_budgets.WINDOW_UPDATE_FLOOD, earned)
    with pytest.raises(Http2Violation):
        for _ in range(4):
            budget.spend(flood_budgets.WINDOW_UPDATE_FLOOD, 100)


@given(steps=st.lists(st.floats(0.0, 5.0), max_size=200), burst=st.integers(1, 10), rate=st.integers(0, 3))
def test_never_more_pass_than_two_bursts_and_the_rate(steps: list[float], burst: int, rate: int) -> None:
    clock = Clock()
    budget = make(clock, Allowance(burst, float(rate)))
    passed = 0
    start = clock.now
    for step in steps:
        clock.now += step
        try:
            budget.spend(flood_budgets.PING_FLOOD)
        except Http2Violation:
            break
        passed += 1
    assert passed <= 2 * burst + rate * (clock.now - start) + 1


@given(gaps=st.lists(st.floats(1.0, 3.0), max_size=100))
def test_who_keeps_the_rate_is_never_cut_off(gaps: list[float]) -> None:
    clock = Clock()
    budget = make(clock, Allowance(1, 1.0))
    for gap in gaps:
        clock.now += gap
        budget.spend(flood_budgets.PING_FLOOD)


def test_every_counter_has_a_reason_and_our_client_counts_nothing() -> None:
    assert (
        len(flood_budgets.REASONS)
        == len(flood_budgets.allowance_table(Allowances()))
        == len(flood_budgets.allowance_table(NO_ALLOWANCES))
    )
    budget = FloodBudgets(flood_budgets.allowance_table(NO_ALLOWANCES), Clock())
    for _ in range(1000):
        budget.spend(flood_budgets.SETTINGS_FLOOD)
