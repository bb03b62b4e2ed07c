"""CPU time and memory of other processes, in the kernel's own best resolution.

CPU comes from the process's POSIX CPU clock (nanoseconds, all threads, clock_getcpuclockid(3)), not
from the 10 ms ticks of /proc/PID/stat; memory is the resident set of /proc/PID/smaps_rollup, which
is exact where statm may lag by some pages per CPU. Several processes (a gateway and the store
beside it) are added up. A server that has a process for each connection, as PostgreSQL, is counted
with all of them, those included that have ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CPUCLOCK_SCHED = 2
KTHREADD = 2
"""The parent of all threads of the kernel."""


class ProcessGone(Exception):
    """A watched process has ended."""


def cpu_clock_id(pid: int) -> int:
    """A process's clock id, as of clock_getcpuclockid(3), which Python lacks."""
    return (~pid << 3) | CPUCLOCK_SCHED


class ProcessProbe:
    """Reads CPU and memory of `pids` together; raises ProcessGone."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = tuple(pids)

    def cpu_ns(self) -> int:
        return sum(map(_cpu_ns, self.pids))

    def main_thread_ns(self) -> int:
        """CPU nanoseconds of the main threads alone; 0 without scheduler statistics."""
        return sum(map(_main_thread_ns, self.pids))

    def rss_kib(self) -> int:
        """Resident KiB."""
        return sum(map(_rss_kib, self.pids))

    def waited_ns(self) -> int:
        """Nanoseconds that the main threads were ready and had no CPU; 0 if unknown."""
        return sum(_schedstat(pid, 1) for pid in self.pids)

    def fds(self) -> int:
        """Open file descriptors; 0 when they are hidden."""
        return sum(map(_fds, self.pids))


class FamilyProbe(ProcessProbe):
    """One process and its children, which come and go.

    Its own children's are the only ones that are looked for.

    What an ended child has used is known to the kernel in ticks of 10 ms, so a reading may be off
    by that for each child that ends.
    """

    def __init__(self, pid: int) -> None:
        super().__init__([pid])

    def cpu_ns(self) -> int:
        (pid,) = self.pids
        total = _cpu_ns(pid) + _ended_children_ns(pid)
        for child in _children(pid):
            with suppress(ProcessGone):  # it has ended just now, and is in the next reading
                total += _cpu_ns(child)
        return total

    def rss_kib(self) -> int:
        """Resident KiB of a process and its children; shared pages count for each."""
        return sum(map(_rss_kib, (*self.pids, *_children(*self.pids))))


class SeveralProbes(ProcessProbe):
    def __init__(self, probes: Sequence[ProcessProbe]) -> None:
        super().__init__([pid for probe in probes for pid in probe.pids])
        self._probes = tuple(probes)

    def cpu_ns(self) -> int:
        return sum(probe.cpu_ns() for probe in self._probes)

    def main_thread_ns(self) -> int:
        """0: the share of main threads means nothing for different programs."""
        return 0

    def rss_kib(self) -> int:
        return sum(probe.rss_kib() for probe in self._probes)


class MachineProbe:
    """Reads the CPU of all programs together, and of the kernel's own threads.

    What the kernel does for a process in a thread that is not the process's (writing a file back,
    say) is in no process's clock. Programs that have nothing to do with the run are in the
    machine's CPU as well.
    """

    def __init__(self) -> None:
        self._kernel = [path for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == KTHREADD]

    def machine_ns(self) -> int | None:
        """CPU time of all programs and the kernel, by ticks; None without /proc/stat."""
        try:
            user, nice, system, _, _, irq, soft, *_ = map(
                int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
            )
        except (OSError, ValueError):
            return None
        return (user + nice + system + irq + soft) * 10**9 // os.sysconf("SC_CLK_TCK")

    def kernel_ns(self) -> int | None:
        """CPU nanoseconds of the threads of the kernel; None if they are hidden."""
        total = 0
        for stat in self._kernel:
            with suppress(OSError, ValueError, IndexError):
                total += int(stat.with_name("schedstat").read_text().split()[0])
        return total if self._kernel else None


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone


def _ended_children_ns(pid: int) -> int:
    ticks = _stat(pid)
    return (int(ticks[13]) + int(ticks[14])) * 10**9 // os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, from the third on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns(cpu_clock_id(pid))
    except OSError:
        pass  # an older kernel or another user's process: the ticks are open to everyone
    ticks = _stat(pid)
    return (int(ticks[11]) + int(ticks[12])) * 10**9 // os.sysconf("SC_CLK_TCK")


def _main_thread_ns(pid: int) -> int:
    return _schedstat(pid, 0)


def _schedstat(pid: int, field: int) -> int:
    """The time on a CPU (0) or waiting for one (1) of a process's main thread."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[field])
    except OSError:
        return 0


def _fds(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return 0
    except OSError as gone:
        raise ProcessGone(f"process {pid} has ended") from gone


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
