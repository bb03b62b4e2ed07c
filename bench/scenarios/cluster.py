"""Measure gateways on one PostgreSQL, with sender and receiver on any node.

A pair's receiver is on the sender's node ("same") or on the next one ("across"), and pairs are
dealt to the nodes in turn, so every node has as many senders as receivers. Between workers the
kernel chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.clusters import Shape
from bench.scenarios.base import Scenario
from bench.scenarios.connections import ConnectStorm
from bench.scenarios.paced import Paced
from bench.scenarios.routed import Routed

LOW_RATE = 100.0
"""Messages per second at which one is mostly alone on its way."""


class _OnNodes(Routed):
    """Pairs of agents on a cluster."""

    across: ClassVar[bool] = False
    in_flight = 16

    def places(self) -> tuple[Sequence[str], Sequence[str]]:
        nodes = list(self.world.nodes)
        return (nodes[1:] + nodes[:1] if self.across else nodes), nodes


class OneNode(_OnNodes):
    """What PostgreSQL costs where one has SQLite otherwise."""

    name = "cluster-1"
    doc = "routed-16 on one node on PostgreSQL; gateway and database count"
    cluster = Shape(nodes=1)


class TwoSame(_OnNodes):
    """Two nodes that share nothing but the database."""

    name = "cluster-2-same"
    doc = "routed-16 on two nodes, sender and receiver on the same one"
    cluster = Shape(nodes=2)


class TwoAcross(TwoSame):
    """The headline."""

    name = "cluster-2-across"
    doc = "routed-16 on two nodes, the receiver on the other one"
    across = True


class TwoAcrossAlone(TwoAcross):
    """Small batches."""

    name = "cluster-2-across-w1"
    doc = "the same with one message in flight for each pair: small batches"
    in_flight = 1


class TwoAcrossDeep(TwoAcross):
    """Large batches."""

    name = "cluster-2-across-w64"
    doc = "the same with 64 in flight: large batches"
    in_flight = 64


class ThreeSame(_OnNodes):
    name = "cluster-3-same"
    doc = "routed-16 on three nodes, sender and receiver on the same one"
    cluster = Shape(nodes=3)


class ThreeAcross(ThreeSame):
    name = "cluster-3-across"
    doc = "routed-16 on three nodes, the receiver on the next one"
    across = True


class TwoWorkers(_OnNodes):
    """To be compared with OneNode."""

    name = "cluster-workers-2"
    doc = "routed-16 through one port that two workers share"
    cluster = Shape(workers=2)


class Connections(ConnectStorm):
    """Each is a claim, an interest in its topics that others know of, and a release."""

    name = "cluster-2-connect"
    doc = "connect storm on two nodes in turn: claim, interest, release"
    cluster = Shape(nodes=2)

    def place(self, number: int) -> str:
        return self.world.nodes[number % len(self.world.nodes)]


class _PacedOnNodes(_OnNodes, Paced):
    """The latency of a message that is alone."""

    in_flight = 1
    cluster = Shape(nodes=2)

    def pace(self) -> float:
        return LOW_RATE


class PacedSame(_PacedOnNodes):
    """To be compared with PacedAcross."""

    name = "cluster-paced-same"
    doc = f"two nodes, open loop at {LOW_RATE:.0f} messages a second, receivers on the senders' node"


class PacedAcross(_PacedOnNodes):
    """Measure what the hop to another node adds."""

    name = "cluster-paced-across"
    doc = "the same with receivers on the other node"
    across = True


CLUSTER: Sequence[type[Scenario]] = (
    OneNode,
    TwoSame,
    TwoAcross,
    TwoAcrossAlone,
    TwoAcrossDeep,
    ThreeSame,
    ThreeAcross,
    TwoWorkers,
    Connections,
    PacedSame,
    PacedAcross,
)
