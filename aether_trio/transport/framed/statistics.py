"""What the framed transport counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FramedStatistics:
    """Counters since start, and what is open now.

    `rejects` are connections by why they were ended or never began.
    """

    connections_open: int
    connections_total: int
    bytes_received: int
    bytes_sent: int
    rejects: dict[str, int]


@dataclass(slots=True)
class FramedCounters:
    """The same, growing."""

    connections_open: int = 0
    connections_total: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def reject(self, reason: str) -> None:
        """A connection breaks a rule."""
        self.rejects[reason] += 1

    def snapshot(self) -> FramedStatistics:
        """A frozen record of now."""
        return FramedStatistics(
            self.connections_open,
            self.connections_total,
            self.bytes_received,
            self.bytes_sent,
            dict(self.rejects),
        )
