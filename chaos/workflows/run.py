"""Run chaos for workflows once, from an empty database to a verdict."""

from __future__ import annotations

import math
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient
from aether_trio.storage.errors import StorageSetupError
from chaos.checks import Verdict
from chaos.run import last_lines_of_tracebacks
from chaos.tasks.history import TaskHistory, read, read_moments
from chaos.tasks.place import Alone, Cluster, Place, open_place
from chaos.tasks.run import UNENDED
from chaos.workflows import history as recorded
from chaos.workflows.checks import Evidence, check_all
from chaos.workflows.history import WorkflowHistory
from chaos.workflows.plays import PLAYS, documents
from chaos.workflows.replays import replay_all
from chaos.workflows.snapshot import Kept, Snapshot, take
from chaos.workflows.stories import Stories
from chaos.workflows.storms import Storm, Workers

WARM_UP_S: Final = 1.0
LOOK_S: Final = 0.5
SAY_EVERY_S: Final = 10.0
LATE_S: Final = 2.0
"""When all that was to happen has happened, something may happen a second time so much later."""
ASKED: Final = "asked.json"
TABLES: Final = "tables.db"
RECORDS: Final = "w*.jsonl"
"""What workers have recorded."""
OPEN: Final = "SELECT COUNT(*) FROM workflow_executions WHERE completed_ms = 0"
PENDING: Final = (
    ("tasks that have not ended", UNENDED),
    ("executions that have not ended", OPEN),
    ("messages in the outbox", "SELECT COUNT(*) FROM task_outbox"),
    ("events that are unfinished", "SELECT COUNT(*) FROM workflow_unfinished_events"),
)


@dataclass(frozen=True, slots=True)
class WorkflowWishes:
    """The settings of a run; `nodes` 0 is one gateway on SQLite."""

    seed: int
    executions: int = 2_000
    nodes: int = 3
    workers: int = 5
    mean_s: float = 2.0
    """Between two faults, on average, of each kind of target."""
    pace_s: float = 3.0
    """Before each story, on average; there are CLIENTS * AT_ONCE who tell them."""
    each_once: bool = False
    """Each fault of one gateway once, instead of faults until most stories are told."""
    patience_s: float = 240.0
    """How long the rest may take when the faults are over."""
    keep: Path | None = None

    @property
    def command(self) -> str:
        """The arguments that do the same again."""
        where = f"--engine postgres --nodes {self.nodes}" if self.nodes else "--engine sqlite"
        return f"workflows --seed {self.seed} --executions {self.executions} {where} --every {self.mean_s:g}"


@dataclass
class WorkflowResult:
    """A run and what the checks say of it; the copy of the tables is open."""

    wishes: WorkflowWishes
    evidence: Evidence
    verdicts: list[Verdict]

    @property
    def well(self) -> bool:
        """Whether every invariant was looked at and held."""
        return all(verdict.looked_at and not verdict.violations for verdict in self.verdicts)


