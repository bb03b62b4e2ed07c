"""What a comparison judges and what it only shows."""

from __future__ import annotations

from typing import Any

from bench.compare import changes, lost
from bench.scenarios import FAMILIES


def results(**scenarios: dict[str, Any]) -> dict[str, Any]:
    return {"profiled": False, "scenarios": scenarios}


def scenario(echoes: float | None = None, kib: float | None = None, **more: Any) -> dict[str, Any]:
    return {
        "gated": ["echoes", "kib"],
        "parameters": {"pairs": 100},
        "echoes": None if echoes is None else {"best": echoes, "mean": echoes * 2},
        "cpu_us": {"best": 1.0, "mean": 1.0},
        "kib_per_connection": kib,
        "failed": "",
    } | more


def test_growth_beyond_the_threshold_is_worse() -> None:
    before, after = results(a=scenario(2.0), b=scenario(2.0)), results(a=scenario(2.2), b=scenario(2.4))
    assert [change.worse for change in changes(before, after, 0.15)] == [False, True]
    assert not any(change.worse for change in changes(before, after, 0.25))
    assert not any(change.worse for change in changes(after, before, 0.15))


def test_the_cost_of_quiet_work_and_of_growth_is_judged() -> None:
    judged = [one.name for family in ("quiet", "growth") for one in FAMILIES[family].values() if "echoes" in one.gated]
    assert len(judged) == len(FAMILIES["quiet"]) - 1 + len(FAMILIES["growth"])
    assert not FAMILIES["quiet"]["raw-echo-paced"].gated  # it measures the machine


def test_memory_is_judged_too() -> None:
    (change,) = changes(results(idle=scenario(kib=20.0)), results(idle=scenario(kib=30.0)))
    assert (change.figure, change.worse) == ("kib", True)
    assert "WORSE" in str(change)
    assert "+50.0%" in str(change)


def test_absolute_microseconds_are_never_judged() -> None:
    dearer = scenario(2.0, cpu_us={"best": 900.0, "mean": 900.0})
    assert not any(change.worse for change in changes(results(a=scenario(2.0)), results(a=dearer)))


def test_other_sizes_ungated_figures_and_profiles_are_shown_but_not_judged() -> None:
    before = results(a=scenario(1.0))
    for after in (
        results(a=scenario(9.0, parameters={"pairs": 5})),
        results(a=scenario(9.0, gated=["kib"])),
        results(a=scenario(9.0)) | {"profiled": True},
    ):
        (change,) = changes(before, after)
        assert not change.worse
        assert "not judged" in str(change)


def test_scenarios_of_one_side_only_are_left_out() -> None:
    assert changes(results(a=scenario(1.0)), results(b=scenario(9.0))) == []
    assert changes(results(a=scenario(None)), results(a=scenario(9.0))) == []


def test_a_scenario_that_worked_before_and_fails_now_is_named() -> None:
    before = results(a=scenario(1.0), b=scenario(1.0, failed="bad already"))
    after = results(a=scenario(1.0, failed="broken"), b=scenario(1.0, failed="x"), c=scenario(1.0, failed="new"))
    assert lost(before, after) == ["a"]
