"""Kill and suspend workers, gateways, the engine's node and the database."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from aether_trio.devtools.process_cluster import ProcessCluster
from aether_trio.storage.errors import StorageSetupError
from chaos.faults import Weather
from chaos.history import History
from chaos.plan import Kind, Step, plan
from chaos.tasks.place import LoneNode
from chaos.workflows.history import WorkflowHistory

KINDS: Final = (
    Kind.KILL_NODE,
    Kind.STOP_NODE,
    Kind.STOP_NODE_LONG,
    Kind.DRAIN_NODE,
    Kind.RESTART_DATABASE,
    Kind.CRASH_DATABASE,
    Kind.END_BACKEND,
    Kind.END_LEASE,
    Kind.END_BUS,
)
"""The faults of the cluster's nodes and database; those between them are chaos/run.py's."""
SUSPENDS: Final = 0.35
"""How often a worker or the one gateway is suspended instead of killed."""
ROUND_S: Final = 20.0
"""The faults of a plan: when they are over, there are others, until enough was done."""
HOLDER: Final = """SELECT n.name FROM identity_locks l JOIN nodes n ON n.node_id = l.node_id
    WHERE l.identity = 'wfe::shard0' AND l.ended_ms IS NULL"""


SHOWN_BYTES: Final = 4_000
"""How much of a worker's log is shown when it has ended."""


class Workers:
    """Worker processes; each is started again when it was killed."""

    def __init__(self, several: int, address: Callable[[], str], home: Path) -> None:
        self._address = address
        self._home = home
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.names = [f"w{number}" for number in range(several)]

    def start(self) -> None:
        """Start all workers."""
        for name in self.names:
            self._start(name)

    def close(self) -> None:
        """Kill all workers."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    async def kill(self, name: str) -> None:
        """Kill a worker with SIGKILL, and start it again. Raises WorkerEnded."""
        process = self._processes[name]
        ended = process.poll()
        process.kill()
        await trio.to_thread.run_sync(process.wait)
        self._start(name)
        if ended is not None:
            said = self._log(name).read_bytes()[-SHOWN_BYTES:].decode(errors="replace")
            raise WorkerEnded(f"worker {name} had ended without an order, with {ended}; its last words:\n{said}")

    async def suspend(self, name: str, seconds: float) -> None:
        """Suspend a worker for so long."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)

    def _log(self, name: str) -> Path:
        return self._home / f"{name}.log"

    def _start(self, name: str) -> None:
        file = self._home / f"{name}.jsonl"
        command = [sys.executable, "-m", "chaos.workflows.worker", self._address(), name, str(file)]
        with self._log(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment()
            )


class WorkerEnded(Exception):
    """A worker has ended without having been killed."""


class Storm:
    """Does faults until it is told that it is over; all are taken back then."""

    def __init__(
        self,
        where: ProcessCluster | LoneNode,
        workers: Workers,
        history: WorkflowHistory,
        chance: random.Random,
        mean_s: float,
        now: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._where = where
        self._workers = workers
        self._history = history
        self._chance = chance
        self._mean_s = mean_s
        self._now = now
        self._say = say
        self._over = trio.Event()
        self._seen = History()

    def end(self) -> None:
        """Begin no further fault."""
        self._over.set()

    async def run_each(self) -> None:
        """Kill and suspend a worker and the one gateway, each once."""
        assert isinstance(self._where, LoneNode)
        for name, hit in zip(self._workers.names, (self._kill_worker, self._suspend_worker), strict=False):
            await self._pause(self._mean_s)
            await hit(name)
            await self._pause(self._mean_s)
            await (self._kill_gateway if hit == self._kill_worker else self._suspend_gateway)(self._where)

    async def run(self) -> None:
        """Do faults until `end`; return when all are taken back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hit_workers)
            if isinstance(self._where, LoneNode):
                nursery.start_soon(self._hit_gateway, self._where)
            else:
                weather = Weather(self._where, self._seen, self._now, self._say)
                nursery.start_soon(self._hit_cluster, weather, self._where)
                nursery.start_soon(self._hit_engine, weather, self._where)
        for fault in self._seen.disturbances:
            self._history.faults[fault.kind] += 1

    async def _pause(self, mean_s: float) -> bool:
        """Wait until the next fault; return False when there is none any more."""
        with trio.move_on_after(self._chance.uniform(0.2, 1.8) * mean_s):
            await self._over.wait()
        return not self._over.is_set()

    async def _hit_workers(self) -> None:
        chance, names = self._chance, self._workers.names
        suspended: set[str] = set()

        async def suspend(name: str) -> None:
            suspended.add(name)
            await self._suspend_worker(name)
            suspended.discard(name)

        async with trio.open_nursery() as nursery:
            while await self._pause(self._mean_s):
                name = chance.choice(names)
                if name in suspended:
                    continue
                if chance.random() < SUSPENDS and len(suspended) + 1 < len(names):
                    nursery.start_soon(suspend, name)
                else:
                    await self._kill_worker(name)

    async def _suspend_worker(self, name: str) -> None:
        self._note("SIGSTOP of a worker", name)
        await self._workers.suspend(name, self._chance.uniform(0.5, 8.0))

    async def _kill_worker(self, name: str) -> None:
        self._note("kill -9 of a worker", name)
        try:
            await self._workers.kill(name)
        except WorkerEnded as ended:
            self._say(f"{self._now():7.1f} s  {ended}")
            self._history.tracebacks.append(str(ended))

    async def _hit_gateway(self, gateway: LoneNode) -> None:
        while await self._pause(self._mean_s * 2):
            suspends = self._chance.random() < SUSPENDS
            await (self._suspend_gateway if suspends else self._kill_gateway)(gateway)

    async def _suspend_gateway(self, gateway: LoneNode) -> None:
        self._note("SIGSTOP of a node", gateway.name)
        gateway.stop()
        await trio.sleep(self._chance.uniform(0.5, 6.0))
        gateway.cont()

    async def _kill_gateway(self, gateway: LoneNode) -> None:
        self._note("kill -9 of a node", gateway.name)
        await gateway.kill()
        await trio.sleep(self._chance.uniform(0.1, 1.5))
        await gateway.start()

    async def _hit_cluster(self, weather: Weather, cluster: ProcessCluster) -> None:
        names = [node.name for node in cluster.nodes]
        while await self._pause(0.5):
            steps = plan(self._chance.randrange(1 << 30), names, ROUND_S, mean_s=self._mean_s * 1.5, kinds=KINDS)
            begun_s = self._now()
            async with trio.open_nursery() as nursery:
                for step in steps:
                    with trio.move_on_after(max(0.0, begun_s + step.at_s - self._now())):
                        await self._over.wait()
                    if self._over.is_set():
                        break
                    nursery.start_soon(weather.do, step)
        self._history.missed += weather.missed

    async def _hit_engine(self, weather: Weather, cluster: ProcessCluster) -> None:
        """Kill or suspend the node whose engine takes the events."""
        chance = self._chance
        while await self._pause(self._mean_s * 5):
            try:
                found = await cluster.sql(HOLDER)
            except StorageSetupError:
                continue  # the database is away
            if not found:
                continue
            name = found[0][0]
            kind = chance.choice((Kind.KILL_NODE, Kind.STOP_NODE))
            self._history.faults["... of these, of the engine's node"] += 1
            await weather.do(Step(0.0, kind, name, chance.uniform(0.5, 7.0), chance.random()))

    def _note(self, kind: str, target: str) -> None:
        self._history.faults[kind] += 1
        self._say(f"{self._now():7.1f} s  {kind}: {target}")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
