"""Wake executions one after the other, of a million that wait.

They wait for a time, for a signal, for an event with a key, and for the end of a task that has
hibernated: a fourth each. Each is woken up to the assignment of its next step. The waiting ones are
copies of four of the gateway's own (seed_executions.py); on SQLite the gateway is started again on
them, which is timed too, and its memory is compared with that of one without them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from statistics import median
from time import perf_counter, perf_counter_ns, sleep, time_ns
from typing import Any, Final

from aether_trio.wire.pb import aether_pb2 as pb
from bench import seed_executions
from bench.clusters import Shape
from bench.goals import Goal
from bench.scenarios.base import Scenario, variant
from bench.scenarios.workflows import apply, number_of
from bench.servers import ServerOptions, gateway
from bench.world import Participant, ScenarioFailed

Op = pb.WorkflowOperation
TaskOp = pb.TaskOperation
RUN: Final = 100
SIGNAL: Final = 101
SLEEP_MS: Final = 200
"""How long the woken ones sleep that wait for a time."""
WARM: Final = 25
"""Executions of each kind that are woken before memory is looked at."""
SETTLE_S: Final = 1.0
"""After it the gateway has written what it does behind its answers."""
MEMORY_MIB: Final = 64
WAKE_MS: Final = 10.0
RESTART_S: Final = 10.0
EVENT: Final = "bench.arrived"
HOW: Final[Mapping[str, Mapping[str, Any]]] = {
    "time": {"wait": {"until": "{{.trigger.until}}"}},
    "signal": {"wait": {"signal": "go"}},
    "event": {"wait": {"event": EVENT, "key": "input.order", "equals": {"$expr": "trigger.number"}}},
    "hibernated": {"action": {"agent": "sleeper", "tool_name": "sleep"}},
}
"""What the first step of each kind of execution is."""
FAR: Final = "2100-01-01T00:00:00Z"


class Waiting(Scenario):
    """Scenario: executions that are woken, beside many that wait."""

    unit = "wake"
    gated = ()
    one_transport = True

    def prepare(self) -> None:
        self.number = self.latest_ns = 0
        self.wakes: dict[str, list[int]] = {kind: [] for kind in HOW}
        self.restart_s = 0.0
        self._stack = ExitStack()
        if self.own_server:
            self._start()
        self._open()
        for kind, first in HOW.items():
            step = {"id": "go", "action": {"agent": self._pool, "tool_name": "work", "arguments": _NUMBER}}
            rest = {"id": "rest", **first}
            if kind == "hibernated":
                rest = {"id": "rest", "action": {**first["action"], "agent": self.world.implementation("sleeper")}}
            apply(self.world, self.boss, f"bench-{kind}", [rest, {**step, "depends_on": ["rest"]}])
        for _ in range(min(WARM, self.options.waiting)):
            self._wake_each()
        base = self.world.probe.rss_kib() if self.world.probe else 0
        self.base_kib = base
        self._seed()
        self.wakes = {kind: [] for kind in HOW}

    def _start(self) -> None:
        assert self.world.data_dir is not None
        began = perf_counter()
        target = self._stack.enter_context(gateway(ServerOptions(), self.name, self.world.data_dir))
        self.restart_s = perf_counter() - began
        self.world.address, self.world.probe = target.address, target.probe

    def _open(self) -> None:
        world = self.world
        self._pool = world.implementation("worker")
        self.answers: dict[str, pb.WorkflowResponse] = {}
        self.moved: dict[str, pb.TaskOperationResponse] = {}
        self.assigned: dict[int, tuple[str, int]] = {}
        """Task and moment of the `go` steps, by the number of their execution."""
        self.slept: list[str] = []
        """Tasks that the sleeper was given, the latest last."""
        (self.boss,) = world.agents("boss", 1)
        (self.worker,) = world.agents("worker", 1)
        (self.sleeper,) = world.agents("sleeper", 1)
        for one in (self.boss, self.worker, self.sleeper):
            one.handler = self._take

    def _take(self, participant: Participant, messages: list[bytes]) -> None:
        now = perf_counter_ns()
        for message in messages:
            found = pb.DownstreamMessage.FromString(message)
            match found.WhichOneof("payload"):
                case "workflow_response":
                    self.answers[found.workflow_response.request_id] = found.workflow_response
                case "task_op":
                    self.moved[found.task_op.request_id] = found.task_op
                case "task_assignment" if participant is self.sleeper:
                    self.slept.append(found.task_assignment.task_id)
                    self.latest_ns = now
                case "task_assignment":
                    self.assigned[number_of(message)] = found.task_assignment.task_id, now
                case _:
                    self.world.other(participant, message)

    def _seed(self) -> None:
        """Copy one execution of each kind, so that as many wait as are wanted."""
        each = self.options.waiting // len(HOW)
        seeds = []
        for kind in HOW:
            names = [self._begin(kind, until=FAR)]
            if kind == "hibernated":
                names.append(self.slept[-1])
            seeds.append(names)
        self.world.pause(SETTLE_S)
        if not self.own_server:
            for place, names in enumerate(seeds, 1):
                seed_executions.seed_postgres(self.world.dsn, names, each, place)
            return
        assert self.world.data_dir is not None
        self._stop()
        for place, names in enumerate(seeds, 1):
            seed_executions.seed_sqlite(self.world.data_dir / "data", names, each, place)
        self._start()
        self._open()

    def _stop(self) -> None:
        self.world.close_all(self.world.participants)
        self._stack.close()

    def window(self, seconds: float) -> int:
        until, done = perf_counter() + seconds, 0
        while not done or perf_counter() < until:
            self._wake_each()
            done += len(HOW)
        return done

    def _wake_each(self) -> None:
        for kind in HOW:
            self._wake(kind)

    def _begin(self, kind: str, until: str) -> str:
        """Start an execution, and wait until it rests; return its id."""
        self.number += 1
        data = json.dumps({"number": self.number, "until": until}).encode()
        before = len(self.slept)
        found = self._ask(Op(op=RUN, id=f"bench-{kind}", data=data))  # type: ignore[arg-type]
        if kind == "hibernated":
            self.world.wait(lambda: len(self.slept) > before, "a task that is to hibernate")
            save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="k", data=b"x", request_id="save")
            self.sleeper.send(pb.UpstreamMessage(checkpoint_op=save).SerializeToString())
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_HIBERNATION, hibernation=_CHECKPOINT)
            self._move(self.sleeper, TaskOp.CLAIM, self.slept[-1])
            self._move(self.sleeper, TaskOp.PAUSE, self.slept[-1], wait_spec=wait)
        return str(json.loads(found.data)["execution_id"])

    def _wake(self, kind: str) -> None:
        """Wake a new execution, and take it to its end; note how long its wake took."""
        until_ms = _wall_ms() + SLEEP_MS
        execution = self._begin(kind, _iso(until_ms))
        number = self.number
        if kind == "time":
            begun = perf_counter_ns() + (until_ms - _wall_ms()) * 1_000_000
        else:
            begun = perf_counter_ns()
        if kind == "signal":
            self.boss.send(_operation(Op(op=SIGNAL, id=execution, secondary_id="go", request_id="signal")))  # type: ignore[arg-type]
        elif kind == "event":
            payload = json.dumps({"event_names": [EVENT], "data": {"order": number}}).encode()
            event = pb.SendMessage(target_topic="event::*", payload=payload, message_type=pb.EVENT)
            self.boss.send(pb.UpstreamMessage(send=event).SerializeToString())
        elif kind == "hibernated":
            before = len(self.slept)
            resume = TaskOp(op=TaskOp.RESUME, task_id=self.slept[-1], request_id="resume")
            self.boss.send(pb.UpstreamMessage(task_op=resume).SerializeToString())
            self.world.wait(lambda: len(self.slept) > before, "a task that was resumed")
            self._note(kind, self.latest_ns - begun)
            self._move(self.sleeper, TaskOp.CLAIM, self.slept[-1])
            self._move(self.sleeper, TaskOp.COMPLETE, self.slept[-1])
        self.world.wait(lambda: number in self.assigned, f"the next step of an execution that waits for {kind}")
        task, at_ns = self.assigned.pop(number)
        if kind != "hibernated":
            self._note(kind, at_ns - begun)
        self._move(self.worker, TaskOp.CLAIM, task)
        self._move(self.worker, TaskOp.COMPLETE, task)

    def _note(self, kind: str, took_ns: int) -> None:
        self.wakes[kind].append(took_ns)
        self.latencies.pending.append(max(took_ns, 1))

    def _ask(self, operation: pb.WorkflowOperation) -> pb.WorkflowResponse:
        operation.request_id = str(self.number)
        self.boss.send(_operation(operation))
        self.world.wait(lambda: operation.request_id in self.answers, f"operation {operation.op}")
        answer = self.answers.pop(operation.request_id)
        if not answer.success:
            raise ScenarioFailed(f"operation {operation.op} was refused: {answer.error}")
        return answer

    def _move(self, who: Participant, op: int, task_id: str, **more: Any) -> None:
        request = TaskOp(op=op, task_id=task_id, request_id=f"{op}-{task_id}", **more)  # type: ignore[arg-type]
        who.send(pb.UpstreamMessage(task_op=request).SerializeToString())
        self.world.wait(lambda: request.request_id in self.moved, f"operation {op} on a task")
        answer = self.moved.pop(request.request_id)
        if not answer.success:
            raise ScenarioFailed(f"operation {op} on a task was refused: {answer.error}")

    def finish(self) -> None:
        waiting = f"{self.options.waiting:,} waiting"
        listed = []
        for status in ("running", "failed", "completed"):
            began = perf_counter_ns()
            self._ask(Op(op=Op.LIST_EXECUTIONS, status_filter=status))
            listed.append(perf_counter_ns() - began)
        for kind, found in self.wakes.items():
            self.goals.append(Goal(f"woken by {_BY[kind]}, p50", median(found) / 1e6, "ms", WAKE_MS))
        self.goals.append(Goal("the slowest list of executions by status", max(listed) / 1e6, "ms"))
        if self.world.probe and self.own_server:
            sleep(1)
            more = (self.world.probe.rss_kib() - self.base_kib) / 1024
            self.goals.append(Goal(f"memory of the gateway, more with {waiting}", more, "MiB", MEMORY_MIB))
            self.goals.append(Goal(f"start of the gateway on {waiting}", self.restart_s, "s", RESTART_S))
            self._stop()
        self.verdict.counts = {kind: len(found) for kind, found in self.wakes.items()}

    def parameters(self) -> dict[str, Any]:
        return {"waiting": self.options.waiting}


_NUMBER: Final = {"number": {"$expr": "trigger.number"}}
_CHECKPOINT: Final = pb.HibernationDescriptor(checkpoint_key="k")
_BY: Final = {"time": "time", "signal": "a signal", "event": "an event by key", "hibernated": "RESUME"}


def _operation(operation: pb.WorkflowOperation) -> bytes:
    return pb.UpstreamMessage(workflow_op=operation).SerializeToString()


def _wall_ms() -> int:
    return time_ns() // 1_000_000


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_DOC: Final = "executions that are woken by time, signal, event or RESUME, beside 1,000,000 that wait"
WAITING: Sequence[type[Scenario]] = (
    variant(Waiting, "workflows-waiting", _DOC, own_server=True),
    variant(Waiting, "workflows-waiting-postgres", f"{_DOC}, on PostgreSQL", cluster=Shape(nodes=1)),
)
