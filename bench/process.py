"""CPU time and memory of other processes, in the kernel's own best resolution.

CPU comes from the process's POSIX CPU clock (nanoseconds, all threads, clock_getcpuclockid(3)), not from the 10 ms ticks of
/proc/PID/stat; memory is the resident set of /proc/PID/smaps_rollup, which is exact where statm may lag by some pages per
CPU. Several processes (a gateway and the store beside it) are added up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

CPUCLOCK_SCHED = 2


class ProcessGone(Exception):
    """A watched process has ended."""


def cpu_clock_id(pid: int) -> int:
    """The clock id that clock_getcpuclockid(3) gives for a process; Python only offers the one for threads."""
    return (~pid << 3) | CPUCLOCK_SCHED


class ProcessProbe:
    """Reads `pids` together. Every reading raises ProcessGone when one of them is not there any more."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = tuple(pids)

    def cpu_ns(self) -> int:
        """CPU nanoseconds used so far."""
        return sum(map(_cpu_ns, self.pids))

    def main_thread_ns(self) -> int:
        """CPU nanoseconds of the main threads alone; 0 where the kernel keeps no scheduler statistics."""
        return sum(map(_main_thread_ns, self.pids))

    def rss_kib(self) -> int:
        """Resident KiB."""
        return sum(map(_rss_kib, self.pids))


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns(cpu_clock_id(pid))
    except OSError:
        pass  # an older kernel or another user's process: the ticks are open to everyone
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone
    return (int(ticks[11]) + int(ticks[12])) * 10**9 // os.sysconf("SC_CLK_TCK")


def _main_thread_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def _rss_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1])
    except PermissionError:
        pass
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
