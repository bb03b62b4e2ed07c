"""Decisions on access that no route and no cache remembers, among many rules.

It needs no gateway: the index of rules (model/access/ladder.py) is asked in this process. A
neighbour that takes the CPU makes some answers slow, not always the same ones, so each question
counts with the fastest of its answers. `access_data` says what the rules are like.
"""

from __future__ import annotations

import random
from time import perf_counter
from typing import Any, Final

from aether_trio.model.access.ladder import AccessIndex
from bench import access_data
from bench.goals import Goal
from bench.scenarios.base import Scenario

QUESTIONS: Final = 4_000
P99_US: Final = 20.0
MEMORY_MIB: Final = 60.0


class Decide(Scenario):
    """Scenario: questions to the index, with groups known and looked up."""

    name = "access-decide"
    doc = "an uncached decision among 100,000 rules, 10,000 of them patterns, and 1,000 groups; and their memory"
    unit = "decision"
    own_server = True
    gated = ()

    def prepare(self) -> None:
        rules = self.options.rules
        people = access_data.population(random.Random(1), max(1, rules // 100))
        self._index = AccessIndex()
        access_data.fill(self._index, people, random.Random(2), rules)
        self._asked = access_data.questions(people, random.Random(3), QUESTIONS)
        self._best: dict[bool, list[int]] = {}
        self.decided = 0

    def window(self, seconds: float) -> int:
        before, until = self.decided, perf_counter() + seconds
        while True:
            for cold in (False, True):
                times = access_data.times_in_order_ns(self._index, self._asked, cold=cold)
                known = self._best.get(cold, times)
                self._best[cold] = list(map(min, known, times))
                self.decided += len(times)
            if perf_counter() >= until:
                return self.decided - before

    def finish(self) -> None:
        for cold, name in ((False, "groups known"), (True, "groups looked up")):
            best = sorted(self._best[cold])
            for share in (50, 99):
                goal = P99_US if share == 99 else None
                self.goals.append(Goal(f"{name}, p{share}", best[len(best) * share // 100] / 1000, "us", goal))
        mib = access_data.index_bytes(self.options.rules) / 2**20
        self.goals.append(Goal("memory", mib, "MiB", MEMORY_MIB))
        self.verdict.counts = {"decisions": self.decided}

    def parameters(self) -> dict[str, Any]:
        return {"rules": self.options.rules}
