"""Leases parts of a workspace's message rate to the nodes of a cluster, by demand.

`LeaseBook` is what the database keeps of one workspace: the lease of each node, its demand and when
it ends. A node renews its lease each second, and is given the rate that is its share, as far as the
other nodes have not leased it: it takes a larger share only when they have given theirs back.

`LeasedBucket` is the node's token bucket, whose rate is its lease.

Invariant: the leases of a book that have not ended are never more than the rate together, for any
sequence of renewals, joins and deaths, while all nodes know the same rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ROOM: Final = 1.05
"""A node is leased so much more than its demand, as demand is not the same each second."""
TOLERANCE: Final = 1e-9
TOLERANCE_TOKENS: Final = 1e-6


def fair_shares(rate: float, demands: Mapping[str, float]) -> dict[str, float]:
    """Divide a rate among nodes: max-min fair by demand, and what is left equally.

    A node gets what it demands, with some room, unless the others leave it less; then it gets as
    much as any other that demands more. All shares together are the rate.
    """
    shares: dict[str, float] = {}
    left, nodes = rate, len(demands)
    for node, demand in sorted(demands.items(), key=lambda one: (one[1], one[0])):
        shares[node] = min(demand * ROOM, left / nodes)
        left -= shares[node]
        nodes -= 1
    extra = max(left, 0.0) / len(demands) if demands else 0.0
    return {node: share + extra for node, share in shares.items()}


@dataclass(frozen=True, slots=True)
class RateLease:
    """The part of a rate that a node may use until `ends_ms`, and what it demanded."""

    rate: float
    demand: float
    ends_ms: int


@dataclass(frozen=True, slots=True)
class RenewedLease:
    """The answer to a renewal: the leased rate, the fair share, the most by others."""

    rate: float
    share: float
    others: float


class LeaseBook:
    """The leases of one workspace's rate, by node."""

    def __init__(self, leases: Mapping[str, RateLease] | None = None) -> None:
        self._leases = dict(leases or {})

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> LeaseBook:
        """Return the book of a JSON value, the inverse of `value`."""
        return cls({node: RateLease(*fields) for node, fields in value.items()})

    def value(self) -> dict[str, list[float]]:
        """Return the book as JSON: node to [rate, demand, end in Unix ms]."""
        return {node: [one.rate, one.demand, one.ends_ms] for node, one in self._leases.items()}

    def leased(self, now_ms: int) -> float:
        """Return the sum of the leases that have not ended."""
        return math.fsum(one.rate for one in self._leases.values() if one.ends_ms > now_ms)

    def renew(self, node: str, demand: float, rate: float, now_ms: int, ends_ms: int) -> RenewedLease:
        """Lease a node its share of `rate` until `ends_ms`; demand 0 gives it back."""
        self._leases = {one: lease for one, lease in self._leases.items() if lease.ends_ms > now_ms}
        self._leases.pop(node, None)
        others = self.leased(now_ms)
        if demand <= 0:
            return RenewedLease(0.0, 0.0, others)
        demands = {one: lease.demand for one, lease in self._leases.items()}
        share = fair_shares(rate, {**demands, node: demand})[node]
        leased = max(0.0, min(share, rate - others))
        self._leases[node] = RateLease(leased, demand, ends_ms)
        return RenewedLease(leased, share, others)

    def __len__(self) -> int:
        return len(self._leases)


class LeasedBucket:
    """A token bucket with the rate of a lease that may end; times are in seconds.

    Without a lease it gives `advance` tokens once. The first lease fills the bucket, less what was
    given in advance; later ones change its rate and how much it holds: what the lease gives in a
    second, at least one token. When a lease ends, `advance` of its tokens stay at most.
    """

    __slots__ = ("_advance", "_at", "_burst", "_given", "_tokens", "_until", "rate")

    def __init__(self, advance: float) -> None:
        self.rate = 0.0
        """The leased rate, 0.0 without a lease."""
        self._advance = self._burst = self._tokens = max(1.0, advance)
        self._given: float | None = 0.0
        self._at = self._until = -math.inf

    def lease(self, rate: float, now: float, until: float) -> None:
        """Take over a lease of `rate` until a moment."""
        self._gather(now)
        if rate > TOLERANCE:
            self._burst = max(1.0, rate)
            if self._given is None:
                self._tokens = min(self._tokens, self._burst)
            else:
                self._tokens, self._given = self._burst - self._given, None
        elif self._given is None:
            self._tokens = min(self._tokens, 0.0)
        self.rate, self._at, self._until = rate, now, until

    def take(self, now: float) -> bool:
        """Take a token; return whether there was one."""
        self._gather(now)
        if self._tokens < 1.0 - TOLERANCE_TOKENS:
            return False
        self._tokens -= 1.0
        if self._given is not None:
            self._given += 1.0
        return True

    def _gather(self, now: float) -> None:
        """Add the tokens of the time since the last call, as far as the lease lasts."""
        if self.rate <= 0.0:
            return
        end = min(now, self._until)
        if end > self._at:
            self._tokens = min(self._burst, self._tokens + self.rate * (end - self._at))
            self._at = end
        if now >= self._until:
            self.rate = 0.0
            self._tokens = min(self._tokens, self._advance)
