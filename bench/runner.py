"""Run a scenario's windows in turns with the echo's, and make results."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter, process_time_ns
from typing import Any

from bench import results
from bench.clusters import Cluster, serving_cluster
from bench.echo import EchoProcess
from bench.loop import Loop
from bench.process import MachineProbe, ProcessGone, ProcessProbe
from bench.scenarios import Scenario
from bench.servers import ServerFailed, ServerOptions, Target, serving
from bench.transports import MAIN_TRANSPORT, TRANSPORTS, Transport
from bench.units import Window, figures
from bench.world import Options, ScenarioFailed, World

WARM_UP_SECONDS = 0.3
SETTLE_SECONDS = 0.03
"""What a server does behind its last answer (offsets, statistics) belongs to the window that caused
it.
"""


class Progress:
    """Shows each state in one line of a terminal, elsewhere the last one."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str, last: bool = False) -> None:
        if self._terminal:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(text, file=sys.stderr, flush=True)


def run(
    scenarios: Sequence[type[Scenario]],
    transports: Sequence[str],
    options: Options,
    server: ServerOptions,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Name → result for each scenario on each transport.

    One that fails does not stop the others.

    The transports of a scenario follow each other, so that what is compared was measured close
    together.
    """
    raise_file_limit()
    found: dict[str, dict[str, Any]] = {}
    with EchoProcess() as echo:
        for scenario, transport in planned(scenarios, transports):
            name = results.name_of(transport, scenario.name)
            progress.say(f"{name}: starting")
            try:
                found[name] = _run_one(scenario, name, TRANSPORTS[transport], options, server, echo, progress)
            except (ScenarioFailed, ServerFailed, ProcessGone, OSError, ValueError) as why:
                found[name] = results.failed(scenario, str(why))
                progress.say(f"{name}: FAILED: {why}", last=True)
    return found


def planned(scenarios: Sequence[type[Scenario]], transports: Sequence[str]) -> list[tuple[type[Scenario], str]]:
    """Every scenario on every transport.

    One that needs no gateway has no transport, and counts for the main one.

    What a cluster costs is behind the transports, and what a task costs: these are measured on the
    first of them alone.
    """

    def transports_of(scenario: type[Scenario]) -> Sequence[str]:
        if scenario.own_server:
            return [MAIN_TRANSPORT]
        return transports[:1] if scenario.cluster or scenario.one_transport else transports

    return [(scenario, transport) for scenario in scenarios for transport in transports_of(scenario)]


def _run_one(
    kind: type[Scenario],
    name: str,
    transport: Transport,
    options: Options,
    server: ServerOptions,
    echo: EchoProcess,
    progress: Progress,
) -> dict[str, Any]:
    with _target(kind, name, transport, server) as (target, cluster), Loop() as loop:
        nodes, dsn = (cluster.nodes, cluster.dsn) if cluster else ((), "")
        world = World(loop, transport, target.address, target.probe, options, nodes, target.data_dir, dsn)
        scenario = kind(world, options)
        progress.say(f"{name}: preparing")
        scenario.prepare()
        scenario.window(min(WARM_UP_SECONDS, options.window_seconds))
        scenario.reset()
        machine = MachineProbe()
        scenario.latencies.drop_window()
        shares = _Shares(target.probe)
        before = cluster.reading() if cluster else None
        windows: list[Window] = []
        echo_windows: list[Window] = []
        with _quiet_collector():
            for number in range(options.windows):
                echo_windows.append(echo.window(options.window_seconds))
                windows.append(_take(scenario, options.window_seconds, machine))
                scenario.reset()
                scenario.latencies.close_window()
                progress.say(f"{name}: {_state(windows, echo_windows)}  {number + 1}/{options.windows}")
            echo_windows.append(echo.window(options.window_seconds))
        scenario.extra |= shares.since()
        if cluster and before:
            seconds = sum(window.seconds for window in windows)
            done = before.until(cluster.reading(), sum(window.count for window in windows), seconds)
            scenario.extra["cluster"] = done
        unsettled = world.unsettled()
        if acks := sum(participant.codec.ack_frames for participant in world.participants):
            scenario.extra["ack_frames"] = acks
        scenario.finish()
        if unsettled:
            scenario.verdict.failures.append(f"{unsettled} never acknowledged")
        progress.say(f"{name}: {_state(windows, echo_windows)}", last=True)
        return results.of_scenario(scenario, windows, echo_windows)


class _Shares:
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


@contextmanager
def _target(
    kind: type[Scenario], name: str, transport: Transport, server: ServerOptions
) -> Iterator[tuple[Target, Cluster | None]]:
    told = replace(server, args=[*transport.gateway_args, *server.args])
    if kind.own_server:
        yield Target("127.0.0.1:0", None), None
    elif kind.cluster:
        with serving_cluster(kind.cluster, told, name) as cluster:
            yield cluster.target, cluster
    else:
        with serving(told, name) as target:
            yield target, None


def _take(scenario: Scenario, seconds: float, machine: MachineProbe) -> Window:
    probe = scenario.world.probe
    kernel, whole, load = machine.kernel_ns(), machine.machine_ns(), process_time_ns()
    server = probe.cpu_ns() if probe else 0
    start, load_start = perf_counter(), process_time_ns()
    count = scenario.window(seconds)
    elapsed, used = perf_counter() - start, process_time_ns() - load_start
    scenario.world.pause(SETTLE_SECONDS)
    served = probe.cpu_ns() - server if probe else None
    others = _grown(whole, machine.machine_ns(), process_time_ns() - load)
    return Window(elapsed, count, served, used, others, _grown(kernel, machine.kernel_ns()))


def _grown(before: int | None, after: int | None, without: int = 0) -> int | None:
    return max(0, after - before - without) if before is not None and after is not None else None


def _state(windows: Sequence[Window], echo_windows: Sequence[Window]) -> str:
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


def raise_file_limit() -> None:
    """Raise the limit of open files, also for servers started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
