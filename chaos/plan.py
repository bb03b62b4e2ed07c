"""The faults of a run, from a seed: which, when, to whom, for how long.

Pure; faults.py does them.

A target has one fault at a time, and of the nodes one at least is left alone by whatever takes a
whole node away, because clients need one node. Faults of different targets overlap.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

DATABASE: Final = "database"


class Kind(enum.StrEnum):
    """The kinds of faults, named as the table names them."""

    KILL_NODE = "kill -9 of a node"
    STOP_NODE = "SIGSTOP of a node"
    STOP_NODE_LONG = "SIGSTOP of a node, until it is dead to others"
    DRAIN_NODE = "restart of a node (SIGTERM)"
    RESTART_DATABASE = "database restart"
    CRASH_DATABASE = "kill -9 of the database"
    END_BACKEND = "end of one backend"
    END_LEASE = "end of a lease's backend"
    WITHHOLD_LEASE = "a lease ended, and not to be had again"
    HALF_OPEN_LEASE = "a lease ended, and its node not told"
    END_BUS = "end of a listener (lost wakes)"
    STALL_BUS = "stalled listener (late wakes)"
    STALL_DATABASE_LINK = "stalled database link"
    STALL_CONNECTION = "one stalled database connection"
    STALL_WRITE = "stalled database connection with a write"
    CUT_DATABASE_LINK = "cut database link"
    SLOW_DATABASE_LINK = "slow database link"
    HALF_CLOSE_CONNECTION = "half-closed database connection"
    CUT_CLIENTS = "cut client links of a node"
    STALL_CLIENTS = "stalled client links of a node"
    HALF_CLOSE_CLIENT = "half-closed client link"
    FAIL_OVER = "primary killed, standby promoted"
    """Never by chance: once, and only when there is a standby."""


@dataclass(frozen=True, slots=True)
class _Chance:
    """How often a fault comes, relatively, and how long it lasts in seconds."""

    weight: float
    least_s: float = 0.0
    most_s: float = 0.0
    takes_node: bool = False


CHANCES: Final[Mapping[Kind, _Chance]] = MappingProxyType(
    {
        Kind.KILL_NODE: _Chance(4, 0.5, 5.0, takes_node=True),
        # The grace of a lease is 5 s: some end before it, some after.
        Kind.STOP_NODE: _Chance(4, 1.0, 12.0, takes_node=True),
        # When no client wants what it holds, it is found after 10 s and two looks, and its
        # workers are let go 5 s later.
        Kind.STOP_NODE_LONG: _Chance(2, 14.0, 24.0, takes_node=True),
        Kind.DRAIN_NODE: _Chance(1, 0.0, 1.0, takes_node=True),
        Kind.RESTART_DATABASE: _Chance(1, 0.0, 1.0),
        Kind.CRASH_DATABASE: _Chance(1, 0.0, 2.0),
        Kind.END_BACKEND: _Chance(3),
        Kind.END_LEASE: _Chance(2),
        # The node finds it by two probes, the second of which is not answered.
        Kind.HALF_OPEN_LEASE: _Chance(2, 6.0, 9.0, takes_node=True),
        Kind.END_BUS: _Chance(2),
        Kind.STALL_BUS: _Chance(2, 1.0, 8.0),
        # All else that the node has goes on meanwhile.
        Kind.WITHHOLD_LEASE: _Chance(3, 1.5, 8.0, takes_node=True),
        Kind.STALL_DATABASE_LINK: _Chance(2, 1.0, 9.0, takes_node=True),
        Kind.STALL_CONNECTION: _Chance(2, 1.0, 8.0),
        # A stalled connection is found after 2 s, and given up after 3 to 5.
        Kind.STALL_WRITE: _Chance(5, 2.0, 9.0),
        Kind.CUT_DATABASE_LINK: _Chance(2),
        Kind.SLOW_DATABASE_LINK: _Chance(1, 2.0, 6.0),
        Kind.HALF_CLOSE_CONNECTION: _Chance(1),
        Kind.CUT_CLIENTS: _Chance(2),
        Kind.STALL_CLIENTS: _Chance(2, 1.0, 6.0),
        Kind.HALF_CLOSE_CLIENT: _Chance(1),
        Kind.FAIL_OVER: _Chance(0),
    }
)
OF_DATABASE: Final = frozenset(
    {Kind.RESTART_DATABASE, Kind.CRASH_DATABASE, Kind.END_BACKEND, Kind.END_LEASE, Kind.END_BUS, Kind.FAIL_OVER}
)
BY_CHANCE: Final = tuple(kind for kind in Kind if CHANCES[kind].weight)
FAIL_OVER_REST_S: Final = 5.0
REST_S: Final = 1.0
"""What a target has for itself behind a fault."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: of a node by name or DATABASE; `pick` (0 to 1) chooses the rest."""

    at_s: float
    kind: Kind
    target: str
    duration_s: float
    pick: float


def plan(
    seed: int,
    nodes: Sequence[str],
    seconds: float,
    *,
    mean_s: float,
    kinds: Sequence[Kind] = BY_CHANCE,
    fail_over: bool = False,
) -> list[Step]:
    """The faults of `seconds`, in order, `mean_s` apart on average.

    All have ended by then.

    With `fail_over` there is one of that kind, as soon as half of the time is over and nothing else
    happens to the database.
    """
    chance = random.Random(seed)
    busy_until: dict[str, float] = {}
    away_until: dict[str, float] = {}
    steps: list[Step] = []
    at_s = 0.0
    weights = [CHANCES[kind].weight for kind in kinds]
    while True:
        at_s += chance.uniform(0.2, 1.8) * mean_s
        (kind,) = chance.choices(kinds, weights)
        limits = CHANCES[kind]
        duration_s = chance.uniform(limits.least_s, limits.most_s)
        target = DATABASE if kind in OF_DATABASE else chance.choice(list(nodes))
        pick = chance.random()
        if fail_over and seconds / 2 <= at_s <= seconds and busy_until.get(DATABASE, 0.0) <= at_s:
            fail_over = False
            busy_until[DATABASE] = at_s + FAIL_OVER_REST_S
            steps.append(Step(at_s, Kind.FAIL_OVER, DATABASE, 0.0, pick))
            continue
        if at_s + duration_s > seconds:
            return steps
        if busy_until.get(target, 0.0) > at_s:
            continue
        if limits.takes_node:
            away = [name for name in nodes if name != target and away_until.get(name, 0.0) > at_s]
            if len(away) + 1 >= max(len(nodes), 2):
                continue
            away_until[target] = at_s + duration_s + REST_S
        busy_until[target] = at_s + duration_s + REST_S
        steps.append(Step(at_s, kind, target, duration_s, pick))
