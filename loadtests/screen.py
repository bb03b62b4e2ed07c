"""Show progress: one line rewritten on a terminal, else a line every ten seconds."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from loadtests.timeline import Row, Timeline

QUIET_ROWS = 10


class Screen:
    """Give it to the coordinator as `show`."""

    def __init__(self, stream: TextIO = sys.stderr, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream, quiet
        self._live = stream.isatty()
        self._rows = 0
        self._marks = 0

    def __call__(self, row: Row, timeline: Timeline) -> None:
        """Show a second."""
        if self._quiet:
            return
        for mark in timeline.marks[self._marks :]:
            self._line(f"{mark.at_s:7.1f} s  {mark.text}", last=True)
        self._marks = len(timeline.marks)
        self._rows += 1
        if self._live or self._rows % QUIET_ROWS == 1:
            self._line(line(row, timeline), last=not self._live)

    def _line(self, text: str, *, last: bool) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[2K{text[:width]}" + ("\n" if last else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line as it is."""
        if self._live and not self._quiet:
            self._stream.write("\n")


def line(row: Row, timeline: Timeline) -> str:
    """What one second looks like."""
    latency = f"p99 {row.p99_ms:.1f} ms" if row.p99_ms is not None else "p99 -"
    parts = [
        f"{row.at_s:7.1f} s  {row.phase:7}",
        f"{row.connected:>6,} connected (+{row.connects:,.0f}/s)",
        f"{row.received:>6,.0f} msg/s  {latency}",
        f"{timeline.errors.total():,} errors",
    ]
    if row.rss_mib is not None:
        parts.append(f"gateway {row.rss_mib:,.0f} MiB {row.gateway_cores or 0:.2f} cores")
    parts.append(f"load {row.load_cores:.2f} cores")
    return "   ".join(parts)
