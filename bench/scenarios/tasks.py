"""Create, assign, claim and complete tasks, with workers that ask for each step.

A cycle is four messages of participants, and one of the gateway's own: CreateTask and its answer,
the assignment, CLAIM and its answer, COMPLETE and its answer. In the closed loop each slot creates
the next task when its last one is completed, so workers are never idle for long and tasks never
wait for one. What a user waits for, from CreateTask to the assignment of an idle worker, is
measured by the paced scenarios.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import Any, ClassVar

from bench import task_wire, wire
from bench.clusters import Shape
from bench.numbered import HEAD, MARK, filler
from bench.scenarios.base import Scenario, variant
from bench.schedule import Schedule
from bench.world import Participant, ScenarioFailed

CREATORS = 20
WORKERS = 20
SLOTS = 4
"""Tasks of each creator that are on their way."""
POOL = "bench-pool"
LOW_RATE = 100.0
"""Tasks per second at which a worker is idle when the next one comes."""


class TaskScenario(Scenario):
    """Base of scenarios that create tasks, and count refused ones."""

    one_transport = True

    def prepare(self) -> None:
        self.filler = filler(self.options.payload)
        self.refused: list[str] = []

    def answers(self, creator: Participant, messages: list[bytes]) -> Iterator[tuple[str, bytes]]:
        """Yield (request id, task id) of each answer to CreateTask; b"" if it refuses."""
        for message in messages:
            if message[0] != task_wire.CREATED:
                self.world.other(creator, message)
                continue
            request_id, task_id, error = task_wire.read_created(message)
            if error:
                self.refused.append(error)
            yield request_id, task_id

    def judge_tasks(self, **counts: int) -> None:
        """Judge that these counts are equal and no task was refused."""
        self.verdict.counts = counts | {"refused": len(self.refused)}
        if self.refused:
            self.verdict.failures.append(f"{len(self.refused)} refused, the first with {self.refused[0]!r}")


class Cycle(TaskScenario):
    """Scenario: whole cycles of tasks, in a closed loop."""

    name = "tasks-cycle"
    doc = "a task from create to completed: 20 creators with 4 on their way each, 20 workers of one pool"
    unit = "cycle"

    def prepare(self) -> None:
        super().prepare()
        world = self.world
        self.prefix = task_wire.create_prefix("bench", world.implementation(POOL))
        self.created = self.assigned = self.completed = 0
        self.stages: dict[bytes, int] = {}
        """What was asked last for each task that a worker has in hand."""
        self.slots: dict[bytes, int] = {}
        """Whose turn it is when a task is completed."""
        creators_at, workers_at = world.nodes if len(world.nodes) == 2 else ("", "")
        self.creators = world.agents("creator", CREATORS, places=[creators_at])
        self.seed()
        self.workers = self.open_workers([workers_at])
        for creator in self.creators:
            creator.handler = self._answered
        for worker in self.workers:
            worker.handler = self.working

    def seed(self) -> None:
        """Put tasks into the queue before workers connect."""

    def open_workers(self, places: Sequence[str]) -> list[Participant]:
        return self.world.agents(POOL, WORKERS, places=places)

    def window(self, seconds: float) -> int:
        before = self.completed
        for slot in range(CREATORS * SLOTS):
            self.create(slot, perf_counter_ns())
        self.work(seconds, self.outstanding)
        return self.completed - before

    def outstanding(self) -> int:
        return self.created - self.completed - len(self.refused)

    def create(self, slot: int, stamp: int) -> None:
        """Create the next task of a slot, as of `stamp` nanoseconds."""
        payload = HEAD.pack(MARK, slot, self.created, stamp) + self.filler
        self.created += 1
        self.creators[slot % CREATORS].send(task_wire.create(self.prefix, payload, str(self.created)))

    def _answered(self, creator: Participant, messages: list[bytes]) -> None:
        for _ in self.answers(creator, messages):
            pass  # the next task of a slot is created when this one is completed

    def working(self, worker: Participant, messages: list[bytes]) -> None:
        """Make a worker's handler of assignments and answers."""
        now = perf_counter_ns()
        for message in messages:
            if message[0] == task_wire.ASSIGNMENT:
                task_id, payload = task_wire.read_assignment(message)
                self.assigned += 1
                if task_id in self.stages:
                    raise ScenarioFailed(f"task {task_id.decode()} was assigned twice")
                self.taken(worker, task_id, payload, now)
            elif message[0] == task_wire.TASK_OP:
                task_id, error = task_wire.read_moved(message)
                if error:
                    self.refused.append(error)
                    self.stages.pop(task_id, None)
                elif self.stages[task_id] == task_wire.CLAIM:
                    self.ask(worker, task_wire.COMPLETE, task_id)
                else:
                    self.done(worker, task_id, now)
            else:
                self.world.other(worker, message)

    def ask(self, worker: Participant, kind: int, task_id: bytes) -> None:
        self.stages[task_id] = kind
        worker.send(task_wire.move(kind, task_id))

    def taken(self, worker: Participant, task_id: bytes, payload: bytes, now: int) -> None:
        mark, slot, _, stamp = HEAD.unpack_from(payload)
        if mark != MARK:
            raise ScenarioFailed(f"task {task_id.decode()} came with another payload than it was created with")
        self.slots[task_id] = slot
        self.latencies.pending.append(now - stamp)
        self.ask(worker, task_wire.CLAIM, task_id)

    def done(self, worker: Participant, task_id: bytes, now: int) -> None:
        del self.stages[task_id]
        self.completed += 1
        slot = self.slots.pop(task_id)
        if self.running:
            self.create(slot, now)

    def finish(self) -> None:
        self.judge_tasks(created=self.created, assigned=self.assigned, completed=self.completed)
        if self.outstanding():
            self.verdict.failures.append(f"{self.outstanding()} not completed")

    def parameters(self) -> dict[str, Any]:
        return {"creators": CREATORS, "workers": WORKERS, "slots": SLOTS, "payload": self.options.payload}


