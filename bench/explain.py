"""Explain a cost: more windows under py-spy give the shares of the server's parts.

py-spy reads the server's memory from outside without stopping it, and needs neither root nor a
change of the server. Each sample counts the threads that run. The share of the main thread is
exact, from the kernel's clocks, and so is that of all others together; within both, samples decide.

Where strace is installed, it counts the system calls of one more window.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.parts import MAIN_THREAD, part_of, thread_of
from bench.process import ProcessProbe
from bench.scenarios import Scenario

SAMPLES_PER_S: Final = 200
SECONDS: Final = 3
PATIENCE_SECONDS: Final = 60.0
ATTACH_SECONDS: Final = 0.3
LINES: Final = 12
"""How many of the dearest lines are kept."""


_CALLS: Final = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
"""A line of strace's summary: share, seconds, microseconds a call, calls, errors or none, name."""


class Unexplained(Exception):
    """No profile could be taken; the text says why."""


@dataclass(slots=True)
class Profile:
    """Samples by part and by line, of the main threads and of all others."""

    main: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    def add(self, folded: Iterable[str]) -> None:
        """Add lines of py-spy's raw format: a thread and its frames, and a count."""
        for line in folded:
            stack, _, count = line.strip().rpartition(" ")
            if not stack or not count.isdigit():
                continue
            thread, *frames = stack.split(";")
            name = thread_of(thread)
            if name == MAIN_THREAD:
                self.main[part_of(frames)] += int(count)
            else:
                self.others[f"thread {name}"] += int(count)
            if frames:
                self.lines[frames[-1]] += int(count)

    def shares(self, main_share: float) -> dict[str, Any]:
        """Shares of CPU as JSON, the largest first; the main thread has `main_share`."""
        main, others = self.main.total(), self.others.total()
        if not main + others:
            raise Unexplained("py-spy took no sample")
        if not main_share:
            main_share = main / (main + others)
        found = {part: main_share * count / main for part, count in self.main.items()}
        found |= {part: (1 - main_share) * count / others for part, count in self.others.items()}
        if main and not others and main_share < 1:
            found["other threads"] = 1 - main_share
        return {
            "parts": {part: round(share, 3) for part, share in sorted(found.items(), key=lambda one: -one[1])},
            "lines": {line: round(count / (main + others), 3) for line, count in self.lines.most_common(LINES)},
            "samples": main + others,
        }


def explain(scenario: Scenario, pids: Sequence[int], window_seconds: float) -> dict[str, Any]:
    """Run windows of a scenario under py-spy; the shares, or why there are none."""
    try:
        found = _explain(scenario, pids, window_seconds)
        return found | {"calls": system_calls(scenario, pids, window_seconds)}
    except Unexplained as why:
        return {"failed": str(why)}


def _explain(scenario: Scenario, pids: Sequence[int], window_seconds: float) -> dict[str, Any]:
    spy = _py_spy()
    probe = ProcessProbe(pids)
    with tempfile.TemporaryDirectory(prefix="aether-bench-spy-") as place:
        outs = [Path(place) / f"{pid}.txt" for pid in pids]
        cpu, main = probe.cpu_ns(), probe.main_thread_ns()
        spies = [subprocess.Popen(_command(spy, pid, out), **_QUIET) for pid, out in zip(pids, outs, strict=True)]
        try:
            while any(one.poll() is None for one in spies):
                scenario.window(window_seconds)
                scenario.reset()
            said = [one.communicate(timeout=PATIENCE_SECONDS)[0] for one in spies]
        finally:
            for one in spies:
                if one.poll() is None:
                    one.kill()
                    one.wait()
        cpu, main = probe.cpu_ns() - cpu, probe.main_thread_ns() - main
        scenario.latencies.drop_window()
        found = Profile()
        for out, text in zip(outs, said, strict=True):
            if not out.exists():
                raise Unexplained("py-spy: " + " ".join(text.split())[-300:])
            found.add(out.read_text(errors="replace").splitlines())
    return found.shares(min(1.0, main / cpu) if cpu else 0.0)


def system_calls(scenario: Scenario, pids: Sequence[int], window_seconds: float) -> dict[str, float]:
    """System calls for each unit by name, the most frequent first; {} without strace."""
    strace = shutil.which("strace")
    if not strace:
        return {}
    with tempfile.NamedTemporaryFile(prefix="aether-bench-strace-", mode="r") as out:
        which = [part for pid in pids for part in ("-p", str(pid))]
        tracer = subprocess.Popen(
            [strace, "-f", "-c", "-o", out.name, *which], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        attached = "attached" in tracer.stderr.readline()
        scenario.world.pause(ATTACH_SECONDS)  # to the other threads
        units = scenario.window(window_seconds) if attached else 0
        scenario.reset()
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=PATIENCE_SECONDS)
        scenario.latencies.drop_window()
        return calls_of(out.read(), units)


def calls_of(summary: str, units: int) -> dict[str, float]:
    """Calls for each unit, out of strace's summary."""
    calls = Counter({name: int(count) for count, name in _CALLS.findall(summary) if name != "total"})
    return {name: round(count / units, 3) for name, count in calls.most_common()} if units else {}


_QUIET: Final[dict[str, Any]] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}


def _command(spy: str, pid: int, out: Path) -> list[str]:
    rate = ["--rate", str(SAMPLES_PER_S), "--duration", str(SECONDS)]
    return [
        spy,
        "record",
        "--pid",
        str(pid),
        "--format",
        "raw",
        "--threads",
        "--nonblocking",
        *rate,
        "--output",
        str(out),
    ]


def _py_spy() -> str:
    """The program, from this environment or the path; raises Unexplained."""
    beside = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
    if found := beside or shutil.which("py-spy"):
        return found
    raise Unexplained("py-spy is not installed (pip install py-spy)")
