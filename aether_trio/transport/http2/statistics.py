"""Counters of HTTP/2 connections and the frozen records that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


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


class Http2Counters:
    """Mutable counters that all HTTP/2 connections of a server or channel share."""

    __slots__ = (
        "bytes_received", "bytes_sent", "connections_open", "connections_total", "rejects", "streams_open",
        "streams_total",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_total = 0
        self.streams_open = 0
        self.streams_total = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.rejects: Counter[str] = Counter()

    def reject(self, reason: str) -> None:
        self.rejects[reason] += 1

    def snapshot(self) -> Http2Statistics:
        return Http2Statistics(
            connections_open=self.connections_open,
            connections_total=self.connections_total,
            streams_open=self.streams_open,
            streams_total=self.streams_total,
            bytes_received=self.bytes_received,
            bytes_sent=self.bytes_sent,
            rejects=dict(self.rejects),
        )
