"""Measure gateways on one PostgreSQL, with sender and receiver on any node.

A pair's receiver is on the sender's node ("same") or on the next one ("across"), and pairs are
dealt to the nodes in turn, so every node has as many senders as receivers. Between workers the
kernel chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.clusters import Shape
from bench.scenarios.base import Scenario, variant
from bench.scenarios.connections import ConnectStorm
from bench.scenarios.paced import Paced
from bench.scenarios.routed import Routed

LOW_RATE = 100.0
"""Messages per second at which one is mostly alone on its way."""


class _OnNodes(Routed):
    across: ClassVar[bool] = False

    def places(self) -> tuple[Sequence[str], Sequence[str]]:
        nodes = list(self.world.nodes)
        return (nodes[1:] + nodes[:1] if self.across else nodes), nodes


class Connections(ConnectStorm):
    """Scenario: connections to a cluster, each a claim and a release."""

    name = "cluster-2-connect"
    doc = "connect storm on two nodes in turn: claim, interest, release"
    cluster = Shape(nodes=2)

    def place(self, number: int) -> str:
        return self.world.nodes[number % len(self.world.nodes)]


class _PacedOnNodes(_OnNodes, Paced):
    """Scenario: the latency of single messages on a cluster."""

    in_flight = 1
    cluster = Shape(nodes=2)

    def pace(self) -> float:
        return self.options.rate or LOW_RATE


ONE, TWO, THREE = Shape(nodes=1), Shape(nodes=2), Shape(nodes=3)
# Name, doc, gateways, whether receivers are on the next node, messages in flight.
ROUTED = (
    ("cluster-1", "routed-16 on one node on PostgreSQL; gateway and database count", ONE, False, 16),
    ("cluster-2-same", "routed-16 on two nodes, sender and receiver on the same one", TWO, False, 16),
    ("cluster-2-across", "routed-16 on two nodes, the receiver on the other one", TWO, True, 16),
    ("cluster-2-across-w1", "the same with one message in flight for each pair: small batches", TWO, True, 1),
    ("cluster-2-across-w64", "the same with 64 in flight: large batches", TWO, True, 64),
    ("cluster-3-same", "routed-16 on three nodes, sender and receiver on the same one", THREE, False, 16),
    ("cluster-3-across", "routed-16 on three nodes, the receiver on the next one", THREE, True, 16),
    ("cluster-workers-2", "routed-16 through one port that two workers share", Shape(workers=2), False, 16),
)
PACED_SAME = f"two nodes, open loop at {LOW_RATE:.0f} messages a second, receivers on the senders' node"
CLUSTER: Sequence[type[Scenario]] = (
    *(
        variant(_OnNodes, name, doc, cluster=shape, across=across, in_flight=in_flight)
        for name, doc, shape, across, in_flight in ROUTED
    ),
    Connections,
    variant(_PacedOnNodes, "cluster-paced-same", PACED_SAME),
    variant(_PacedOnNodes, "cluster-paced-across", "the same with receivers on the other node", across=True),
)
