"""Counters of the gateway's framed (binary protocol) connections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FramedStatistics:
    """Counters and open connections of the framed transport; `rejects` are by reason."""

    connections_open: int
    connections_total: int
    bytes_received: int
    bytes_sent: int
    rejects: dict[str, int]


@dataclass(slots=True)
class FramedCounters:
    """The mutable counters behind FramedStatistics, to which connections add."""

    connections_open: int = 0
    connections_total: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def reject(self, reason: str) -> None:
        """Count a connection that was refused or ended because of `reason`."""
        self.rejects[reason] += 1

    def snapshot(self) -> FramedStatistics:
        return FramedStatistics(
            self.connections_open, self.connections_total, self.bytes_received, self.bytes_sent, dict(self.rejects)
        )
