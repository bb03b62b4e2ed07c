"""How near the accepted messages of several nodes are to a workspace's rate.

The nodes are offered twice the rate in all, in uneven parts. It is counted what is delivered once
the nodes have leased their parts, and what has waited in their buckets is spent. The database is
the embedded PostgreSQL of the scenarios of clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from time import perf_counter, perf_counter_ns
from typing import Any, ClassVar, Final

from bench.clusters import Shape
from bench.goals import Goal
from bench.scenarios.base import Scenario, variant
from bench.scenarios.routed import Routed
from bench.schedule import Schedule
from bench.world import Options, Participant

RATE: Final = 1000.0
OFFERED: Final = 2.0
"""Times the rate that is offered in all."""
LEAD_SECONDS: Final = 2.5
COUNTED_SECONDS: Final = 4.0
TOLERANCE: Final = 10.0
REFUSED: Final = "ERR_WORKSPACE_RATE_LIMITED"


class LeasedRate(Routed):
    """Scenario: nodes with uneven demand share the rate of a workspace."""

    one_transport = True
    gated = ()
    parts: ClassVar[Sequence[int]]
    """Of what is offered, by node."""
    in_flight = 1

    @classmethod
    def gateway_args(cls, options: Options) -> Sequence[str]:
        return ("--set", f"limits.workspace_rate_per_s={RATE:g}")

    def prepare(self) -> None:
        super().prepare()
        nodes = len(self.parts)
        self._slots = [node for node, part in enumerate(self.parts) for _ in range(part)]
        self._at_node = [[pair for pair in range(self.options.pairs) if pair % nodes == node] for node in range(nodes)]
        self._sent_at_node = Counter[int]()
        self._accepted: list[float] = []
        self._schedule = Schedule(RATE * OFFERED)

    def places(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.world.nodes, self.world.nodes

    def window(self, seconds: float) -> int:
        before = self.received
        counted_from = counted = 0
        begun = perf_counter()

        def send(due_ns: int) -> None:
            nonlocal counted_from, counted
            now = perf_counter()
            if not counted_from and now >= begun + LEAD_SECONDS:
                counted_from, counted = perf_counter_ns(), self.received
            self._send_next(due_ns)

        self._schedule.run(self.world.loop, LEAD_SECONDS + max(seconds, COUNTED_SECONDS), send)
        accepted = (self.received - counted) / ((perf_counter_ns() - counted_from) / 1e9)
        self._accepted.append(accepted * 100 / RATE)
        self.drain(lambda: self.outstanding)
        return self.received - before

    def _send_next(self, due_ns: int) -> None:
        """Send from a node by its part, and there by the pairs in turn."""
        node = self._slots[self._sent_at_node.total() % len(self._slots)]
        pairs = self._at_node[node]
        self.send(pairs[self._sent_at_node[node] % len(pairs)], due_ns)
        self._sent_at_node[node] += 1

    def refusal(self, participant: Participant, code: str) -> None:
        if code == REFUSED:
            del self.world.errors[code]  # it is asked for
        super().refusal(participant, code)

    def finish(self) -> None:
        """Judge the rate; refused messages are asked for."""
        super().finish()
        self.verdict.failures = [one for one in self.verdict.failures if "refused" not in one]
        off = max(abs(one - 100) for one in self._accepted[1:])
        self.goals = [
            Goal("accepted of the rate, off by", abs(mean(self._accepted[1:]) - 100), "%", TOLERANCE),
            Goal("the same, the worst of all windows", off, "%"),
            Goal("accepted of the rate", mean(self._accepted[1:]), "%"),
        ]

    def parameters(self) -> dict[str, Any]:
        return {"rate": RATE, "offered": RATE * OFFERED, "pairs": self.options.pairs}


RATES: Sequence[type[Scenario]] = (
    variant(
        LeasedRate,
        "access-rate-2-nodes",
        "a workspace's rate of 1,000 messages a second on two nodes, which are offered 500 and 1,500",
        parts=(1, 3),
        cluster=Shape(nodes=2),
    ),
    variant(
        LeasedRate,
        "access-rate-3-nodes",
        "the same on three nodes, which are offered 200, 600 and 1,200",
        parts=(1, 3, 6),
        cluster=Shape(nodes=3),
    ),
)
