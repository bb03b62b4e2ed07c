"""Histograms of latencies."""

from __future__ import annotations

import pytest
from hdrh.histogram import HdrHistogram

from bench.latency import DIGITS, HIGHEST_NS, LOWEST_NS, Latencies


def test_percentiles_are_right_to_three_digits() -> None:
    latencies = Latencies()
    latencies.pending.extend(range(1000, 1_000_001, 1000))  # 1 to 1000 us
    latencies.close_window()
    found = latencies.summary()
    expected = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert found["all"] == pytest.approx(expected, rel=0.002)
    assert found["count"] == 1000


def test_the_best_window_is_kept_beside_the_total() -> None:
    latencies = Latencies()
    for value_us in (50, 10, 900):
        latencies.pending.extend([value_us * 1000] * 10)
        latencies.close_window()
    found = latencies.summary()
    assert found["best_window"]["p99"] == pytest.approx(10, rel=0.002)
    assert found["all"]["max"] == pytest.approx(900, rel=0.002)


def test_a_warm_up_and_an_empty_window_leave_no_trace() -> None:
    latencies = Latencies()
    latencies.pending.append(5)
    latencies.drop_window()
    latencies.close_window()
    assert latencies.summary() == {}


def test_what_is_off_the_scale_is_held_at_its_ends() -> None:
    latencies = Latencies()
    latencies.pending.extend([-5, HIGHEST_NS * 2])
    latencies.close_window()
    assert latencies.summary()["count"] == 2


def test_the_file_holds_the_whole_histogram() -> None:
    latencies = Latencies()
    latencies.pending.extend([1000, 2000, 3000])
    latencies.close_window()
    copy = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
    copy.decode_and_add(latencies.summary()["hdr"])
    assert copy.get_total_count() == 3
