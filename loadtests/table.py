"""Results as rows of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

LATENCY_HEAD = ("ms", "count", "p50", "p90", "p99", "p99.9", "max")
_COUNTS = (
    ("messages", "sent", "messages sent"),
    ("messages", "received", "messages received, each once"),
    ("messages", "lost", "lost"),
    ("messages", "in_doubt", "in doubt: under way at a cut, on a transport without acknowledgements"),
    ("messages", "repeated", "delivered twice to a user"),
    ("messages", "out_of_order", "out of order"),
    ("messages", "redelivered", "delivered again by the gateway, dropped by the client's offsets"),
    ("messages", "refused", "refused"),
    ("messages", "unacknowledged", "never acknowledged"),
    ("connections", "users", "users"),
    ("connections", "most", "connections at the same time, at most"),
    ("connections", "connects", "connections acknowledged"),
    ("connections", "resumed", "of these with their session resumed"),
    ("connections", "broken", "ended though they should have stayed"),
    ("connections", "gave_up", "users refused for good"),
)
_ALWAYS = {"sent", "received", "lost", "repeated", "users", "most", "connects"}
_GATEWAY = (
    ("rss_first_mib", "RSS before the first connection", "MiB"),
    ("rss_mib", "RSS with all connections", "MiB"),
    ("rss_most_mib", "RSS at most", "MiB"),
    ("kib_per_connection", "growth for each connection", "KiB"),
    ("cores", "CPU while connections are held", "cores"),
    ("cores_most", "CPU at most, in one second", "cores"),
    ("load_cores", "CPU of the load generator meanwhile", "cores"),
)


@dataclass(frozen=True, slots=True)
class Cells:
    """All tables of a run; every cell is text."""

    title: str
    tiles: list[tuple[str, str]]
    latency_head: tuple[str, ...]
    latency: list[tuple[str, ...]]
    counts: list[tuple[str, str]]
    errors: list[tuple[str, str, str]]
    gateway: list[tuple[str, str]]


def cells(results: dict[str, Any]) -> Cells:
    """Render the numbers."""
    users = results["connections"]["users"]
    gateway = results["gateway"]
    latency = [
        (name, f"{row['count']:,}", *(f"{row[key]:,.2f}" for key in LATENCY_HEAD[2:]))
        for name, row in results["latency_ms"].items()
    ]
    message = results["latency_ms"].get("message", {})
    tiles = [
        ("connections at most", f"{results['connections']['most']:,}"),
        ("connections / s", f"{results['connect_rate']:,.0f}"),
        ("messages received", f"{results['messages']['received']:,}"),
        ("lost", f"{results['messages']['lost']:,}"),
        *((("message p50", _time(message["p50"])), ("message p99", _time(message["p99"]))) if message else ()),
        *(
            (("gateway RSS", f"{gateway['rss_mib']:,.0f} MiB"), ("gateway CPU", f"{gateway['cores']:.2f} cores"))
            if gateway
            else ()
        ),
    ]
    if "back_s" in results:
        tiles.append(("all back after", f"{results['back_s']:.2f} s"))
    return Cells(
        f"{results['transport']}, {results['shape']}: {users:,} users",
        tiles,
        LATENCY_HEAD,
        latency,
        [
            (text, f"{results[part][key]:,}")
            for part, key, text in _COUNTS
            if key in _ALWAYS or results[part][key]
        ],
        [(code, f"{times:,}", results["error_texts"].get(code, "")) for code, times in results["errors"].items()],
        [(text, f"{gateway[key]:,} {unit}") for key, text, unit in _GATEWAY if key in gateway],
    )  # fmt: skip


def _time(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def text(results: dict[str, Any]) -> str:
    """For a terminal."""
    parts = cells(results)
    lines = [parts.title, ""]
    lines += _aligned([parts.latency_head, *parts.latency]) if parts.latency else ["no latencies"]
    lines += ["", *_aligned(parts.counts)]
    lines += ["", f"connect rate {results['connect_rate']:,.0f}/s; all connected after {results['connect_s']:.1f} s"]
    if "back_s" in results:
        lines.append(
            f"cut {results['cut']:,} connections; {results['back']:,} came back "
            f"({results['resumed_after_cut']:,} resumed), the last after {results['back_s']:.2f} s"
        )
    if parts.gateway:
        lines += ["", *_aligned(parts.gateway)]
    if parts.errors:
        lines += ["", "errors by code", *_aligned(parts.errors, (0, 2))]
    lines += ["", *(results["failures"] or ["nothing lost, all well"])]
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]], texts: Collection[int] = (0,)) -> list[str]:
    """Columns of `texts` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [
            cell.ljust(width) if n in texts else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(padded)}".rstrip())
    return lines
