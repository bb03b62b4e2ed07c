"""Figures that have a goal, and the comparison of scenarios that took turns.

Two scenarios that are compared had their windows in turns, on the same machine in the same minutes.
Their ratio is that of their best windows. The median of the ratios of windows that followed each
other is beside it: where the two differ much, the machine was not quiet enough to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.units import Window, cpu_pair


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure; `goal` is what it may be at most, or at least, None for no goal."""

    figure: str
    reached: float
    unit: str = ""
    goal: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool:
        if self.goal is None:
            return True
        return self.reached >= self.goal if self.at_least else self.reached <= self.goal


def times_another(mine: Sequence[Window], others: Sequence[Window], name: str, most: float | None = None) -> list[Goal]:
    """Say how many times the cost of another scenario a unit costs."""
    cost, other = cpu_pair(mine), cpu_pair(others)
    if cost is None or other is None or not other.best:
        return []
    rounds = [
        one.cpu_us / two.cpu_us for one, two in zip(mine, others, strict=True) if one.cpu_us is not None and two.cpu_us
    ]
    found = [Goal(f"CPU, times {name}", cost.best / other.best, "", most)]
    return [*found, Goal("the same, median of rounds", median(rounds))] if rounds else found


def more_than_another(
    mine: Sequence[Window], others: Sequence[Window], echo: Sequence[Window], name: str, most: float | None = None
) -> list[Goal]:
    """Say how many echoes more than in another scenario a unit costs."""
    cost, other, unit = cpu_pair(mine), cpu_pair(others), cpu_pair(echo)
    if cost is None or other is None or unit is None or not unit.best:
        return []
    rounds = [
        one.cpu_us - two.cpu_us
        for one, two in zip(mine, others, strict=True)
        if one.cpu_us is not None and two.cpu_us is not None
    ]
    found = [Goal(f"CPU, more than {name}", (cost.best - other.best) / unit.best, "echoes", most)]
    return [*found, Goal("the same, median of rounds", median(rounds) / unit.best, "echoes")] if rounds else found


def more_us_than_another(mine: Sequence[Window], others: Sequence[Window], name: str, most: float) -> list[Goal]:
    """Say how many microseconds of CPU more than in another scenario a unit costs."""
    cost, other = cpu_pair(mine), cpu_pair(others)
    if cost is None or other is None:
        return []
    rounds = [
        one.cpu_us - two.cpu_us
        for one, two in zip(mine, others, strict=True)
        if one.cpu_us is not None and two.cpu_us is not None
    ]
    found = [Goal(f"CPU, more than {name}", cost.best - other.best, "us", most)]
    return [*found, Goal("the same, median of rounds", median(rounds), "us")] if rounds else found
