"""Executions of workflows: their start, chains of steps, and maps.

Each figure has one of tasks beside it, whose windows take turns with its own on the same gateways.
A chain is the reference's form: three steps that each name an agent, the second and third with the
result of the one before. The last COMPLETE is answered when the execution has ended, as that is one
transaction.

In a map the items are tasks of one pool, and a lone cycle goes on beside it: another creator,
another worker, one task after the other. The same cycle is measured beside as many plain tasks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter, perf_counter_ns
from typing import Any, ClassVar, Final

from hdrh.histogram import HdrHistogram

from aether_trio.wire.pb import aether_pb2 as pb
from bench import task_wire, workflow_wire
from bench.clusters import Shape
from bench.goals import Goal
from bench.latency import DIGITS, HIGHEST_NS, LOWEST_NS, percentiles_us
from bench.numbered import HEAD, MARK
from bench.scenarios.base import Scenario, variant
from bench.scenarios.tasks import CREATORS, POOL, WORKERS, Cycle, Idle, TaskScenario
from bench.world import Participant, ScenarioFailed, World

WORKFLOW: Final = "bench-flow"
CHAIN: Final = ("first", "second", "third")
MOST_CYCLES: Final = 5.0
"""What a chain of three steps may cost, in cycles of one task."""
START_P50_MS: Final = 5.0
START_P99_MS: Final = 20.0
MOST_OF_IDLE: Final = 1.5
"""How many times the latency of `tasks-idle` the first step may have on PostgreSQL."""
WINDOW_ITEMS: Final = 1_000
"""Items of the maps in windows; the large one runs once, at the end."""
AT_ONCE: Final = 80
"""Items of a map, or tasks beside it, that are on their way at the same time."""
_NUMBER: Final = re.compile(rb'"number":(\d+)')


def chain(steps: int, pool: str) -> list[Mapping[str, Any]]:
    """Return the steps of a chain: each is given the result of the one before."""
    found: list[Mapping[str, Any]] = []
    given: Mapping[str, Any] = {"number": {"$expr": "trigger.number"}, "text": {"$expr": "trigger.text"}}
    for step in CHAIN[:steps]:
        after = {"depends_on": [found[-1]["id"]]} if found else {}
        found.append({"id": step, "action": {"agent": pool, "tool_name": "work", "arguments": given}, **after})
        given = {"number": {"$expr": f"steps.{step}.result.number"}}
    return found


def mapped(pool: str) -> list[Mapping[str, Any]]:
    """Return the one step of a map of `trigger.items`."""
    action = {"agent": pool, "tool_name": "work", "arguments": {"number": {"$expr": "item"}}}
    items = {"items": {"$expr": "trigger.items"}, "max_parallel": AT_ONCE}
    return [{"id": "each", "for_each": items, "action": action}]


def number_of(message: bytes) -> int:
    """Return the number in the arguments of a step's task."""
    found = _NUMBER.search(message)
    if found is None:
        raise ScenarioFailed("the task of a step has other arguments than the document says")
    return int(found[1])


