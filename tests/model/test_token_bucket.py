"""The token bucket never gives more than burst + rate x time, and never less."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.token_bucket import TOLERANCE_S, TokenBucket

rates = st.floats(min_value=0.01, max_value=100_000)
bursts = st.integers(min_value=1, max_value=1_000)
starts = st.floats(min_value=0, max_value=1e8)
gaps = st.floats(min_value=0, max_value=10) | st.just(0.0)


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(100, 200)
    assert [bucket.take(5.0) for _ in range(200)] == [0.0] * 200
    assert bucket.take(5.0) == pytest.approx(0.01)
    assert bucket.take(5.009) == pytest.approx(0.001)
    assert bucket.take(5.01) == 0.0
    assert bucket.take(5.01) == pytest.approx(0.01)
    assert [bucket.take(7.01) for _ in range(200)] == [0.0] * 200
    assert bucket.take(7.01) == pytest.approx(0.01)
    assert bucket.take(7.01, 0) == 0.0


def test_rate_zero_is_unlimited() -> None:
    bucket = TokenBucket(0, 0)
    assert all(bucket.take(0.0, 10_000) == 0.0 for _ in range(100))
    assert bucket.is_full(0.0)


@pytest.mark.parametrize(
    ("rate", "burst"), [(-1, 1), (math.inf, 1), (math.nan, 1), (1, 0), (1, 0.5), (1, -1), (1, math.inf), (1, math.nan)]
)
def test_impossible_buckets(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match=r"rate_per_s is|burst is"):
        TokenBucket(rate, burst)


@pytest.mark.parametrize("n", [-1, 6])
def test_taking_what_the_bucket_cannot_hold_is_a_mistake(n: int) -> None:
    with pytest.raises(ValueError, match=f"cannot take {n} tokens from a bucket that holds 5"):
        TokenBucket(1, 5).take(0.0, n)


def test_full_means_forgettable() -> None:
    bucket = TokenBucket(10, 5)
    assert bucket.is_full(0.0)
    bucket.take(0.0, 5)
    assert not bucket.is_full(0.0)
    assert not bucket.is_full(0.4)
    assert bucket.is_full(0.5)


@given(rates, bursts, starts, st.lists(st.tuples(gaps, st.integers(1, 1_000)), max_size=60))
def test_never_more_than_burst_plus_rate_times_time(
    rate: float, burst: int, start: float, takes: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst)
    given_at: list[tuple[float, int]] = []
    now = start
    for gap, n in takes:
        now += gap
        wanted = min(n, burst)
        if bucket.take(now, wanted) == 0.0:
            given_at.append((now, wanted))
    for index, (since, _) in enumerate(given_at):
        total = 0
        for until, n in given_at[index:]:
            total += n
            # The clock's own resolution counts: at 1e8 s a float steps by 15 ns.
            slack_s = TOLERANCE_S + 64 * math.ulp(until) + 64 * math.ulp(burst / rate)
            assert total <= burst + rate * (until - since + slack_s)


@given(rates, bursts, starts, st.lists(st.integers(1, 1_000), min_size=1, max_size=30))
def test_waiting_as_told_is_enough_and_less_is_not(rate: float, burst: int, start: float, takes: list[int]) -> None:
    bucket = TokenBucket(rate, burst)
    now = start
    for n in takes:
        wanted = min(n, burst)
        wait_s = bucket.take(now, wanted)
        assert 0.0 <= wait_s <= burst / rate + TOLERANCE_S
        if wait_s > 0.0:
            if wait_s > 4 * TOLERANCE_S:
                assert bucket.take(now + wait_s - 2 * TOLERANCE_S, wanted) > 0.0
            now += wait_s
            assert bucket.take(now, wanted) == 0.0


@given(rates, bursts, starts, st.floats(min_value=0, max_value=100), st.integers(1, 1_000))
def test_a_full_bucket_behaves_as_a_new_one(rate: float, burst: int, start: float, rest: float, n: int) -> None:
    used, new = TokenBucket(rate, burst), TokenBucket(rate, burst)
    used.take(start, min(n, burst))
    now = start + rest
    if used.is_full(now):
        assert used.take(now, burst) == new.take(now, burst)
        assert used.take(now) == pytest.approx(new.take(now))


def test_rounding_does_not_send_a_patient_client_away_again() -> None:
    # Rare but real: `now + wait` can round to just before the moment that was meant. Some of these
    # takes hit it.
    for takes in itertools.product(range(1, 6), repeat=4):
        bucket = TokenBucket(7, 5)
        now = 0.3
        for n in takes:
            wait_s = bucket.take(now, n)
            if wait_s:
                now += wait_s
                assert bucket.take(now, n) == 0.0
