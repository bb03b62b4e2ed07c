"""Start what each scenario needs, have its windows taken, and make results."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from bench import ground, results
from bench.clusters import Cluster, Shape, serving_cluster
from bench.echo import EchoProcess
from bench.explain import explain
from bench.goals import more_than_another, more_us_than_another, times_another
from bench.loop import Loop
from bench.process import ProcessGone
from bench.scenarios import Scenario, growth
from bench.servers import ServerFailed, ServerOptions, Target, scratch, serving
from bench.soak import cpu_trend
from bench.transports import MAIN_TRANSPORT, TRANSPORTS, Transport
from bench.turns import Progress, Turn, endure, settle, state, take_turns, warm_up
from bench.world import Options, ScenarioFailed, World


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
        for group, transport in grouped(planned(scenarios, transports)):
            name = results.name_of(transport, group[0].name)
            progress.say(f"{name}: starting")
            try:
                if group[0].grows:
                    found |= _run_grown(group, TRANSPORTS[transport], options, server, echo, progress)
                elif group[0].beside:
                    found |= _run_beside(group, TRANSPORTS[transport], options, server, echo, progress)
                else:
                    found[name] = _run_one(group[0], TRANSPORTS[transport], options, server, echo, progress)
            except (ScenarioFailed, ServerFailed, ProcessGone, OSError, ValueError) as why:
                for scenario in group:
                    found[results.name_of(transport, scenario.name)] = results.failed(scenario, str(why))
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


def grouped(plan: Sequence[tuple[type[Scenario], str]]) -> Iterator[tuple[list[type[Scenario]], str]]:
    """Put together the scenarios that are measured on the same gateways."""
    for (_, transport), members in groupby(plan, lambda one: (one[0].grows or one[0].beside or one[0].name, one[1])):
        yield [scenario for scenario, _ in members], transport


def _run_one(
    kind: type[Scenario],
    transport: Transport,
    options: Options,
    server: ServerOptions,
    echo: EchoProcess,
    progress: Progress,
) -> dict[str, Any]:
    name = results.name_of(transport.name, kind.name)
    with _target(kind, name, transport, server, options) as (target, cluster), Loop() as loop:
        nodes, dsn = (cluster.nodes, cluster.dsn) if cluster else ((), "")
        world = World(loop, transport, target.address, target.probe, options, nodes, target.data_dir, dsn)
        turn = Turn(name, kind(world, options))
        progress.say(f"{name}: preparing")
        turn.scenario.prepare()
        warm_up([turn], options)
        before = cluster.reading() if cluster else None
        if kind.endures:
            echo_windows = endure(turn, echo, options, progress)
        else:
            echo_windows = take_turns([turn], echo, options, progress)
        if cluster and before:
            seconds = sum(window.seconds for window in turn.windows)
            done = before.until(cluster.reading(), sum(window.count for window in turn.windows), seconds)
            turn.scenario.extra["cluster"] = done
        if options.explain and not kind.own_server:
            samplers = cluster.samplers if cluster else [target.sampler] if target.sampler else []
            gateways = cluster.gateways if cluster else target.probe
            progress.say(f"{name}: explaining")
            pids = gateways.pids if gateways else ()
            turn.scenario.extra["explained"] = explain(turn.scenario, samplers, pids, options.window_seconds)
        settle(turn)
        if kind.endures:
            turn.scenario.extra["soak"]["trends"] |= cpu_trend(turn.windows)
        progress.say(f"{name}: {state(turn.windows, echo_windows)}", last=True)
        return results.of_scenario(turn.scenario, turn.windows, echo_windows)


def _run_grown(
    kinds: Sequence[type[Scenario]],
    transport: Transport,
    options: Options,
    server: ServerOptions,
    echo: EchoProcess,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Measure scenarios of growth by one thing, on a gateway for each of its sizes."""
    if server.target:
        raise ServerFailed("gateways of several sizes are always started here: --target is for one gateway")
    grows = kinds[0].grows
    options = replace(options, pairs=growth.PAIRS)
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as gateways, Loop() as loop:
        grounds: dict[int, World] = {}
        samplers: dict[int, Path | None] = {}
        for size in options.growth[grows]:
            label = results.name_of(transport.name, f"growth-{grows}-{size}")
            progress.say(f"{label}: filling the gateway")
            target, _ = gateways.enter_context(_target(kinds[0], label, transport, server, options))
            samplers[size] = target.sampler
            grounds[size] = World(loop, transport, target.address, target.probe, options)
            ground.lay(grounds[size], grows, size, 2 * growth.PAIRS, growth.LONG_TOPICS)
        for kind in kinds:
            try:
                found |= _grown(kind, grounds, samplers, transport, options, echo, progress)
            except (ScenarioFailed, ProcessGone, OSError, ValueError) as why:
                found[results.name_of(transport.name, kind.name)] = results.failed(kind, str(why))
                progress.say(f"{kind.name}: FAILED: {why}", last=True)
    return found


