"""Take windows of scenarios and the echo in turns, on the same machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time_ns

from bench.echo import EchoProcess
from bench.process import MachineProbe, ProcessProbe
from bench.scenarios import Scenario
from bench.units import Window, figures
from bench.world import Options

WARM_UP_SECONDS = 0.3
SETTLE_SECONDS = 0.03
"""What a server does behind its last answer (offsets, statistics) belongs to the window that caused
it.
"""

ENDURING_WINDOWS = 10
"""At least, for a trend; an hour has one for each minute."""


class Progress:
    """Shows each state in one line of a terminal, elsewhere the last one."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str, last: bool = False) -> None:
        if self._terminal:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Turn:
    """A prepared scenario, and the windows that it has had."""

    name: str
    scenario: Scenario
    windows: list[Window] = field(default_factory=list)


def warm_up(turns: Sequence[Turn], options: Options) -> None:
    """Give each scenario a window that does not count."""
    for turn in turns:
        scenario = turn.scenario
        scenario.window(min(WARM_UP_SECONDS, options.window_seconds))
        scenario.reset()
        scenario.latencies.drop_window()


def take_turns(turns: Sequence[Turn], echo: EchoProcess, options: Options, progress: Progress) -> list[Window]:
    """Take all windows: the echo's, then one of each turn, and so on; give the echo's."""
    machine = MachineProbe()
    shares = [Shares(turn.scenario.world.probe) for turn in turns]
    echo_windows: list[Window] = []
    with _quiet_collector():
        for number in range(options.windows):
            echo_windows.append(echo.window(options.window_seconds))
            for turn in turns:
                turn.windows.append(_take(turn.scenario, options.window_seconds, machine))
                turn.scenario.reset()
                turn.scenario.latencies.close_window()
                progress.say(f"{turn.name}: {state(turn.windows, echo_windows)}  {number + 1}/{options.windows}")
        echo_windows.append(echo.window(options.window_seconds))
    for turn, share in zip(turns, shares, strict=True):
        turn.scenario.extra |= share.since()
    return echo_windows


def endure(turn: Turn, echo: EchoProcess, options: Options, progress: Progress) -> list[Window]:
    """Take windows for `options.minutes` without rests; give the echo's around them."""
    scenario = turn.scenario
    seconds = options.minutes * 60
    number = max(ENDURING_WINDOWS, round(seconds / 60))
    machine = MachineProbe()
    some = max(1, options.windows // 2)
    shares = Shares(scenario.world.probe)
    with _quiet_collector():
        echo_windows = [echo.window(options.window_seconds) for _ in range(some)]
        scenario.begin()
        for done in range(1, number + 1):
            turn.windows.append(_take(scenario, seconds / number, machine, 0.0))
            progress.say(f"{turn.name}: {state(turn.windows, echo_windows)}  {done}/{number}")
        scenario.reset()
        echo_windows += [echo.window(options.window_seconds) for _ in range(some)]
    scenario.extra |= shares.since()
    return echo_windows


def settle(turn: Turn) -> None:
    """Wait for what is not acknowledged, and have the scenario give its verdict."""
    scenario, world = turn.scenario, turn.scenario.world
    unsettled = world.unsettled()
    if acks := sum(participant.codec.ack_frames for participant in world.participants):
        scenario.extra["ack_frames"] = acks
    scenario.finish()
    if unsettled:
        scenario.verdict.failures.append(f"{unsettled} never acknowledged")


class Shares:
    """The shares of CPU of a server's event loop and of its storage threads."""

    def __init__(self, probe: ProcessProbe | None) -> None:
        self._probe = probe
        self._start = (probe.cpu_ns(), probe.main_thread_ns()) if probe else (0, 0)

    def since(self) -> dict[str, float]:
        """The main thread's share of CPU since a reading, or {} when unknown."""
        if self._probe is None:
            return {}
        everything, main = self._probe.cpu_ns() - self._start[0], self._probe.main_thread_ns() - self._start[1]
        return {"main_thread_share": round(main / everything, 3)} if main and everything else {}


def _take(scenario: Scenario, seconds: float, machine: MachineProbe, settle: float = SETTLE_SECONDS) -> Window:
    probe = scenario.world.probe
    kernel, whole, load = machine.kernel_ns(), machine.machine_ns(), process_time_ns()
    server = probe.cpu_ns() if probe else 0
    start, load_start = perf_counter(), process_time_ns()
    count = scenario.window(seconds)
    elapsed, used = perf_counter() - start, process_time_ns() - load_start
    if settle:
        scenario.world.pause(settle)
    served = probe.cpu_ns() - server if probe else None
    others = _grown(whole, machine.machine_ns(), process_time_ns() - load)
    return Window(elapsed, count, served, used, others, _grown(kernel, machine.kernel_ns()))


def _grown(before: int | None, after: int | None, without: int = 0) -> int | None:
    return after - before - without if before is not None and after is not None else None


def state(windows: Sequence[Window], echo_windows: Sequence[Window]) -> str:
    so_far = figures(windows, echo_windows)
    cost = f"{so_far.echoes.best:.2f} echoes (mean {so_far.echoes.mean:.2f})" if so_far.echoes else "cost unknown"
    return f"{so_far.rate.best:,.0f}/s  {cost}"


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Switch off Python's collector, which would only add noise."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
