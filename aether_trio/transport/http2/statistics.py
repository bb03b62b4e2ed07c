"""Counters of HTTP/2 connections and the frozen records that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Http2Statistics:
    """HTTP/2 totals since the start, `rejects` by reason; `*_open` are numbers of now."""

    connections_open: int
    connections_total: int
    streams_open: int
    streams_total: int
    bytes_received: int
    bytes_sent: int
    rejects: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Http2ConnectionStatistics:
    """Figures of one HTTP/2 connection at one moment."""

    streams_open: int
    send_window_bytes: int
    streams_blocked: int
    backlog_bytes: int
    data_frames_sent: int


@dataclass(slots=True)
class Http2Counters:
    """Mutable counters that all HTTP/2 connections of a server or channel share."""

    connections_open: int = 0
    connections_total: int = 0
    streams_open: int = 0
    streams_total: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def reject(self, reason: str) -> None:
        self.rejects[reason] += 1

    def snapshot(self) -> Http2Statistics:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return Http2Statistics(**values | {"rejects": dict(self.rejects)})
