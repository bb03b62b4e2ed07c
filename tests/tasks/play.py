"""Drive a gateway's core and the model, and compare what can be seen of both.

A step is a tuple of small numbers and words, so that Hypothesis can make them and shrink them. What
is compared: every answer; every row; the events as stored, as pushed to a subscriber from the first
one, and as replayed to a new one; what every worker was sent; the workers' counts; the attempts;
and that no task waits while a worker of its queue has room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from itertools import count
from typing import Any, Final
from unittest import mock

import trio

from aether_trio.gateway.core import Core
from aether_trio.log import topic_log
from aether_trio.model.errors import Status
from aether_trio.services import checkpoints, last_seen
from aether_trio.services.access import changes, decision_log
from aether_trio.services.agents import resource_owners
from aether_trio.services.authority import endings, expiry, renewal
from aether_trio.services.kv import service as kv
from aether_trio.services.tasks import engine, timer
from aether_trio.services.tasks.delivery import conversations
from aether_trio.services.workflows.events import kv_events
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, deadlock_is_an_error, let_manage, open_world, pump
from tests.helpers.direct import Store
from tests.tasks.model import WIRE, Job, Model, No, Waiting

ROOM: Final = 2
"""Live tasks of a worker: so few that tasks wait."""
PEOPLE: Final = {
    "creator": ("w", "c", "1"),
    "a": ("w", "i", "a"),
    "b": ("w", "i", "b"),
    "manager": ("w", "m", "1"),
    "outsider": ("elsewhere", "i", "s"),
}
NAMES: Final = {short: "::".join(("ag", *parts)) for short, parts in PEOPLE.items()}
OPS: Final = {
    verb: pb.TaskOperation.OpType.Value(verb.upper())
    for verb in ("claim", "complete", "fail", "cancel", "retry", "resume", "reject")
}
REASONS: Final = {
    word: pb.WaitReason.Value(f"WAIT_REASON_{word.upper()}")
    for word in ("input", "authority", "dependency", "hibernation")
}
POLICIES: Final = (None, (1, (1000,)), (3, (700,)), (4, (500, 60_000)), (6, (61_000, 3_601_000, 90_001_000)))
"""Attempts and delays."""
DEADLINES: Final = (
    {},
    {"schedule_to_start_ms": 2_011},
    {"start_to_close_ms": 3_023},
    {"heartbeat_timeout_ms": 4_031},
    {"schedule_to_close_ms": 45_047},
    {"start_to_close_ms": 7_200_059},
    {"heartbeat_timeout_ms": 21_600_067},
    {"schedule_to_close_ms": 259_200_071},
)
LONG_MS: Final = 300_000
"""A wait of this length is long."""
REASONED: Final = {"complete", "fail", "reject"}
"""Whose reason is told."""

Step = tuple[Any, ...]


class WholeClock:
    """A calendar of whole milliseconds on the virtual clock, over all gateways.

    `offset_ms`: by how much it was set.
    """

    offset_ms = 0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + self.offset_ms + round(trio.current_time() * 1000)

    def monotonic(self) -> float:
        return trio.current_time()


class Play:
    """One gateway and its participants.

    `story` is what was done, for the reader of a failure.
    """

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.clock = WholeClock()
        self.model = Model(ROOM, NAMES["manager"], self._chosen)
        self.nursery = nursery
        self.core: Core
        self.links: dict[str, MemoryLink] = {}
        self.order: list[str] = []
        self.heard: dict[str, list[tuple[object, ...]]] = {}
        self.story: list[str] = []
        self.keys: dict[int, tuple[str, pb.CreateTaskRequest]] = {}
        self.window = 4
        """Of how many of the latest tasks steps speak."""
        self.rare_looks = False
        """Whether the gateway looks for changes of access data rarely while time passes."""
        self._ids = count(1)

    def _chosen(self, name: str, epoch: int) -> str:
        rows = self.world.databases["tasks"].query(
            "SELECT worker FROM task_attempts WHERE task_id = $1 AND epoch = $2 "
            "UNION ALL SELECT assigned_to FROM tasks WHERE task_id = $1 AND epoch = $2",
            name,
            epoch,
        )
        return str(rows[0][0]) if rows else ""

    # -- the gateway's lives -----------------------------------------------------------------------

    async def start(self) -> None:
        """Open a core; what fell due meanwhile happens."""
        opened, self._over = trio.Event(), trio.Event()
        self._closed = trio.Event()

        async def live() -> None:
            settings = {
                "tasks": {"worker_tasks": ROOM},
                "grpc": {"write_timeout_s": 0},
                "log": {"retention_sweep_s": 1e9},
                "audit": {"enabled": False},  # it looks at its log every 10 seconds, for 30 days
            }
            async with self.world.open(clock=self.clock, **settings) as self.core:
                let_manage(self.core, NAMES["manager"])
                opened.set()
                await self._over.wait()
            self._closed.set()

        self.nursery.start_soon(live)
        began = self.model.now
        await opened.wait()
        self.model.excuse(began)
        await self._settle()
        self.model.pass_to(self.clock.now_ms())

    async def restart(self, away_ms: int, *, crash: bool) -> None:
        """The gateway ends, and is back after a while. A crash writes nothing any more."""
        self.model.pass_to(self.clock.now_ms())
        self.links.clear()
        if crash:
            self.world.fail()
        else:
            # One after another: who goes last is given what the others had.
            for session in list(self.core.registry):
                session.end(Status.UNAVAILABLE, "restart")
                await self._gone(session.identity.text, by_gateway=True)
            self.model.pass_to(self.clock.now_ms())
        self._over.set()
        await self._closed.wait()
        await trio.sleep(away_ms / 1000)
        self.model.now = self.clock.now_ms()
        if crash:
            for name in sorted(self.model.hands):
                self.model.leave(name, by_gateway=True)
        await self.start()

    async def _settle(self) -> None:
        for _ in range(3):
            await pump(30)
            await self.core.tasks.engine.writes.flush()
            await self.core.tasks.engine.collect_child_events()
        await pump(30)

    # -- participants ------------------------------------------------------------------------------

    async def connect(self, who: str, *, back: bool = False, first: bool = False) -> None:
        """Connect a participant that is not connected."""
        if who in self.links:
            return
        hello = agent(*PEOPLE[who], resume_session_id="before" if back else "")
        link = self.links[who] = MemoryLink()
        self.nursery.start_soon(self.core.sessions.serve, link)
        link.send(hello)
        await link.next("connection_ack")
        await self._settle()
        self.model.now = self.clock.now_ms()
        self.model.join(NAMES[who], PEOPLE[who][1] if PEOPLE[who][0] == "w" else "elsewhere", back=back)
        if who == "creator":
            for name in self.order:
                if name in self.model.jobs:
                    await self._follow(name, replay=True)
        if first:
            op = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="k", data=b"x", request_id="save")
            link.send(pb.UpstreamMessage(checkpoint_op=op))
            assert (await link.next("checkpoint")).checkpoint.success

    async def disconnect(self, who: str, *, clean: bool) -> None:
        link = self.links.pop(who, None)
        if link is None:
            return
        if clean:
            link.finish()
        else:
            link.cut()
        await self._gone(NAMES[who], clean=clean)

    async def _gone(self, name: str, *, clean: bool = False, by_gateway: bool = False) -> None:
        while self.core.registry.holder(name) is not None:
            await trio.lowlevel.checkpoint()
        await self._settle()
        self.model.now = self.clock.now_ms()
        self.model.leave(name, clean=clean, by_gateway=by_gateway)

    async def _ask(self, who: str, case: str, message: Any) -> Any:
        answer = "task_subscription_response" if case == "task_subscription_op" else case
        link = self.links[who]
        before = self.clock.now_ms()
        link.send(pb.UpstreamMessage(**{case: message}))
        while not (found := link.waiting(answer)):
            assert link.ended is None, link.ended
            await trio.lowlevel.checkpoint()
        link._downstream.remove(found[0])
        await self._settle()
        assert self.clock.now_ms() == before, "an answer that takes time cannot be compared"
        self.model.now = before
        return getattr(found[0], answer)

    async def _follow(self, name: str, *, replay: bool = False) -> None:
        op = pb.TaskSubscriptionOperation(
            op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=name, start_timestamp_unix_ms=1 if replay else 0
        )
        answer = await self._ask("creator", "task_subscription_op", op)
        assert answer.success, answer.error
        self.heard[name] = []

    # -- steps -------------------------------------------------------------------------------------

    def pick(self, number: int) -> str | None:
        """One of the latest tasks that there are."""
        there = [name for name in self.order if name in self.model.jobs][-self.window :]
        return there[number % len(there)] if there else None

    async def step(self, step: Step) -> None:
        """Do one, and compare."""
        self.story.append(f"{self.clock.now_ms() % 10_000_000_000}: {step}")
        await getattr(self, f"_step_{step[0]}")(*step[1:])
        await self._pass(0)  # what was asked for may be late already
        self.compare()
        await self._pass(3)

    async def _pass(self, ms: int) -> None:
        with rare_looks(self.core) if self.rare_looks and ms >= LONG_MS else nullcontext():
            await trio.sleep(ms / 1000)
        while self.clock.now_ms() in map(self.model.next_due, self.model.jobs.values()):
            await trio.sleep(0.001)  # a moment that is neither before nor after it
        await self._settle()
        self.model.pass_to(self.clock.now_ms())

    _step_pass = _pass

    async def _step_connect(self, who: str, back: bool) -> None:
        await self.connect(who, back=back)

    async def _step_disconnect(self, who: str, clean: bool) -> None:
        await self.disconnect(who, clean=clean)

    async def _step_restart(self, away_ms: int, crash: bool) -> None:
        await self.restart(away_ms, crash=crash)
        await self.connect("creator")

    async def _step_create(
        self, mode: str, who: str, kind: int, priority: int, policy: int, deadline: int, parent: int, key: int
    ) -> None:
        request = pb.CreateTaskRequest(
            task_type="work", workspace="w", request_id=f"c{next(self._ids)}", task_class=kind, priority=priority
        )
        parent_name = self._parent(parent)
        job = Job("", len(self.order), mode, NAMES["creator"], 0, priority=priority, kind=kind, parent=parent_name)
        request.parent_task_id = parent_name
        if POLICIES[policy] is not None:
            job.attempts, job.delays = POLICIES[policy]  # type: ignore[misc]
            backoff = pb.BACKOFF_STRATEGY_EXPLICIT_SCHEDULE
            retries = pb.RetryPolicy(max_attempts=job.attempts, backoff=backoff, schedule_ms=job.delays)
            request.retry_policy.CopyFrom(retries)
        job.limits = DEADLINES[deadline]
        for field, ms in job.limits.items():
            request.metadata[field] = str(ms)
        if mode == "pool":
            request.assignment_mode, request.target_implementation, job.pool = pb.POOL, "i", "i"
        elif mode == "targeted":
            request.assignment_mode, request.target_agent_id, job.target = pb.TARGETED, NAMES[who], NAMES[who]
            offline = "QUEUE" if kind % 2 else "REJECT"
            request.target_offline_policy = pb.TargetOfflinePolicy.Value(f"TARGET_OFFLINE_POLICY_{offline}")
        if key:
            request.idempotency_key = str(key)
        answer = await self._ask("creator", "create_task", request)
        if key in self.keys:
            task_id, first = self.keys[key]
            request.request_id = first.request_id
            assert answer.success == (request == first), answer.error_message
            assert answer.task_id == (task_id if answer.success else "")
            return
        if mode == "targeted" and kind % 2 == 0 and NAMES[who] not in self.model.hands:
            assert not answer.success
            assert answer.error_code == "ERR_TASK_CREATE_FAILED"
            return
        assert answer.success, answer.error_message
        job.name = answer.task_id
        if key:
            self.keys[key] = job.name, request
        self.order.append(job.name)
        self.model.create(job)
        await self._follow(job.name)

    def _parent(self, number: int) -> str:
        name = self.pick(number) if number else None
        return name if name is not None and not self.model.jobs[name].over else ""

    async def _step_op(self, who: str, verb: str, task: int) -> None:
        op = pb.TaskOperation(op=OPS[verb], request_id="o")
        await self._operate(who, verb, task, op, None)

    async def _step_pause(
        self, who: str, reason: str, task: int, others: Sequence[int], any_one: bool, timeout: int, wake: int, esc: str
    ) -> None:
        name = self.pick(task)
        deps: tuple[str, ...] = ()
        if reason == "dependency":
            found = dict.fromkeys(other for other in map(self.pick, others) if other is not None and other != name)
            deps = tuple(found)
        wake_ms = self.clock.now_ms() + wake if wake else 0
        wait = Waiting(reason, deps, any_one, timeout, wake_ms, esc if reason == "hibernation" else "")
        op = pb.TaskOperation(op=pb.TaskOperation.PAUSE, request_id="o")
        spec = op.wait_spec
        spec.reason = REASONS[reason]
        spec.depends_on.extend(deps)
        spec.wake_on_any, spec.timeout_ms, spec.scheduled_wake_unix_ms = any_one, timeout, wake_ms
        if reason == "hibernation":
            spec.hibernation.checkpoint_key, spec.hibernation.escalation_policy = "k", esc
        if deps and timeout % 2:
            op.op = pb.TaskOperation.WAIT_FOR
        await self._operate(who, "pause", task, op, wait)

    async def _operate(self, who: str, verb: str, task: int, op: pb.TaskOperation, wait: Waiting | None) -> None:
        name = self.pick(task)
        if name is None or who not in self.links:
            return
        op.task_id, op.reason = name, "because"
        job = self.model.jobs[name]
        answer = await self._ask(who, "task_op", op)
        if who == "outsider":
            assert (answer.success, answer.error) == (False, "task not found")
            return
        if wait is not None and wait.reason == "hibernation" and not job.worker:
            assert not answer.success
            return
        refusal = ""
        try:
            self.model.ask(NAMES[who], verb, name, reason="because" if verb in REASONED else "", wait=wait)
        except No as no:
            refusal = str(no)
        assert answer.success == (not refusal), f"{verb} by {who}: {answer.error!r}, and the model says {refusal!r}"
        assert refusal in answer.error
        if answer.success:
            assert answer.task.status == WIRE[self.model.jobs[name].status]

    async def _step_report(self, who: str, task: int) -> None:
        name = self.pick(task)
        if name is None or who not in self.links or who == "outsider":
            return
        word = f"p{next(self._ids)}"
        link = self.links[who]
        link.send(pb.UpstreamMessage(progress=pb.ProgressReport(task_id=name, state=word, completion=0.5)))
        await self._settle()
        self.model.now = self.clock.now_ms()
        believed = self.model.report(NAMES[who], name, word)
        words = "is over", "has ended"
        errors = [one for one in link.waiting("error") if any(word in one.error.message for word in words)]
        for one in errors:
            link._downstream.remove(one)
        assert len(errors) == (0 if believed else 1)

    # -- comparing ---------------------------------------------------------------------------------

    def compare(self) -> None:
        """Everything that can be seen against the model."""
        query = self.world.databases["tasks"].query
        rows = {row[0]: row[1:] for row in query(_ROWS)}
        jobs = self.model.jobs
        wanted = {
            name: (
                *(job.status, job.epoch, job.worker, job.failures, job.retry_at, job.pending, job.started),
                *(job.missing, job.by, self.model.next_due(job), job.updated, job.deliveries, int(job.begun)),
            )
            for name, job in jobs.items()
        }
        assert rows == wanted, {
            name: (rows.get(name), wanted.get(name)) for name in {*rows, *wanted} if rows.get(name) != wanted.get(name)
        }
        counts = dict(query("SELECT identity, live FROM task_workers"))
        assert counts == {name: self.model.busy(name) for name in self.model.hands}, counts
        events: dict[str, list[tuple[int, tuple[object, ...]]]] = defaultdict(list)
        for name, number, event in query("SELECT task_id, number, event FROM task_events ORDER BY task_id, number"):
            events[name].append((number, _shown(pb.TaskEvent.FromString(bytes(event)))))
        epochs: dict[str, list[int]] = defaultdict(list)
        for name, epoch, node in query(_EPOCHS):
            # A worker whose node has ended may be given what that node would have sent.
            if not node or node == self.core.tasks.engine.nodes.node:
                epochs[name].append(epoch)
        assert {*events, *epochs} <= set(jobs), "what is left of tasks that are forgotten"
        for name, job in jobs.items():
            assert_same([shown for _, shown in events[name]], job.events)
            assert [number for number, _ in events[name]] == list(range(1, len(job.events) + 1))
            assert epochs[name] == list(range(1, job.epoch + (not job.worker)))
        self._compare_pushed()
        letters = {row[0] for row in query("SELECT task_id FROM task_dead_letters WHERE resolved_ms = 0")}
        assert letters == {name for name, job in jobs.items() if job.status == "dlq"}

    def _compare_pushed(self) -> None:
        for who, link in self.links.items():
            hand = self.model.hands[NAMES[who]]
            given = [message.task_assignment.task_id for message in link.waiting("task_assignment")]
            assert sorted(given) == sorted(hand.given), f"what {who} was given: {given}, not {hand.given}"
        creator = self.links.get("creator")
        if creator is None:
            return
        for message in creator.waiting("task_event"):
            event = message.task_event
            self.heard.setdefault(event.task_id, []).append(_shown(event))
            creator._downstream.remove(message)
        for name in self.order:
            if name in self.model.jobs:
                assert_same(self.heard[name], self.model.jobs[name].events)


_EPOCHS: Final = """SELECT task_id, epoch, CASE WHEN pushed = 0 AND ended_ms = 0 THEN node ELSE '' END FROM task_attempts
    ORDER BY task_id, epoch"""
_ROWS: Final = """SELECT task_id, status, epoch, assigned_to, retry_count, next_retry_ms, pending_ms, started_ms, disconnected_ms,
    ended_by, due_ms, updated_ms, deliveries, begun FROM tasks"""


def assert_same(seen: Sequence[tuple[object, ...]], wanted: Sequence[tuple[object, ...]]) -> None:
    """Events are as the model has them; of a reason the model knows a word."""
    assert len(seen) == len(wanted), (seen, wanted)
    for one, other in zip(seen, wanted, strict=True):
        if one[0] == "status":
            assert one[:3] == other[:3], (seen, wanted)
            assert str(other[3]) in str(one[3])
            assert bool(one[3]) == bool(other[3]), (one, other)
        else:
            assert one == other, (seen, wanted)


def _shown(event: pb.TaskEvent) -> tuple[object, ...]:
    kind = event.WhichOneof("event")
    if kind == "status_changed":
        changed = event.status_changed
        return ("status", changed.from_status, changed.to_status, changed.reason)
    if kind == "child_lifecycle":
        child = event.child_lifecycle
        return ("child", child.child_task_id, child.child_status, child.lifecycle)
    return ("progress", event.progress.state)


@contextmanager
def nothing_but_tasks() -> Iterator[None]:
    """Let only tasks wake the gateway, or a month of virtual time would take minutes."""
    looks = (
        (topic_log, "PROBE_S"),
        (kv, "SWEEP_INTERVAL_S"),
        (kv_events, "LOOK_S"),
        (last_seen, "SWEEP_INTERVAL_S"),
        (renewal, "LOOK_S"),
        (endings, "LOOK_S"),
        (expiry, "LONGEST_S"),
        (decision_log, "FOLD_S"),
        (resource_owners, "REFRESH_S"),
        (conversations, "LOOK_S"),
        (checkpoints, "SWEEP_INTERVAL_S"),
        (timer, "CHECK_S"),
        (engine, "CHECK_S"),
    )
    with ExitStack() as stack:
        for module, name in looks:
            stack.enter_context(mock.patch.object(module, name, 10_000.0))
        yield


@contextmanager
def rare_looks(core: Core) -> Iterator[None]:
    """Have a node on a shared database look for access data every few hours.

    For a long wait in which nothing changes them. It looks at once at the end, and each second from
    then on.
    """
    with mock.patch.multiple(changes, LOOK_S=10_000.0, STALE_S=30_000.0):
        core.changes._look.set()
        try:
            yield
        finally:
            core.changes._look.set()


@asynccontextmanager
async def open_play(store: Store) -> AsyncIterator[Play]:
    """A gateway with a creator, two workers, a manager and an outsider."""
    with open_world(store) as world:
        async with trio.open_nursery() as nursery:
            play = Play(world, nursery)
            await play.start()
            for who in PEOPLE:
                await play.connect(who, first=True)
            yield play
            nursery.cancel_scope.cancel()


async def run_steps(store: Store, steps: Sequence[Step]) -> None:
    """All of them; a failure tells what was done before."""
    async with deadlock_is_an_error(), open_play(store) as play:
        try:
            for step in steps:
                await play.step(step)
        except AssertionError as error:
            error.add_note("\n".join(play.story))
            raise