def apply(world: World, participant: Participant, name: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Store a workflow, and wait for the answer."""
    document = {"ID": name, "Version": 1, "Workspace": world.workspace, "Definition": {"name": name, "steps": steps}}
    operation = pb.WorkflowOperation(
        op=pb.WorkflowOperation.CREATE_WORKFLOW, data=json.dumps(document).encode(), request_id="apply"
    )
    answers: list[str] = []
    before = participant.handler

    def answered(_: Participant, messages: list[bytes]) -> None:
        answers.extend(
            workflow_wire.read_answer(message)[1] for message in messages if message[0] == workflow_wire.ANSWER
        )

    participant.handler = answered
    participant.send(pb.UpstreamMessage(workflow_op=operation).SerializeToString())
    world.wait(lambda: bool(answers), f"workflow {name}")
    participant.handler = before
    if answers[0]:
        raise ScenarioFailed(f"workflow {name} was refused: {answers[0]}")


def answers_of(world: World, participant: Participant, messages: list[bytes]) -> Iterator[tuple[str, str]]:
    """Yield (request id, error or "") of each answer to an operation on workflows."""
    for message in messages:
        if message[0] == workflow_wire.ANSWER:
            yield workflow_wire.read_answer(message)
        else:
            world.other(participant, message)


class _Executions(Cycle):
    """Scenario: executions of a chain, in a closed loop."""

    unit = "execution"
    steps: ClassVar[int] = len(CHAIN)

    def prepare(self) -> None:
        super().prepare()
        self.text = "x" * self.options.payload
        self.begun: dict[int, tuple[int, int]] = {}
        """Of each execution by its number: its slot, and when it was due."""
        self.done_steps: dict[int, int] = {}
        self.numbers: dict[bytes, int] = {}
        apply(self.world, self.creators[0], WORKFLOW, chain(self.steps, self.world.implementation(POOL)))
        self.prefix = workflow_wire.run_prefix(WORKFLOW)

    def create(self, slot: int, stamp: int) -> None:
        number = self.created
        self.created += 1
        self.begun[number] = slot, stamp
        data = b'{"number":%d,"text":"%s"}' % (number, self.text.encode())
        self.creators[slot % CREATORS].send(workflow_wire.run(self.prefix, data, str(number)))

    def _answered(self, creator: Participant, messages: list[bytes]) -> None:
        for _, error in answers_of(self.world, creator, messages):
            if error:
                self.refused.append(error)

    def taken(self, worker: Participant, task_id: bytes, payload: bytes, now: int) -> None:
        number = self.numbers[task_id] = number_of(payload)
        if number not in self.done_steps:
            self.done_steps[number] = 0
            self.latencies.pending.append(now - self.begun[number][1])
        self.ask(worker, task_wire.CLAIM, task_id)

    def ask(self, worker: Participant, kind: int, task_id: bytes) -> None:
        self.stages[task_id] = kind
        if kind == task_wire.COMPLETE:
            worker.send(workflow_wire.complete(task_id, b'{"number":%d}' % self.numbers[task_id]))
        else:
            worker.send(task_wire.move(kind, task_id))

    def done(self, worker: Participant, task_id: bytes, now: int) -> None:
        del self.stages[task_id]
        number = self.numbers.pop(task_id)
        self.done_steps[number] += 1
        if self.done_steps[number] < self.steps:
            return
        del self.done_steps[number]
        self.completed += 1
        slot, _ = self.begun.pop(number)
        if self.running:
            self.create(slot, now)

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"steps": self.steps}


class _IdleExecutions(_Executions, Idle):
    """Scenario: executions that find an idle worker, at the rate of `tasks-idle`."""

    steps = 1

    def prepare(self) -> None:
        _Executions.prepare(self)
        Idle.set_schedule(self)

    def finish(self) -> None:
        super().finish()
        if not self.cluster and (found := self.latencies.summary()):
            reached = found["all"]
            self.goals.append(Goal("start to first step, p50", reached["p50"] / 1000, "ms", START_P50_MS))
            self.goals.append(Goal("start to first step, p99", reached["p99"] / 1000, "ms", START_P99_MS))

    def compare(self, other: Scenario) -> None:
        mine, others = self.latencies.summary(), other.latencies.summary()
        if not mine or not others:
            return
        limit = MOST_OF_IDLE if self.cluster else None
        for at in ("p50", "p99"):
            times = mine["all"][at] / others["all"][at]
            self.goals.append(Goal(f"latency {at}, times {other.name}", times, "", limit))


class _Lone:
    """A lone task cycle: one creator, one worker, one task after the other."""

    def __init__(self, world: World, filler: bytes) -> None:
        self._world, self._filler = world, filler
        self._prefix = task_wire.create_prefix("bench", world.implementation("lone-worker"))
        (self._creator,) = world.agents("lone-creator", 1)
        (self._worker,) = world.agents("lone-worker", 1)
        self._creator.handler = self._created
        self._worker.handler = self._working
        self._number = self._begun_ns = 0
        self._running = False
        self._claiming = True
        self.refused: list[str] = []
        self.cycles: list[int] = []
        """How long each cycle took, in ns, since `start`."""

    @property
    def busy(self) -> bool:
        return bool(self._begun_ns) and not self.refused

    def start(self) -> None:
        """Go on with one cycle after the other."""
        self._running, self.cycles = True, []
        self._next()

    def stop(self) -> None:
        """Let the present cycle be the last."""
        self._running = False

    def _next(self) -> None:
        self._number += 1
        self._begun_ns = perf_counter_ns()
        payload = HEAD.pack(MARK, 0, self._number, self._begun_ns) + self._filler
        self._creator.send(task_wire.create(self._prefix, payload, str(self._number)))

    def _created(self, creator: Participant, messages: list[bytes]) -> None:
        for message in messages:
            if message[0] != task_wire.CREATED:
                self._world.other(creator, message)
            elif error := task_wire.read_created(message)[2]:
                self.refused.append(error)

    def _working(self, worker: Participant, messages: list[bytes]) -> None:
        for message in messages:
            if message[0] == task_wire.ASSIGNMENT:
                self._claiming = True
                worker.send(task_wire.move(task_wire.CLAIM, task_wire.read_assignment(message)[0]))
            elif message[0] == task_wire.TASK_OP:
                task_id, error = task_wire.read_moved(message)
                if error:
                    self.refused.append(error)
                elif self._claiming:
                    self._claiming = False
                    worker.send(task_wire.move(task_wire.COMPLETE, task_id))
                else:
                    self.cycles.append(perf_counter_ns() - self._begun_ns)
                    self._begun_ns = 0
                    if self._running:
                        self._next()
            else:
                self._world.other(worker, message)

    def percentiles(self) -> dict[str, float]:
        """Return microseconds of the cycles since `start`."""
        found = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
        for value in self.cycles:
            found.record_value(min(max(value, LOWEST_NS), HIGHEST_NS))
        return percentiles_us(found)


class _Map(TaskScenario):
    """Scenario: items of maps, with a lone cycle beside a large one."""

    unit = "item"

    def prepare(self) -> None:
        super().prepare()
        world = self.world
        self.items = self.options.items
        self.lone = _Lone(world, self.filler)
        (self.creator,) = world.agents("creator", 1)
        self.creator.handler = self._answered
        self.workers = world.agents(POOL, WORKERS)
        for worker in self.workers:
            worker.handler = self._working
        pool = world.implementation(POOL)
        apply(world, self.creator, WORKFLOW, mapped(pool))
        self.prefix = workflow_wire.run_prefix(WORKFLOW)
        self.plain = task_wire.create_prefix("bench", pool)
        self.stages: dict[bytes, int] = {}
        self.numbers: dict[bytes, int] = {}
        self.begun = self.plain_begun = self.done = 0
        self.ended = True
        self.most = 0

    def window(self, seconds: float) -> int:
        size = min(WINDOW_ITEMS, self.items)
        self._run(size)
        self.drain(lambda: size - self.done)
        return size

    def _run(self, size: int) -> None:
        self.done = 0
        self.begun += 1
        data = json.dumps({"items": list(range(size))}).encode()
        self.creator.send(workflow_wire.run(self.prefix, data, str(self.begun)))

    def _run_plain(self) -> None:
        """Create the next task of as many as a map has items."""
        self.plain_begun += 1
        payload = b'{"number":%d}' % self.plain_begun
        self.creator.send(task_wire.create(self.plain, payload, str(self.plain_begun)))

    def _answered(self, creator: Participant, messages: list[bytes]) -> None:
        for message in messages:
            if message[0] == task_wire.CREATED:
                if error := task_wire.read_created(message)[2]:
                    self.refused.append(error)
            elif message[0] == workflow_wire.ANSWER:
                if error := workflow_wire.read_answer(message)[1]:
                    raise ScenarioFailed(f"a map was refused: {error}")
            else:
                self.world.other(creator, message)

    def _working(self, worker: Participant, messages: list[bytes]) -> None:
        for message in messages:
            if message[0] == task_wire.ASSIGNMENT:
                task_id, payload = task_wire.read_assignment(message)
                self.numbers[task_id] = number_of(payload)
                self.stages[task_id] = task_wire.CLAIM
                worker.send(task_wire.move(task_wire.CLAIM, task_id))
            elif message[0] == task_wire.TASK_OP:
                task_id, error = task_wire.read_moved(message)
                if error:
                    self.refused.append(error)
                elif self.stages[task_id] == task_wire.CLAIM:
                    self.stages[task_id] = task_wire.COMPLETE
                    worker.send(workflow_wire.complete(task_id, b'{"number":%d}' % self.numbers[task_id]))
                else:
                    del self.stages[task_id], self.numbers[task_id]
                    self.done += 1
                    if self.plain_begun < self.most:
                        self._run_plain()
            else:
                self.world.other(worker, message)

    def finish(self) -> None:
        """Run the large map, and as many plain tasks, each beside a lone cycle."""
        beside_map, map_s = self._beside(lambda: self._run(self.items))
        beside_tasks, tasks_s = self._beside(self._begin_plain)
        self.judge_tasks(items=self.done)
        self.verdict.failures += self.lone.refused[:1]
        self.goals += [
            Goal(f"map of {self.items:,} items", map_s, "s"),
            Goal("the same, items a second", self.items / map_s, "/s"),
            Goal(f"{self.items:,} plain tasks", tasks_s, "s"),
            *(Goal(f"lone cycle beside the map, {at}", beside_map[at] / 1000, "ms") for at in ("p50", "p99", "max")),
            *(Goal(f"beside the tasks, {at}", beside_tasks[at] / 1000, "ms") for at in ("p50", "p99", "max")),
        ]

    def _begin_plain(self) -> None:
        self.done = 0
        self.most = self.plain_begun + self.items
        for _ in range(min(AT_ONCE, self.items)):
            self._run_plain()

    def _beside(self, begin: Any) -> tuple[dict[str, float], float]:
        """Do the work of `begin` beside a lone cycle: its percentiles, and seconds."""
        start = perf_counter()
        self.lone.start()
        begin()
        if not self.world.loop.run(start + MAP_SECONDS, lambda: self.done >= self.items):
            raise ScenarioFailed(f"{self.items - self.done} of {self.items} not done after {MAP_SECONDS:.0f} s")
        elapsed = perf_counter() - start
        self.lone.stop()
        self.drain(lambda: int(self.lone.busy))
        return self.lone.percentiles(), elapsed

    def parameters(self) -> dict[str, Any]:
        return {"items": self.items, "max_parallel": AT_ONCE, "workers": WORKERS, "window_items": WINDOW_ITEMS}


MAP_SECONDS: Final = 600.0
ONE, TWO = Shape(nodes=1), Shape(nodes=2)


def _beside_tasks(
    name: str, suffix: str, where: str, tasks: type[Scenario], flows: type[Scenario], doc: str, **more: Any
) -> list[type[Scenario]]:
    """Return a scenario of tasks and one of workflows, whose windows take turns."""
    group = f"workflows-{name}{suffix}"
    plain = f"workflows-tasks-{name}{suffix}"
    like = f"`{tasks.name}` beside `{group}`{where}"
    goals = {name: value for name, value in more.items() if name == "most_times"}
    shared = {name: value for name, value in more.items() if name not in goals}
    return [
        variant(tasks, plain, like, beside=group, **shared),
        variant(flows, group, f"{doc}{where}", beside=group, against=plain, **shared, **goals),
    ]


_PLACES: Final = (
    ("", "", {}),
    ("-postgres", ", on one node on PostgreSQL", {"cluster": ONE}),
    ("-2-nodes", ", on two nodes, starters on one and workers on the other", {"cluster": TWO}),
)
_IDLE_DOC = "executions of one step, 100 a second, to idle workers: from the intended start to the step's assignment"
_CHAIN_DOC = "executions of three steps from start to end: 20 starters with 4 on their way each, 20 workers"
_MAP_DOC = "items of a map, 80 at a time to 20 workers; one large map beside a lone task cycle at the end"

WORKFLOWS: Sequence[type[Scenario]] = (
    *(
        scenario
        for suffix, where, more in _PLACES
        for scenario in _beside_tasks("idle", suffix, where, Idle, _IdleExecutions, _IDLE_DOC, **more)
    ),
    *(
        scenario
        for suffix, where, more in _PLACES
        for scenario in _beside_tasks(
            "chain", suffix, where, Cycle, _Executions, _CHAIN_DOC, most_times=MOST_CYCLES, **more
        )
    ),
    variant(_Map, "workflows-map", _MAP_DOC),
    variant(_Map, "workflows-map-postgres", f"{_MAP_DOC}, on one node on PostgreSQL", cluster=ONE),
)
