"""Run task cycles behind a long queue: their cost must not grow with it.

The queue is there before the workers, each of which takes SLOTS tasks at most. From then on every
completed task is followed by the first one of the queue, and by a new one at its end, so the queue
stays as long as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, ClassVar

from bench import seed_tasks, task_wire
from bench.clusters import Shape
from bench.numbered import HEAD, MARK
from bench.scenarios.base import Scenario, variant
from bench.scenarios.tasks import POOL, SLOTS, WORKERS, Cycle, worker_init
from bench.world import Participant, ScenarioFailed


class _Queued(Cycle):
    """Scenario: cycles behind one of `--queued`'s two lengths of queue."""

    longer: ClassVar[bool]

    def prepare(self) -> None:
        self.todo: dict[Participant, deque[bytes]] = {}
        self.asked: dict[bytes, int] = {}
        """When the work on a task began."""
        self.busy = 0
        super().prepare()
        self.world.wait(lambda: sum(map(len, self.todo.values())) == WORKERS * SLOTS, "the first assignments")

    def seed(self) -> None:
        created: list[tuple[str, bytes]] = []
        creator = self.creators[0]
        creator.handler = lambda creator, messages: created.extend(self.answers(creator, messages))
        creator.send(task_wire.create(self.prefix, HEAD.pack(MARK, 0, 0, 0) + self.filler, "first"))
        self.world.wait(lambda: bool(created), "the first task")
        if self.refused:
            raise ScenarioFailed(f"the first task was refused: {self.refused[0]}")
        task_id = created[0][1].decode()
        self.queued = self.options.queued[self.longer]
        more = max(0, self.queued + WORKERS * SLOTS - 1)
        if self.world.dsn:
            seed_tasks.seed_postgres(self.world.dsn, task_id, more)
        elif self.world.data_dir:
            seed_tasks.seed_sqlite(self.world.data_dir, task_id, more)
        else:
            raise ScenarioFailed("a queue is put into the database of a gateway that is started here (no --target)")

    def open_workers(self, places: Sequence[str]) -> list[Participant]:
        world = self.world
        inits = (
            worker_init(world.workspace, number, SLOTS, dict(self.options.credentials)) for number in range(WORKERS)
        )
        world.on_greeted = self._greeted  # the first assignments come right behind the ack
        opened = world.open(inits, POOL, places)
        world.on_greeted = None
        return opened

    def _greeted(self, worker: Participant) -> None:
        self.todo[worker] = deque()
        worker.handler = self.working

    def window(self, seconds: float) -> int:
        before = self.completed
        self.running = True
        for worker, todo in self.todo.items():
            for _ in range(len(todo)):
                self._begin(worker, todo.popleft())
        self.work(seconds, self.outstanding)
        return self.completed - before

    def _begin(self, worker: Participant, task_id: bytes) -> None:
        self.busy += 1
        self.asked[task_id] = perf_counter_ns()
        self.ask(worker, task_wire.CLAIM, task_id)

    def outstanding(self) -> int:
        """How many tasks are begun or requested, and not completed."""
        return self.busy

    def taken(self, worker: Participant, task_id: bytes, payload: bytes, now: int) -> None:
        if self.running:
            self._begin(worker, task_id)
        else:
            self.todo[worker].append(task_id)

    def done(self, worker: Participant, task_id: bytes, now: int) -> None:
        del self.stages[task_id]
        self.completed += 1
        self.busy -= 1
        self.latencies.pending.append(now - self.asked.pop(task_id))
        self.create(self.completed, now)

    def finish(self) -> None:
        super().finish()
        self.verdict.failures = [one for one in self.verdict.failures if "not completed" not in one]

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"queued": self.queued}


SHORT = variant(
    _Queued,
    "tasks-queued-1k",
    "`tasks-cycle` with 1,000 tasks waiting in the same pool; latency is from CLAIM to completed",
    longer=False,
)
LONG = variant(_Queued, "tasks-queued-1m", "the same with 1,000,000 waiting", longer=True)
ONE = Shape(nodes=1)
QUEUED: Sequence[type[Scenario]] = (
    SHORT,
    LONG,
    variant(SHORT, "tasks-queued-1k-postgres", "`tasks-queued-1k` on one node on PostgreSQL", cluster=ONE),
    variant(LONG, "tasks-queued-1m-postgres", "`tasks-queued-1m` on one node on PostgreSQL", cluster=ONE),
)
