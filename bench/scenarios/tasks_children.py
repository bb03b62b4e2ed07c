"""Children of one task: what they cost beside tasks that have no parent.

Two participants create, the parent's creator and its worker. Each window has two halves: tasks
without a parent, and as many children of one task. What becomes of children is told in the parent's
log behind the answer, so each half ends with a pause that counts for its CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, perf_counter_ns
from typing import Any

from bench import task_wire
from bench.clusters import Shape
from bench.scenarios.base import Scenario, variant
from bench.scenarios.tasks import TaskScenario
from bench.world import Participant, ScenarioFailed

IN_FLIGHT = 16
REST_SECONDS = 0.25


class Children(TaskScenario):
    name = "tasks-children"
    doc = "tasks of 2 creators with 16 on their way each, by turns without a parent and with the same one"
    unit = "task"

    def prepare(self) -> None:
        super().prepare()
        world = self.world
        nodes = world.nodes or [world.address]
        self.makers = world.agents("maker", 2, places=[nodes[0], nodes[-1]])
        self.asked: dict[str, int] = {}
        self.created: list[bytes] = []
        self.number = self.children = 0
        self.seconds, self.cpu_ns = [0.0, 0.0], [0, 0]
        for maker in self.makers:
            maker.handler = self._answered
        self.prefix = task_wire.create_targeted_prefix("bench", world.topic("maker", 1))
        self._create(self.makers[0])
        world.wait(lambda: not self.asked, "the parent")
        if self.refused:
            raise ScenarioFailed(f"the parent was refused: {self.refused[0]}")
        pooled = task_wire.create_prefix("bench", "no-worker")
        self.prefixes = pooled, pooled + task_wire.parent_field(self.created[0])

    def window(self, seconds: float) -> int:
        """Create as many children as tasks without a parent, and compare their CPU."""
        alone = self._half(0, seconds / 2, 0)
        self.children += self._half(1, 0.0, alone)
        return 2 * alone

    def _half(self, which: int, seconds: float, count: int) -> int:
        """Create tasks for a time, or a number of them; return the number."""
        probe, before = self.world.probe, len(self.created)
        cpu, start = probe.cpu_ns() if probe else 0, perf_counter()
        self.prefix, self.most = self.prefixes[which], self.number + count if count else 0
        self.running = True
        for _ in range(IN_FLIGHT):
            for maker in self.makers:
                self._create_another(maker)
        if not count:
            self.world.loop.run(start + seconds)
            self.running = False
        self.drain(lambda: len(self.asked))
        self.running = False
        self.seconds[which] += perf_counter() - start
        self.world.pause(REST_SECONDS)
        self.cpu_ns[which] += (probe.cpu_ns() if probe else 0) - cpu
        return len(self.created) - before

    def _create_another(self, maker: Participant) -> None:
        if self.running and (not self.most or self.number < self.most):
            self._create(maker)

    def _create(self, maker: Participant) -> None:
        self.number += 1
        self.asked[str(self.number)] = perf_counter_ns()
        maker.send(task_wire.create(self.prefix, self.filler, str(self.number)))

    def _answered(self, maker: Participant, messages: list[bytes]) -> None:
        for request_id, task_id in self.answers(maker, messages):
            self.latencies.pending.append(perf_counter_ns() - self.asked.pop(request_id))
            if task_id:
                self.created.append(task_id)
            self._create_another(maker)

    def finish(self) -> None:
        self.judge_tasks(created=len(self.created), children=self.children)
        alone, children = self.seconds
        self.extra["children_cost"] = {
            "time": round(children / alone, 2),
            "cpu": round(self.cpu_ns[1] / self.cpu_ns[0], 2) if self.cpu_ns[0] else None,
        }

    def parameters(self) -> dict[str, Any]:
        return {"creators": len(self.makers), "in_flight": IN_FLIGHT, "payload": self.options.payload}


CHILDREN: Sequence[type[Scenario]] = (
    Children,
    variant(Children, "tasks-children-postgres", "`tasks-children` on one node on PostgreSQL", cluster=Shape(nodes=1)),
    variant(
        Children, "tasks-children-2-nodes", "`tasks-children` on two nodes, a creator on each", cluster=Shape(nodes=2)
    ),
)