def _grown(
    kind: type[Scenario],
    grounds: Mapping[int, World],
    samplers: Mapping[int, Path | None],
    transport: Transport,
    options: Options,
    echo: EchoProcess,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Measure one figure on gateways by their sizes; the results by name."""
    turns: dict[int, Turn] = {}
    figure = growth.figure_of(kind)
    found = {}
    try:
        for size, laid in grounds.items():
            name = results.name_of(transport.name, f"{kind.name}-{size}")
            place = laid.workspace
            world = World(laid.loop, transport, laid.address, laid.probe, options, workspace=place, cast=f"{figure}-")
            turns[size] = Turn(name, kind(world, options))
            progress.say(f"{name}: preparing")
            turns[size].scenario.prepare()
        warm_up(list(turns.values()), options)
        echo_windows = take_turns(list(turns.values()), echo, options, progress)
        for size, turn in turns.items():
            probe, sampler = turn.scenario.world.probe, samplers[size]
            if options.explain and probe and sampler:
                progress.say(f"{turn.name}: explaining")
                explained = explain(turn.scenario, [sampler], probe.pids, options.window_seconds)
                turn.scenario.extra["explained"] = explained
            settle(turn)
            progress.say(f"{turn.name}: {state(turn.windows, echo_windows)}", last=True)
            found[turn.name] = results.of_scenario(turn.scenario, turn.windows, echo_windows)
            found[turn.name]["parameters"][kind.grows] = size
            found[turn.name]["growth"] = {"figure": figure, "by": kind.grows, "size": size}
            turn.scenario.world.close_all(turn.scenario.world.participants)
    finally:
        for turn in turns.values():  # after a failure the next figure begins without them
            for participant in turn.scenario.world.participants:
                turn.scenario.world.loop.discard(participant)
    return found


def _run_beside(
    kinds: Sequence[type[Scenario]],
    transport: Transport,
    options: Options,
    server: ServerOptions,
    echo: EchoProcess,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Measure scenarios whose windows take turns, and compare them.

    Those with the same arguments and data of the gateway share one.
    """
    if server.target:
        raise ServerFailed("gateways that are compared are always started here: --target is for one gateway")
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as gateways, Loop() as loop:
        started: dict[_Gateway, tuple[Target, Cluster | None]] = {}
        turns: dict[str, Turn] = {}
        for kind in kinds:
            key = _gateway_of(kind, options)
            name = results.name_of(transport.name, kind.name)
            if key not in started:
                progress.say(f"{name}: starting")
                started[key] = gateways.enter_context(_target(kind, name, transport, server, options))
            target, cluster = started[key]
            nodes = cluster.nodes if cluster else ()
            cast = f"{kind.name}-"
            world = World(loop, transport, target.address, target.probe, options, nodes, target.data_dir, cast=cast)
            turns[kind.name] = Turn(name, kind(world, options))
            progress.say(f"{name}: preparing")
            turns[kind.name].scenario.prepare()
        warm_up(list(turns.values()), options)
        echo_windows = take_turns(list(turns.values()), echo, options, progress)
        for kind in kinds:
            turn = turns[kind.name]
            target, cluster = started[_gateway_of(kind, options)]
            samplers = cluster.samplers if cluster else [target.sampler] if target.sampler else []
            probe = cluster.gateways if cluster else target.probe
            if options.explain and probe and samplers:
                progress.say(f"{turn.name}: explaining")
                explained = explain(turn.scenario, samplers, probe.pids, options.window_seconds)
                turn.scenario.extra["explained"] = explained
            settle(turn)
            if other := turns.get(kind.against):
                windows, others, name = turn.windows, other.windows, kind.against
                if kind.most_more:
                    turn.scenario.goals += more_than_another(windows, others, echo_windows, name, kind.most_more)
                if kind.most_more_us:
                    turn.scenario.goals += more_us_than_another(windows, others, name, kind.most_more_us)
                turn.scenario.goals += times_another(windows, others, name, kind.most_times or None)
                turn.scenario.compare(other.scenario)
            progress.say(f"{turn.name}: {state(turn.windows, echo_windows)}", last=True)
            found[turn.name] = results.of_scenario(turn.scenario, turn.windows, echo_windows)
    return found


_Gateway: TypeAlias = tuple[Sequence[str], bool, Shape | None, str]


def _gateway_of(kind: type[Scenario], options: Options) -> _Gateway:
    """Return what tells the gateways of scenarios apart."""
    return tuple(kind.gateway_args(options)), kind.many_rules, kind.cluster, kind.name if kind.separate else ""


@contextmanager
def _target(
    kind: type[Scenario], name: str, transport: Transport, server: ServerOptions, options: Options
) -> Iterator[tuple[Target, Cluster | None]]:
    args = [*transport.gateway_args, *kind.gateway_args(options), *server.args]
    lay = partial(_lay_rules, count=options.rules) if kind.many_rules else None
    told = replace(server, args=args, lay=lay)
    if kind.own_server:
        with scratch(server.data_root) as place:
            yield Target("127.0.0.1:0", None, place), None
    elif kind.cluster:
        with serving_cluster(kind.cluster, told, name) as cluster:
            yield cluster.target, cluster
    else:
        with serving(told, name) as target:
            yield target, None


def _lay_rules(data_dir: Path, count: int) -> None:
    from bench.access_ground import lay_rules  # imports the gateway, which other scenarios need not

    lay_rules(data_dir, count)


def raise_file_limit() -> None:
    """Raise the limit of open files, also for servers started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
