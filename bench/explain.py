"""Explain a cost: windows with the gateway's sampler on give its parts' shares.

The sampler (`bench/sampled.py`) is in the gateway's process and counts lines of the main thread by
the CPU that it uses. The CPU of all threads is exact, from the kernel. Where strace is installed,
it counts the system calls of one more window.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from bench.parts import part_of, thread_of
from bench.scenarios import Scenario

SECONDS: Final = 3.0
SAMPLES: Final = 200
"""Fewer say little; where the gateway gets little CPU, more windows are run."""
PATIENCE_SECONDS: Final = 60.0
ATTACH_SECONDS: Final = 0.3
LINES: Final = 12
"""How many of the dearest lines are kept."""
_CALLS: Final = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
"""A line of strace's summary: share, seconds, microseconds a call, calls, errors or none, name."""


class Unexplained(Exception):
    """No profile could be taken; the text says why."""


def shares(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of CPU by part as JSON, the largest first; raises Unexplained."""
    parts: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    samples = 0
    for report in reports:
        stacks: Mapping[str, int] = report["stacks"]
        count = sum(stacks.values())
        samples += count
        for name, ns in report["threads_ns"].items():
            if name != report["main"]:
                parts[f"thread {thread_of(name)}"] += ns
                continue
            for stack, times in stacks.items():
                frames = stack.split(";")
                parts[part_of(frames)] += ns * times // count
                lines[frames[-1]] += ns * times // count
    total = parts.total()
    if not samples or not total:
        raise Unexplained("no sample was taken")
    return {
        "parts": {part: round(ns / total, 3) for part, ns in parts.most_common()},
        "lines": {line: round(ns / total, 3) for line, ns in lines.most_common(LINES)},
        "samples": samples,
    }


def explain(scenario: Scenario, samplers: Sequence[Path], pids: Sequence[int], window_seconds: float) -> dict[str, Any]:
    """Run windows of a scenario with samplers on; the shares, or why there are none."""
    try:
        found = _explain(scenario, samplers, window_seconds)
        return found | {"calls": system_calls(scenario, pids, window_seconds)}
    except (Unexplained, OSError) as why:
        return {"failed": str(why)}


def _explain(scenario: Scenario, samplers: Sequence[Path], window_seconds: float) -> dict[str, Any]:
    if not samplers:
        raise Unexplained("only a gateway that is started here has a sampler")
    reports: list[Mapping[str, Any]] = []
    until = perf_counter() + PATIENCE_SECONDS
    while True:
        reports += _sample(scenario, samplers, window_seconds)
        samples = sum(sum(report["stacks"].values()) for report in reports)
        if samples >= SAMPLES or perf_counter() > until:
            return shares(reports)


def _sample(scenario: Scenario, samplers: Sequence[Path], window_seconds: float) -> list[Mapping[str, Any]]:
    """Run windows for SECONDS with samplers on; return what each of them has counted."""
    # Without waiting: a sampler that has ended must not stop the bench.
    controls = [os.open(sampler, os.O_WRONLY | os.O_NONBLOCK) for sampler in samplers]
    try:
        for control in controls:
            os.write(control, b"start\n")
        until = perf_counter() + SECONDS
        while perf_counter() < until:
            scenario.window(window_seconds)
            scenario.reset()
        for control in controls:
            os.write(control, b"stop\n")
    finally:
        for control in controls:
            os.close(control)
    scenario.latencies.drop_window()
    results = [sampler.with_suffix(".json") for sampler in samplers]
    until = perf_counter() + PATIENCE_SECONDS
    while not all(result.exists() for result in results):
        if perf_counter() > until:
            raise Unexplained("the sampler does not answer")
        scenario.world.pause(0.02)
    reports = [json.loads(result.read_text()) for result in results]
    for result in results:
        result.unlink()
    return reports


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
