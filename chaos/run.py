"""Run chaos once, from an empty database to a verdict."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from aether_trio.client import AetherError, AgentClient
from aether_trio.devtools.node_process import NodeFailed
from aether_trio.devtools.process_cluster import ProcessCluster, open_process_cluster
from chaos import ledger
from chaos.checks import Verdict, check_all
from chaos.faults import Weather
from chaos.history import Ended, History
from chaos.hostile import Hostile
from chaos.keepers import Keepers
from chaos.load import COUNTERS, WORKSPACE, Load, Rates, options
from chaos.mill import Mill
from chaos.plan import BY_CHANCE, Kind, plan
from chaos.recovery import Times, measure
from chaos.rivals import Rivals

WARM_UP_S = 3.0
WATCH_S = 0.2
_FRAME = re.compile(r" *[+|][-+|]*(?: |$)")
"""What the lines of a group of errors begin with."""
SETTLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Wishes:
    seed: int
    minutes: float = 5.0
    nodes: int = 3
    mean_s: float = 2.0
    bound_s: float = 35.0
    """The client cuts what has been silent for 20 s, connects within seconds, and may meet a holder
    that has to be given up first.
    """
    trials: int = 6
    """Of each recovery time; 0 measures none."""
    kinds: tuple[Kind, ...] = BY_CHANCE
    standby: bool = False
    """Whether there is one, and the primary is killed for good half-way."""
    rates: Rates = field(default_factory=Rates)
    checkout: Path | None = None
    """Whose package the nodes run, if it is not this one."""
    keep: Path | None = None
    """Where what the processes have printed, and all that was seen, is left."""


@dataclass
class Result:
    wishes: Wishes
    history: History
    verdicts: list[Verdict]
    recovery: list[Times]
    missed: int
    turns: int

    @property
    def well(self) -> bool:
        """Whether every invariant was looked at and held."""
        return all(verdict.looked_at and not verdict.violations for verdict in self.verdicts)


async def run(wishes: Wishes, say: Callable[[str], None]) -> Result:
    """Run once; raises what keeps the run from its end; violations are results."""
    recovery: list[Times] = []
    history = History()
    postgres = {"max_connections": "300"}
    async with open_process_cluster(
        wishes.nodes, postgres=postgres, standby=wishes.standby, keep=wishes.keep, checkout=wishes.checkout
    ) as cluster:
        await ledger.install(cluster)
        say(f"{wishes.nodes} nodes serve behind {cluster.front.address}")
        if wishes.trials:
            recovery = await measure(cluster, wishes.trials, say)
        begun_s, history.began_unix_s = trio.current_time(), time.time()

        def now() -> float:
            return trio.current_time() - begun_s

        load = Load(cluster.front.address, wishes.rates, history, now, random.Random(wishes.seed + 1))
        rivals = Rivals(load)
        weather = Weather(cluster, history, now, say)
        steps = plan(
            wishes.seed,
            [node.name for node in cluster.nodes],
            wishes.minutes * 60,
            mean_s=wishes.mean_s,
            kinds=wishes.kinds,
            fail_over=wishes.standby,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            nursery.start_soon(rivals.run)
            nursery.start_soon(Keepers(load).run)
            nursery.start_soon(Mill(load).run)
            nursery.start_soon(Hostile(load).run)
            watch = trio.CancelScope()
            nursery.start_soon(_watch, cluster, weather, history, now, watch)
            await trio.sleep(WARM_UP_S)
            await weather.run(steps)
            say(f"{now():7.1f} s  the faults are over")
            await trio.sleep(WARM_UP_S)
            await load.finish(SETTLE_S)
            history.ended_s = now()
            say(f"{now():7.1f} s  everything is settled, or will not be")
            await _read_counters(cluster, history)
            watch.cancel()
            load.close()
        await ledger.read(cluster, history)
        history.tracebacks = [
            f"{node.name}: {line}" for node in cluster.nodes for line in last_lines_of_tracebacks(node.printed())
        ]
    if wishes.keep is not None:
        history.write(wishes.keep / "history.jsonl")
    verdicts = check_all(history, bound_s=wishes.bound_s)
    return Result(wishes, history, verdicts, recovery, weather.missed, rivals.turns)


async def _watch(
    cluster: ProcessCluster, weather: Weather, history: History, now: Callable[[], float], scope: trio.CancelScope
) -> None:
    """Record each gateway that ends without an order, and start it again."""
    with scope:
        while True:
            await trio.sleep(WATCH_S)
            for node in cluster.nodes:
                if not node.running and not weather.is_at(node):
                    history.ended.append(Ended(node.name, now(), await node.wait()))
                    with contextlib.suppress(NodeFailed):
                        await node.start()


def last_lines_of_tracebacks(printed: str) -> list[str]:
    """The last line of each traceback that a node has printed, without causes."""
    found: list[str] = []
    inside = False
    for line in printed.splitlines():
        frame = _FRAME.match(line)
        bare = line[frame.end() :] if frame else line
        if bare.lstrip().endswith("Traceback (most recent call last):"):
            inside = True
        elif inside and re.match(r"[A-Za-z_][\w.]*(: |$)", bare):  # an indented line is inside
            found.append(bare)
            inside = False
    return found


async def _read_counters(cluster: ProcessCluster, history: History) -> None:
    for key in COUNTERS:
        history.counters[key] = set()
    for node in cluster.nodes:
        values: dict[str, int] = {}
        with trio.fail_after(SETTLE_S):
            while not values:
                try:
                    async with AgentClient(
                        f"aether://{node.address}",
                        workspace=WORKSPACE,
                        implementation="reader",
                        specifier=node.name,
                        **options(),
                    ) as client:
                        values = {key: int(await client.kv.get(key) or 0) for key in COUNTERS}
                except* AetherError:
                    await trio.sleep(0.2)
        for key, value in values.items():
            history.counters[key].add(value)