class WorkflowRun:
    """One run at a place: its phases."""

    def __init__(self, wishes: WorkflowWishes, place: Place, home: Path, say: Callable[[str], None]) -> None:
        self.wishes = wishes
        self.place = place
        self.history = WorkflowHistory()
        self._home = home
        self._say = say
        self._begun_s = trio.current_time()
        self.workers = Workers(wishes.workers, lambda: place.address, home)
        self._stories = Stories(wishes.executions, wishes.seed, wishes.pace_s, lambda: place.address, self.history)

    def now(self) -> float:
        return trio.current_time() - self._begun_s

    async def run(self) -> None:
        """Apply, play with faults, and wait until nothing is open."""
        async with self._stories.client("boss") as boss:
            await boss.workflow.apply(documents())
            self.workers.start()
            try:
                await self._registered(boss)
                await self._play(boss)
                await take(self.place, self._home / TABLES)  # while the workers are connected
            finally:
                self.workers.close()
        self.history.seconds = self.now()

    async def _registered(self, boss: AgentClient) -> None:
        """Wait until a worker has registered the durable functions."""
        functions = {name for name, play in PLAYS.items() if play.function}
        while True:
            if functions <= {one.id for one in await boss.workflow.definitions()}:
                return
            await trio.sleep(LOOK_S)

    async def _play(self, boss: AgentClient) -> None:
        wishes = self.wishes
        where = self.place.node if isinstance(self.place, Alone) else None
        if where is None:
            assert isinstance(self.place, Cluster)
            where = self.place.cluster
        storm = Storm(where, self.workers, self.history, random.Random(wishes.seed), wishes.mean_s, self.now, self._say)
        async with trio.open_nursery() as saying:
            saying.start_soon(self._progress)
            async with trio.open_nursery() as nursery:
                stories = trio.CancelScope()
                nursery.start_soon(self._tell_stories, stories)
                await trio.sleep(WARM_UP_S)
                async with trio.open_nursery() as storms:
                    storms.start_soon(storm.run_each if wishes.each_once else storm.run)
                    await self._stories.nearly.wait()
                    if not wishes.each_once:
                        storm.end()
                self._say(f"{self.now():7.1f} s  the faults are over")
                stories.deadline = trio.current_time() + wishes.patience_s
            await self._settle(boss)
            saying.cancel_scope.cancel()

    async def _tell_stories(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._stories.run()
        if scope.cancelled_caught:
            self.history.unsettled = f"{self.wishes.executions - self._stories.told} stories have not ended"

    async def _settle(self, boss: AgentClient) -> None:
        """Wait until all has been done that events and executions lead to."""
        await self._stories.send_event(boss, "chaos.note", {})
        await self._stories.send_event(boss, "chaos.far", {})
        calm_since_s = math.inf
        with trio.move_on_after(self.wishes.patience_s):
            while trio.current_time() - calm_since_s < LATE_S:
                left = await self._left()
                calm_since_s = math.inf if left else min(calm_since_s, trio.current_time())
                await trio.sleep(LOOK_S)
            return
        self.history.unsettled = ", ".join(await self._left())

    async def _left(self) -> list[str]:
        found = [f"{number} {what}" for what, sql in PENDING if (number := int((await self.place.sql(sql))[0][0]))]
        acts = {sent.id for sent in self.history.sent.values() if sent.acknowledged and sent.about in SIMPLE}
        done = {row[0] for row in await self.place.sql(DONE)}
        return found if found or len(done) >= len(acts) else [f"{len(acts) - len(done)} events that have not acted"]

    async def _progress(self) -> None:
        while True:
            await trio.sleep(SAY_EVERY_S)
            try:
                number = (await self.place.sql(OPEN))[0][0]
            except StorageSetupError:
                number = "?"
            told = f"{self._stories.told} of {self.wishes.executions} stories are told"
            self._say(f"{self.now():7.1f} s  {told}, {number} executions are open")


SIMPLE: Final = ("chaos.note", "chaos.far")
DONE: Final = "SELECT task_id FROM tasks WHERE task_type IN ('noted', 'near')"


def _records(directory: Path) -> list[Path]:
    return sorted(directory.glob(RECORDS))


async def evidence_of(directory: Path) -> Evidence:
    """Read what a run has left in its directory, also one that was kept."""
    history = WorkflowHistory.read(directory / ASKED)
    files = _records(directory)
    history.moments = recorded.read_moments(files)
    tasks = TaskHistory()
    await read(Kept(directory / TABLES), tasks)
    tasks.moments = read_moments(files)
    snapshot = Snapshot(sqlite3.connect(directory / TABLES))
    return Evidence(history, tasks, snapshot, await replay_all(snapshot))


async def run(wishes: WorkflowWishes, say: Callable[[str], None]) -> WorkflowResult:
    """Run once; raises what keeps the run from its end; violations are results."""
    home = Path(tempfile.mkdtemp(prefix="aether-workflows-"))
    try:
        async with open_place(wishes.nodes, wishes.keep) as place:
            say(f"{len(place.nodes)} gateways serve at {place.address}; it is {time.strftime('%H:%M:%S')}")
            one = WorkflowRun(wishes, place, home, say)
            try:
                await one.run()
            except* AetherError as group:
                raise RuntimeError(f"a client gave up: {group.exceptions[0]}") from group
            one.history.tracebacks += _tracebacks(place)
        one.history.write(home / ASKED)
        evidence = await evidence_of(home)
        say(f"{one.now():7.1f} s  {len(evidence.executions)} executions are checked")
        return WorkflowResult(wishes, evidence, check_all(evidence))
    finally:
        if wishes.keep is not None:
            shutil.copytree(home, wishes.keep, dirs_exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def _tracebacks(place: Place) -> list[str]:
    nodes = (
        place.cluster.nodes if isinstance(place, Cluster) else [place.node.process] if isinstance(place, Alone) else []
    )
    return [f"{node.name}: {line}" for node in nodes for line in last_lines_of_tracebacks(node.printed())]