class Idle(Cycle):
    name = "tasks-idle"
    doc = "100 tasks a second to idle workers: latency from the intended create to the assignment"
    gated: ClassVar[tuple[str, ...]] = ()

    def prepare(self) -> None:
        super().prepare()
        self.set_schedule()

    def set_schedule(self) -> None:
        self.schedule = Schedule(self.pace())
        self.extra["paced_rate"] = self.schedule.rate

    def pace(self) -> float:
        """Tasks per second."""
        return self.options.rate or LOW_RATE

    def send_next(self, due_ns: int) -> None:
        """Create the task of the creator whose turn it is."""
        self.create(self.created % CREATORS, due_ns)

    def window(self, seconds: float) -> int:
        before = self.completed
        self.schedule.run(self.world.loop, seconds, self.send_next)
        self.drain(self.outstanding)
        return self.completed - before


def worker_init(place: str, number: int, capacity: int, credentials: dict[str, str]) -> bytes:
    """InitConnection of a pool's worker with a bound on its live tasks."""
    return wire.agent_init(place, POOL, str(number), credentials, task_wire.worker_tasks(capacity))


ONE, TWO = Shape(nodes=1), Shape(nodes=2)
ACROSS = "on two nodes, creators on one and workers on the other"
ON_POSTGRES = "`tasks-cycle` on one node on PostgreSQL; gateway and database count"
CYCLES: Sequence[type[Scenario]] = (
    Idle,
    variant(Idle, "tasks-idle-postgres", "`tasks-idle` on one node on PostgreSQL", cluster=ONE),
    variant(Idle, "tasks-idle-2-nodes", f"`tasks-idle` {ACROSS}", cluster=TWO),
    Cycle,
    variant(Cycle, "tasks-cycle-postgres", ON_POSTGRES, cluster=ONE),
    variant(Cycle, "tasks-cycle-2-nodes", f"`tasks-cycle` {ACROSS}", cluster=TWO),
)
