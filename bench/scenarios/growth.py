"""How costs grow with what a gateway holds: agents, messages in the log, keys.

Each figure is measured on one gateway for each size, and the windows of all sizes take turns, so
that the ratio of two sizes is one of costs at the same time. The smallest size is the measure of
the others. A few agents work; the other ones are idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.scenarios.base import Scenario, variant
from bench.scenarios.connections import ConnectStorm
from bench.scenarios.kv import PutGet
from bench.scenarios.paced import PacedAt
from bench.scenarios.routed import Routed

PAIRS: Final = 5
"""Pairs of agents that work; their ten agents are the smallest number of connected ones."""
LONG_TOPICS: Final = (("paced-receiver", 0), ("routed-16-receiver", 0))
"""Agents, by implementation and number, whose topics are the long ones of a full log."""
LONE_RATE: Final = 1000.0


FIGURES: Final[Mapping[str, tuple[type[Scenario], Mapping[str, Any]]]] = {
    "paced": (PacedAt, {"rate": LONE_RATE}),
    "routed-16": (Routed, {"in_flight": 16}),
    "kv": (PutGet, {"connections": 2 * PAIRS}),
    "connect": (ConnectStorm, {}),
}
"""What is measured: a scenario, and what is different here."""

BY: Final = {"agents": "connected agents", "messages": "messages in the log", "keys": "keys"}

GROWTH: Sequence[type[Scenario]] = tuple(
    variant(
        base,
        f"growth-{by}-{figure}",
        f"`{figure}` of {2 * PAIRS} agents with more and more {what}",
        **attributes,
        grows=by,
        one_transport=True,
    )
    for by, what in BY.items()
    for figure, (base, attributes) in FIGURES.items()
)


def figure_of(scenario: type[Scenario]) -> str:
    """The figure that a scenario of growth measures."""
    return scenario.name.removeprefix(f"growth-{scenario.grows}-")
