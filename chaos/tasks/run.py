"""Make tasks, kill workers and gateways, until every task has ended or time is up."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, ConnectionLost, InternalGatewayError, RequestTimeout, Retry
from aether_trio.client.operations.enums import BackoffStrategy, TaskClass, TaskPriority
from aether_trio.client.operations.task_values import RetryPolicy
from aether_trio.devtools.node_process import NodeFailed
from chaos.checks import Verdict
from chaos.tasks.checks import check_all
from chaos.tasks.history import TaskHistory, read, read_moments
from chaos.tasks.place import Node, Place, open_place
from chaos.tasks.worker import POOL, WORKSPACE

CREATORS: Final = 4
AT_ONCE: Final = 8
"""Requests of each."""
LOOK_S: Final = 0.25
UNENDED: Final = """SELECT COUNT(*) FROM tasks WHERE status NOT IN ('completed', 'failed', 'cancelled', 'dlq', 'rejected')
    OR next_retry_ms > 0"""
CLASSES: Final = (TaskClass.INTERACTIVE, TaskClass.BACKGROUND, TaskClass.BATCH)
PRIORITIES: Final = (TaskPriority.LOW, TaskPriority.NORMAL, TaskPriority.HIGH)


@dataclass(frozen=True, slots=True)
class TaskWishes:
    """The settings of a run; `nodes` 0 is one gateway on SQLite."""

    seed: int
    tasks: int = 5_000
    nodes: int = 3
    workers: int = 6
    mean_s: float = 2.0
    """Between two kills."""
    heartbeat_ms: int = 4_000
    """So soon a task is given up whose worker was killed while it ran; a few have only their grace
    window of 30 s instead.
    """
    grace_share: float = 0.05
    kills: int = 0
    """0: until nine tenths of the tasks have ended; else so many, of workers and of nodes in turn.
    """
    pace_s: float = 0.0
    """Before each request for a task, on average; there are CREATORS * AT_ONCE who ask."""
    patience_s: float = 300.0
    keep: Path | None = None


@dataclass
class TaskResult:
    wishes: TaskWishes
    history: TaskHistory
    verdicts: list[Verdict]

    @property
    def well(self) -> bool:
        """Whether every invariant was looked at and held."""
        return all(verdict.looked_at and not verdict.violations for verdict in self.verdicts)


class Mill:
    """The creators, workers and kills of one run."""

    def __init__(self, wishes: TaskWishes, place: Place, home: Path, say: Callable[[str], None]) -> None:
        self.wishes = wishes
        self.place = place
        self.history = TaskHistory()
        self._home = home
        self._say = say
        self._chance = random.Random(wishes.seed)
        self._kills: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._begun_s = trio.current_time()

    def now(self) -> float:
        return trio.current_time() - self._begun_s

    async def run(self) -> None:
        """Run creators, workers and kills until every task has ended."""
        wishes = self.wishes
        numbers = list(range(wishes.tasks))
        try:
            for number in range(wishes.workers):
                self._start_worker(f"w{number}")
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as makers:
                    (makers if wishes.kills else nursery).start_soon(self._kill_now_and_then)
                    for maker in range(CREATORS):
                        makers.start_soon(self._make, maker, numbers[maker::CREATORS])
                self._say(f"{self.now():7.1f} s  {wishes.tasks} tasks are made")
                with trio.move_on_after(wishes.patience_s):
                    await self._wait_ended(0)
                nursery.cancel_scope.cancel()
            self.history.seconds = self.now()
            await read(self.place, self.history)
        finally:
            for process in self._workers.values():
                process.kill()
                process.wait()
        self.history.moments = read_moments(sorted(self._home.glob("w*.jsonl")))
        self.history.kills = dict(self._kills)
        self.history.refused = dict(self._refused)

    # -- tasks

    async def _make(self, maker: int, numbers: list[int]) -> None:
        client = AgentClient(
            f"aether://{self.place.address}",
            workspace=WORKSPACE,
            implementation="maker",
            specifier=str(maker),
            connect_timeout_s=math.inf,
            ping_interval_s=10.0,
            retry=Retry(base_s=0.1, cap_s=1.0),
        )

        async def make_some(creator: AgentClient, some: list[int]) -> None:
            for number in some:
                await trio.sleep(2 * self.wishes.pace_s * self._chance.random())
                await self._make_one(creator, f"{self.wishes.seed}-{number}")

        async with client as creator, trio.open_nursery() as nursery:
            for offset in range(AT_ONCE):
                nursery.start_soon(make_some, creator, numbers[offset::AT_ONCE])

    async def _make_one(self, creator: AgentClient, key: str) -> None:
        """Create one task; ask again until it is known to be there."""
        chance = random.Random(key)
        slow = chance.random() < self.wishes.grace_share
        policy = RetryPolicy(
            max_attempts=chance.randint(2, 5),
            backoff=chance.choice((BackoffStrategy.FIXED, BackoffStrategy.EXPONENTIAL)),
            initial_delay_s=chance.choice((0.02, 0.1, 0.3)),
            max_delay_s=1,
            jitter_factor=0.3,
        )
        # Drawn once: a key is refused with another request than its first.
        task_class = TaskClass.INTERACTIVE if slow else chance.choice(CLASSES)
        priority = chance.choice(PRIORITIES)
        while True:
            try:
                created = await creator.tasks.create(
                    "grind",
                    key.encode(),
                    pool=POOL,
                    metadata={} if slow else {"heartbeat_timeout_ms": str(self.wishes.heartbeat_ms)},
                    task_class=task_class,
                    priority=priority,
                    retry_policy=policy,
                    idempotency_key=key,
                )
            except (ConnectionLost, RequestTimeout):
                self._refused["request of a task cut off"] += 1
                continue  # the key finds what may be there
            except AetherError as error:
                if not error.retryable and not isinstance(error, InternalGatewayError):
                    raise
                self._refused[f"request of a task refused: {error.code}"] += 1
                self._say(f"{self.now():7.1f} s  a task was refused: {error}")
                await trio.sleep(0.2)
                continue
            self.history.keys[key] = created.task_id
            return

    async def _wait_ended(self, left: int) -> None:
        while True:  # what changes is a table of other processes
            await trio.sleep(LOOK_S)
            made = len(self.history.keys) == self.wishes.tasks
            if made and int((await self.place.sql(UNENDED))[0][0]) <= left:
                return

    # -- kills

    def _start_worker(self, name: str) -> None:
        command = [
            sys.executable,
            "-m",
            "chaos.tasks.worker",
            self.place.address,
            name,
            str(self._home / f"{name}.jsonl"),
        ]
        with (self._home / f"{name}.log").open("ab") as output:
            self._workers[name] = subprocess.Popen(
                [*command, str(self._chance.randrange(1 << 30))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
            )

    async def _kill_now_and_then(self) -> None:
        wishes, chance = self.wishes, self._chance
        async with trio.open_nursery() as nursery:
            if not wishes.kills:
                nursery.start_soon(self._stop_killing, nursery.cancel_scope, wishes.tasks // 10)
            away: set[str] = set()
            done = 0
            while not wishes.kills or done < wishes.kills:
                await trio.sleep(chance.uniform(0.2, 1.8) * wishes.mean_s)
                of_node = done % 2 == 1 if wishes.kills else chance.random() < 0.35
                if of_node:
                    among = [node for node in self.place.nodes if node.name not in away]
                    if len(among) < min(2, len(self.place.nodes)):
                        continue
                    nursery.start_soon(self._kill_node, chance.choice(among), away)
                else:
                    await self._kill_worker(chance.choice(sorted(self._workers)))
                done += 1

    async def _stop_killing(self, scope: trio.CancelScope, left: int) -> None:
        await self._wait_ended(left)
        self._say(f"{self.now():7.1f} s  the kills are over")
        scope.cancel()

    async def _kill_worker(self, name: str) -> None:
        process = self._workers[name]
        if process.poll() is not None:
            self._say(f"{self.now():7.1f} s  worker {name} ended without an order with {process.returncode}")
            self._kills["worker that had ended without an order"] += 1
        process.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(process.wait)
        self._kills["worker"] += 1
        self._start_worker(name)

    async def _kill_node(self, node: Node, away: set[str]) -> None:
        away.add(node.name)
        rest_s = self._chance.uniform(0.2, 2.0)
        with trio.CancelScope(shield=True):  # it is started again in any case
            await node.kill()
            self._kills["node"] += 1
            await trio.sleep(rest_s)
            while True:
                try:
                    await node.start()
                    break
                except NodeFailed as error:
                    self._say(f"{self.now():7.1f} s  {node.name} did not start: {str(error).splitlines()[-1]}")
        away.discard(node.name)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


async def run(wishes: TaskWishes, say: Callable[[str], None]) -> TaskResult:
    """Run once; raises what keeps the run from its end; violations are results."""
    home = Path(tempfile.mkdtemp(prefix="aether-mill-"))
    try:
        async with open_place(wishes.nodes, wishes.keep) as place:
            say(f"{len(place.nodes)} gateways serve at {place.address}; it is {time.strftime('%H:%M:%S')}")
            mill = Mill(wishes, place, home, say)
            try:
                await mill.run()
            except* AetherError as group:
                raise RuntimeError(f"a maker of tasks gave up: {group.exceptions[0]}") from group
        if wishes.keep is not None:
            mill.history.write(wishes.keep / "tables.jsonl")
        return TaskResult(wishes, mill.history, check_all(mill.history))
    finally:
        if wishes.keep is not None:
            shutil.copytree(home, wishes.keep, dirs_exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
