"""Echo arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.units import Pair, Window, cpu_pair, figures, rate_pair, slope


def window(count: int, cpu_us: float | None, seconds: float = 0.5, load_us: float = 0.0) -> Window:
    cpu = None if cpu_us is None else round(cpu_us * count * 1000)
    return Window(seconds, count, cpu, round(load_us * count * 1000))


def test_best_is_the_cheapest_window_and_mean_weighs_by_count() -> None:
    assert cpu_pair([window(100, 30.0), window(300, 50.0)]) == Pair(30.0, 45.0)


def test_windows_without_work_or_cpu_do_not_count() -> None:
    assert cpu_pair([window(0, 0.0), window(10, None), window(10, 7.0)]) == Pair(7.0, 7.0)
    assert cpu_pair([window(10, None)]) is None
    assert cpu_pair([]) is None


def test_rate_is_over_wall_time() -> None:
    assert rate_pair([window(100, 1.0, 0.5), window(100, 1.0, 1.5)]) == Pair(200.0, 100.0)
    assert rate_pair([]) == Pair(0.0, 0.0)


def test_echoes_are_best_over_best_and_mean_over_mean() -> None:
    found = figures(
        [window(100, 60.0, load_us=9.0), window(100, 90.0, load_us=11.0)], [window(10, 20.0), window(10, 40.0)]
    )
    assert found.echoes == Pair(3.0, 2.5)
    assert found.echo_us == Pair(20.0, 30.0)
    assert found.load_us == pytest.approx(10.0)


def test_without_a_known_process_there_are_rates_only() -> None:
    found = figures([window(100, None)], [window(10, 20.0)])
    assert found.echoes is None
    assert found.cpu_us is None
    assert found.rate.best == 200.0


def test_the_cpu_of_other_programs_is_a_mean_over_all_windows_or_unknown() -> None:
    known = [Window(0.5, 100, None, 0, 3_000_000, 200_000), Window(0.5, 300, None, 0, 5_000_000, 200_000)]
    found = figures(known, [])
    assert (found.machine_us, found.kernel_us) == (20.0, 1.0)
    found = figures([*known, Window(0.5, 100, None, 0)], [])
    assert (found.machine_us, found.kernel_us) == (None, None)


@given(st.floats(0.1, 20.0))
def test_echoes_do_not_depend_on_the_speed_of_the_machine(slower: float) -> None:
    fast = figures([window(1000, 60.0)], [window(1000, 30.0)])
    slow = figures([window(1000, 60.0 * slower)], [window(1000, 30.0 * slower)])
    assert fast.echoes is not None
    assert slow.echoes is not None
    assert slow.echoes.best == pytest.approx(fast.echoes.best, rel=1e-3)


@given(st.floats(-100, 100), st.floats(0, 1000), st.sets(st.integers(0, 5000), min_size=2, max_size=6))
def test_slope_finds_the_line(per_x: float, base: float, xs: set[int]) -> None:
    assert slope([(x, base + per_x * x) for x in xs]) == pytest.approx(per_x, abs=1e-6)


def test_slope_needs_two_points() -> None:
    with pytest.raises(ValueError, match="two different x"):
        slope([(1, 2), (1, 3)])
    with pytest.raises(ValueError, match="two different x"):
        slope([])
