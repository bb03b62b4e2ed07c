"""Every task ends while answers are lost and databases and gateways fail.

test_random_steps.py says exactly what each step does, which it can as nothing fails there. Here
everything fails, so this says less of each step: laws that hold after all of them, of what is
stored and of what participants were told.

* A task ends once. Out of an end leads a retry that its policy or a participant asked for, and no
event is told twice.
* It is begun no more often than its policy and those who had it tried again allow; given to workers
that never CLAIM, no more often either.
* An input ends one wait, or is kept for one, or its task has ended. No wait goes on that a kept
input would end.
* What the gateway has answered is so, also when a commit was not answered.
* Whose worker is away has a moment at which it ends; no task waits while a worker of its pool has
room.
* A worker that reports while storage or the gateway is away keeps its task.

TESTS_FULL=1 for many more examples.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import partial
from itertools import count
from typing import Any, Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, let_manage, message_to, open_world, pump, run_in_virtual_time
from tests.helpers.direct import Store
from tests.services.tasks.peers import Op, answer
from tests.tasks.play import OPS, ROOM, WholeClock

FULL = os.environ.get("TESTS_FULL") == "1"
EXAMPLES = 2_000 if FULL else 80

PEOPLE: Final = {"boss": ("c", "1"), "a": ("i", "a"), "b": ("i", "b"), "silent": ("i", "s"), "operator": ("m", "1")}
NAMES: Final = {who: f"ag::w::{implementation}::{own}" for who, (implementation, own) in PEOPLE.items()}
SHORT: Final = {name: who for who, name in NAMES.items()}
"""The pool is `i`; `silent` never claims, as the published blocking client."""
POLICIES: Final = ((3, None), (1, (1_000,)), (2, (500,)), (3, (700, 61_000)))
"""Attempts and delays."""
DEADLINES: Final = ({}, {"heartbeat_timeout_ms": 4_031}, {"start_to_close_ms": 3_023}, {"schedule_to_start_ms": 2_011})
HOW: Final = ("plain", "plain", "unanswered", "unanswered", "cut", "twice")
ANSWER_S: Final = 30
"""Of virtual time: no answer takes so long while storage answers."""
ASKED_AGAIN_MS: Final = 1_000
"""More than the gateway takes to find out what became of a commit."""
ENDS: Final = {3, 4, 5, 10}
QUEUED, RUNNING, WAITING = pb.TASK_STATUS_QUEUED, pb.TASK_STATUS_RUNNING, pb.TASK_STATUS_WAITING_INPUT
LIVE: Final = {"assigned", "running"}
FINAL: Final = {"completed", "cancelled", "rejected", "dlq"}
TASK = st.integers(0, 3)
WORKERS = st.sampled_from(["a", "b", "silent"])
STEPS = st.one_of(
    st.tuples(
        st.just("create"),
        st.sampled_from(["pool", "pool", "pool", "self"]),
        st.integers(0, len(POLICIES) - 1),
        st.sampled_from([0, 0, *range(len(DEADLINES))]),
        st.sampled_from(HOW),
    ),
    st.tuples(st.just("work"), TASK, st.sampled_from(["claim", "claim", "report", "fail", "complete"]), st.sampled_from(HOW)),
    st.tuples(st.just("work"), TASK, st.sampled_from(["claim", "report", "fail"]), st.sampled_from(HOW)),
    st.tuples(st.just("manage"), TASK, st.sampled_from(["retry", "retry", "resume", "cancel"]), st.sampled_from(HOW)),
    st.tuples(st.just("requeue"), TASK),
    st.tuples(st.just("pause"), TASK, st.sampled_from(["", "a", "b"]), st.sampled_from(HOW)),
    st.tuples(st.just("pause"), TASK, st.sampled_from(["", "a", "b"]), st.sampled_from(HOW)),
    st.tuples(st.just("give"), TASK, st.sampled_from(["a", "b"])),
    st.tuples(st.just("pause"), TASK, st.sampled_from(["", "a", "b"]), st.sampled_from(HOW)),
    st.tuples(st.just("give"), TASK, st.sampled_from(["a", "b"])),
    st.tuples(st.just("pass"), st.sampled_from([40, 1_013, 31_019, 61_003])),
    st.tuples(st.just("leave"), WORKERS, st.booleans()),
    st.tuples(st.just("come"), WORKERS, st.booleans()),
    st.tuples(st.just("come"), WORKERS, st.booleans()),
    st.tuples(st.just("outage"), st.sampled_from([700, 12_300, 61_600]), st.booleans(), st.booleans()),
    st.tuples(st.just("restart"), st.sampled_from([10, 40_003, 3_300_007]), st.booleans(), st.booleans()),
)  # fmt: skip


BEFORE: Final = (
    ("create", "pool", 3, 1, "plain"),
    ("create", "pool", 0, 0, "plain"),
    ("work", 0, "claim", "plain"),
    ("work", 1, "report", "plain"),
)
"""Two tasks are begun, so that each step has something to do from the first one on."""


class Ledger:
    """What participants have asked of one task, and were told."""

    def __init__(self, attempts: int, deadlines: dict[str, int]) -> None:
        self.attempts = attempts
        self.deadlines = deadlines
        self.retries = 0
        """How often a participant asked for another try, each message counted."""
        self.resumes = 0
        self.given = 0
        self.words: list[str] = []
        self.told: set[str] = set()
        """Ends that a participant was told of."""


class Faults:
    """A gateway, its participants, and the ledgers. `story` is what was done."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.nursery = nursery
        self.clock = WholeClock()
        self.core: Core
        self.links: dict[str, MemoryLink] = {}
        self.remembers: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """The assignments that each client, over its reconnects, has begun."""
        self.ledgers: dict[str, Ledger] = {}
        self.story: list[str] = []
        self._ids = count(1)

    # -- the gateway -------------------------------------------------------------------------------

    async def start(self) -> None:
        opened, self._over, self._closed = trio.Event(), trio.Event(), trio.Event()
        changes = {"tasks": {"worker_tasks": ROOM}, "grpc": {"write_timeout_s": 0}, "log": {"retention_sweep_s": 1e9}}

        async def live() -> None:
            async with self.world.open(clock=self.clock, **changes) as self.core:
                let_manage(self.core)  # the operator retries, resumes, cancels tasks of others
                opened.set()
                await self._over.wait()
            self._closed.set()

        self.nursery.start_soon(live)
        await opened.wait()

    async def settle(self) -> None:
        for _ in range(3):
            await pump(20)
            await self.core.tasks.engine.writes.flush()
        await pump(20)

    def query(self, sql: str, *args: Any) -> list[Any]:
        return self.world.databases["tasks"].query(sql, *args)

    def row(self, task_id: str) -> tuple[str, str, int]:
        """(status, worker, assignment)."""
        [found] = self.query("SELECT status, assigned_to, epoch FROM tasks WHERE task_id = $1", task_id)
        return found[0], found[1], found[2]

    def kept(self, task_id: str) -> list[str]:
        """The inputs that no wait has used."""
        found = self.query("SELECT metadata FROM task_inputs WHERE task_id = $1", task_id)
        return [json.loads(metadata)["form"] for (metadata,) in found]

    # -- participants ------------------------------------------------------------------------------

    async def connect(self, who: str, *, back: bool) -> None:
        if who in self.links:
            return
        if not back:
            self.remembers[who].clear()
        link = MemoryLink()
        self.nursery.start_soon(self.core.sessions.serve, link)
        link.send(agent("w", *PEOPLE[who], resume_session_id="before" if back else ""))
        await link.next("connection_ack")
        self.links[who] = link

    async def leave(self, who: str, *, clean: bool) -> None:
        link = self.links.pop(who, None)
        if link is not None:
            if clean:
                link.finish()
            else:
                link.cut()
            while self.core.registry.holder(NAMES[who]) is not None:
                await trio.sleep(0.001)

    async def ask(self, who: str, case: str, message: Any, how: str) -> Any:
        """Ask, and ask again until the answer has come.

        An answer that says that storage is away is none.
        """
        tasks = self.world.databases["tasks"]
        tasks.unanswered_writes = tasks.side.unanswered_writes = int(how == "unanswered")
        if how == "cut":
            self.links[who].send(pb.UpstreamMessage(**{case: message}))
            await pump(len(self.story) % 4 * 15)
            await self.leave(who, clean=False)
            await self.connect(who, back=True)
        link = self.links[who]
        for _ in range(2 if how == "twice" else 1):
            link.send(pb.UpstreamMessage(**{case: message}))
        while True:
            with trio.fail_after(ANSWER_S):
                found = await answer(link, case, message.request_id)
            if not _says_away(found):
                tasks.unanswered_writes = tasks.side.unanswered_writes = 0
                return found
            link._downstream.clear()
            link.send(pb.UpstreamMessage(**{case: message}))

    # -- steps -------------------------------------------------------------------------------------

    def pick(self, number: int, statuses: Collection[str] = ()) -> str | None:
        """One of the latest tasks, if there is one of these statuses."""
        there = [one for one in self.ledgers if not statuses or self.row(one)[0] in statuses][-4:]
        return there[number % len(there)] if there else None

    async def step(self, step: tuple[Any, ...]) -> None:
        self.story.append(f"{self.clock.now_ms() % 10_000_000_000}: {step}")
        await getattr(self, f"_step_{step[0]}")(*step[1:])
        await self.settle()
        self.check()
        await trio.sleep(0.003)

    async def _step_create(self, mode: str, policy: int, deadline: int, how: str) -> None:
        attempts, delays = POLICIES[policy]
        number = f"c{next(self._ids)}"
        request = pb.CreateTaskRequest(task_type="work", request_id=number, idempotency_key=number)
        if delays is not None:
            backoff = pb.BACKOFF_STRATEGY_EXPLICIT_SCHEDULE
            request.retry_policy.CopyFrom(pb.RetryPolicy(max_attempts=attempts, backoff=backoff, schedule_ms=delays))
        for name, ms in DEADLINES[deadline].items():
            request.metadata[name] = str(ms)
        if mode == "pool":
            request.assignment_mode, request.target_implementation = pb.POOL, "i"
        told = await self.ask("boss", "create_task", request, how)
        assert told.success, told.error_message
        self.ledgers[told.task_id] = Ledger(attempts, DEADLINES[deadline])

    async def _step_work(self, number: int, verb: str, how: str) -> None:
        """The worker of a task does something with it."""
        task_id = self.pick(number, LIVE)
        if task_id is None:
            return
        status, name, epoch = self.row(task_id)
        who = SHORT.get(name, "boss")
        if who not in self.links or status not in LIVE or (who == "silent" and verb == "claim"):
            return
        if verb == "report":
            self.world.databases["tasks"].unanswered_writes = int(how == "unanswered")
            self.report(who, task_id)
            await trio.sleep(1)
            self.world.databases["tasks"].unanswered_writes = 0
        else:
            await self.operate(who, task_id, verb, how)
        if verb in ("claim", "report"):
            self.remembers[who].add((task_id, epoch))

    def report(self, who: str, task_id: str) -> None:
        self.ledgers[task_id].words.append(word := f"p{next(self._ids)}")
        self.links[who].send(pb.UpstreamMessage(progress=pb.ProgressReport(task_id=task_id, state=word)))

    async def _step_manage(self, number: int, verb: str, how: str) -> None:
        statuses = {"retry": ("failed", "cancelled", "dlq"), "resume": ("waiting_input", "assigned", "running")}
        task_id = self.pick(number, statuses.get(verb, ())) or self.pick(number)
        if task_id is not None:
            await self.operate("operator", task_id, verb, how)

    async def operate(self, who: str, task_id: str, verb: str, how: str, wait: pb.WaitSpec | None = None) -> None:
        status, _, _ = self.row(task_id)
        [(due_ms,)] = self.query("SELECT due_ms FROM tasks WHERE task_id = $1", task_id)
        if how == "unanswered" and 0 < due_ms <= self.clock.now_ms() + ASKED_AGAIN_MS:
            how = "plain"  # time would move the task while the gateway makes it again
        ledger = self.ledgers[task_id]
        ledger.retries += verb == "retry"
        ledger.resumes += verb == "resume"
        op = Op(
            op=OPS.get(verb, Op.PAUSE), task_id=task_id, request_id=f"o{next(self._ids)}", reason=verb, wait_spec=wait
        )
        told = await self.ask(who, "task_op", op, how)
        if how in ("plain", "unanswered"):
            possible = {
                "claim": LIVE,
                "complete": LIVE,
                "fail": LIVE,
                "pause": {"running", "waiting_input"},
                "retry": {"failed", "cancelled", "dlq"},
                "resume": {"waiting_input", *LIVE},
                "cancel": {"pending", "waiting_input", "dlq", *LIVE},
            }[verb]
            assert told.success == (status in possible) or (verb == "cancel" and status in ("failed", "cancelled")), (
                f"{verb} by {who} of one that is {status}: {told}"
            )  # fmt: skip
        if told.success and verb == "complete":
            ledger.told.add("completed")

    async def _step_requeue(self, number: int) -> None:
        task_id = self.pick(number)
        if task_id is not None:
            self.ledgers[task_id].retries += await DeadLetters(self.core.tasks.engine).requeue(task_id, "operator")

    async def _step_pause(self, number: int, match: str, how: str) -> None:
        task_id = self.pick(number, {"running"})
        if task_id is None:
            return
        status, name, _ = self.row(task_id)
        who = SHORT.get(name, "boss")
        if status == "running" and who in self.links:
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, input_match={"form": match} if match else {})
            there = any(not match or form == match for form in self.kept(task_id))
            await self.operate(who, task_id, "pause", how, wait)
            if there:  # also when it is asked for again, and another input has not come
                assert self.row(task_id)[0] == "running", f"{task_id} waits for what was there"

    async def _step_give(self, number: int, form: str) -> None:
        """An input, whether the task waits for it or not."""
        task_id = self.pick(number, {"running", "waiting_input"})
        if task_id is not None:
            await self.give(task_id, form)

    async def give(self, task_id: str, form: str) -> None:
        payload = json.dumps({"metadata": {"form": form}}).encode()
        self.links["boss"].send(message_to(f"tk::w::{task_id}::input", payload))
        self.ledgers[task_id].given += 1
        await trio.sleep(1)

    async def _step_pass(self, ms: int) -> None:
        await trio.sleep(ms / 1000)

    async def _step_leave(self, who: str, clean: bool) -> None:
        await self.leave(who, clean=clean)

    async def _step_come(self, who: str, back: bool) -> None:
        await self.connect(who, back=back)

    def at_work(self) -> dict[tuple[str, int], str]:
        """Tasks of connected clients that know of them, and that no deadline ends."""
        running = self.query("SELECT task_id, epoch, assigned_to FROM tasks WHERE status = 'running'")
        return {
            (task_id, epoch): SHORT[name]
            for task_id, epoch, name in running
            if SHORT[name] in self.links and (task_id, epoch) in self.remembers[SHORT[name]]
            if not {"start_to_close_ms"} & {*self.ledgers[task_id].deadlines}
        }

    def beat(self, at_work: dict[tuple[str, int], str]) -> None:
        """Let connected clients report what they have to report."""
        for (task_id, _), who in at_work.items():
            if who in self.links and "heartbeat_timeout_ms" in self.ledgers[task_id].deadlines:
                self.report(who, task_id)

    def still_there(self, before: dict[tuple[str, int], str]) -> None:
        for (task_id, epoch), who in before.items():
            assert self.row(task_id) == ("running", NAMES[who], epoch), (
                f"{who} was at work on {task_id}: {self.row(task_id)}"
            )

    async def _step_outage(self, ms: int, cuts: bool, gives: bool) -> None:
        """The database of the tasks is away.

        Workers go on and report; one may lose its connection meanwhile, an input may come.
        """
        await self.settle()
        before = self.at_work()
        cuts = cuts and "a" in self.links
        if cuts:
            await self.leave("a", clean=False)
            await self.settle()
        tasks = self.world.databases["tasks"]
        tasks.failing = True
        until = self.clock.now_ms() + ms
        if gives and self.ledgers:
            await self.give(list(self.ledgers)[-1], "a")
        while self.clock.now_ms() < until:
            self.beat(before)
            await trio.sleep(min(3.0, (until - self.clock.now_ms()) / 1000 + 0.001))
        tasks.failing = False
        if cuts:  # no participant is let in while it is away
            await self.connect("a", back=True)
        self.beat(before)
        await trio.sleep(2)
        await self.settle()
        self.still_there(before)

    async def _step_restart(self, away_ms: int, crash: bool, return_at_once: bool) -> None:
        """The gateway is away; its clients come back, at once or when a step says so."""
        await self.settle()
        before = self.at_work()
        there = list(self.links)
        self.links.clear()
        if crash:
            self.world.fail()
        self._over.set()
        await self._closed.wait()
        await trio.sleep(away_ms / 1000)
        await self.start()
        for who in there if return_at_once else ("boss", "operator"):
            await self.connect(who, back=True)
        await self.settle()
        if return_at_once:
            self.still_there(before)

    # -- laws --------------------------------------------------------------------------------------

    def check(self) -> None:
        rows = self.query(
            "SELECT task_id, status, assigned_to, epoch, retry_count, max_attempts, next_retry_ms, due_ms, disconnected_ms, wait "
            "FROM tasks ORDER BY task_id"
        )
        assert {row[0] for row in rows} == {*self.ledgers}
        events: dict[str, list[pb.TaskEvent]] = defaultdict(list)
        for task_id, event in self.query("SELECT task_id, event FROM task_events ORDER BY task_id, number"):
            events[task_id].append(pb.TaskEvent.FromString(bytes(event)))
        present = dict(self.query("SELECT identity, live FROM task_workers"))
        assert {*present} == {NAMES[who] for who in self.links}
        live = Counter[str]()
        for task_id, status, name, _epoch, *_, due_ms, missing_ms, wait in rows:
            self.check_history(task_id, status, events[task_id])
            self.check_inputs(task_id, status, wait, events[task_id])
            assert not due_ms or due_ms > self.clock.now_ms() - 1_500, f"{task_id} is overdue"
            if status in LIVE and name not in present:
                assert missing_ms > 0, f"{task_id} of {name}, who is away, has no grace"
                assert due_ms > 0
            live[name] += status in LIVE and name != NAMES["boss"]
        for who in ("a", "b", "silent"):
            if NAMES[who] in present:
                assert present[NAMES[who]] == live[NAMES[who]]
                if any(status == "pending" for _, status, *_ in rows):
                    assert live[NAMES[who]] >= ROOM, f"a task waits, and {who} has room"

    def check_history(self, task_id: str, status: str, events: list[pb.TaskEvent]) -> None:
        ledger = self.ledgers[task_id]
        words = [event.progress.state for event in events if event.HasField("progress")]
        assert len({*words}) == len(words), f"progress was told twice: {words}"
        assert {*words} <= {*ledger.words}
        changes = [event.status_changed for event in events if event.HasField("status_changed")]
        steps = [(change.from_status, change.to_status) for change in changes]
        again = begun = buried = 0
        at = QUEUED
        for before, after in steps:
            assert before == at, f"{task_id}: {steps}"
            if before in ENDS and after not in ENDS:
                assert before in (pb.TASK_STATUS_FAILED, pb.TASK_STATUS_CANCELLED)
                assert after == QUEUED
                again += 1
            elif before in ENDS:
                assert (before, after) in {(4, 4), (4, 5)}, f"{task_id} ended twice: {steps}"
            begun += (before, after) == (QUEUED, RUNNING)
            buried += (before, after) == (4, 4)
            at = after
        # Each try that a participant asks for is one more; of a dead letter it is all of them.
        bound = ledger.attempts * (1 + ledger.retries)
        assert begun <= bound, f"{task_id} was begun {begun} times of {ledger.attempts}: {steps}"
        assert again <= bound - 1, f"{task_id} was queued again {again} times: {steps}"
        if not ledger.retries:
            failed = sum(after == pb.TASK_STATUS_FAILED and before != after for before, after in steps)
            assert failed <= ledger.attempts
        assert not ledger.told or status in ledger.told, f"{task_id} is {status}, and {ledger.told} was answered"

    def check_inputs(self, task_id: str, status: str, wait: str, events: list[pb.TaskEvent]) -> None:
        ledger = self.ledgers[task_id]
        kept = self.kept(task_id)
        changes = [event.status_changed for event in events if event.HasField("status_changed")]
        ended = sum((one.from_status, one.to_status) == (WAITING, RUNNING) for one in changes)
        over = any(change.to_status in ENDS for change in changes)
        used = ledger.given - len(kept)
        assert used >= ended - ledger.resumes, f"{task_id}: {used} inputs used, {ended} waits ended"
        assert over or used <= ended, f"{task_id}: {used} inputs used, {ended} waits ended"
        if status == "waiting_input":
            match = json.loads(wait).get("input_match", {})
            assert not any(match.get("form", one) == one for one in kept), f"{task_id} waits for what is there: {kept}"

    # -- the end -----------------------------------------------------------------------------------

    async def come_to_an_end(self) -> None:
        """Connect all clients and let them work until every task has ended."""
        for who in PEOPLE:
            await self.connect(who, back=False)
        for _ in range(12):
            await trio.sleep(62)
            await self.settle()
            self.check()
            open_ones = self.query("SELECT task_id, status, assigned_to, next_retry_ms FROM tasks ORDER BY task_id")
            for task_id, status, name, _ in open_ones:
                if status == "waiting_input":
                    await self.operate("operator", task_id, "resume", "plain")
                elif status in LIVE and self.row(task_id)[1] == name:
                    who = SHORT[name]
                    if who != "silent":
                        await self.operate(who, task_id, "claim", "plain")
                    await self.operate(who, task_id, "complete", "plain")
        for task_id in self.ledgers:
            [(status, retry_ms)] = self.query("SELECT status, next_retry_ms FROM tasks WHERE task_id = $1", task_id)
            assert status in FINAL or (status == "failed" and not retry_ms), f"{task_id} is {status} for ever"


def _says_away(found: Any) -> bool:
    text = found.error_message if isinstance(found, pb.CreateTaskResponse) else found.error
    return not found.success and "storage" in text


async def run(store: Store, steps: list[tuple[Any, ...]]) -> None:
    with open_world(store) as world:
        async with trio.open_nursery() as nursery:
            faults = Faults(world, nursery)
            try:
                await faults.start()
                for who in PEOPLE:
                    await faults.connect(who, back=False)
                await faults.settle()
                for step in (*BEFORE, *steps):
                    await faults.step(step)
                await faults.come_to_an_end()
            except (AssertionError, StreamEnded, StorageUnavailable, trio.TooSlowError) as error:
                error.add_note("\n".join(faults.story))
                raise
            nursery.cancel_scope.cancel()


@pytest.mark.timeout(3_600 if FULL else 900)  # it shrinks for up to five minutes
def test_tasks_while_everything_fails(store: Store) -> None:
    @settings(max_examples=store.examples(EXAMPLES), print_blob=True, deadline=None)
    @given(st.lists(STEPS, min_size=10, max_size=30))
    def play(steps: list[tuple[Any, ...]]) -> None:
        run_in_virtual_time(partial(run, store, steps))

    play()


PLAIN: Final = ("create", "pool", 0, 0, "plain")
CASES: Final[dict[str, list[tuple[Any, ...]]]] = {
    "a report that waits for storage counts before its task's silence ends": [
        *[PLAIN] * 7,
        ("outage", 700, False, True),
        ("give", 0, "a"),
        ("create", "pool", 0, 0, "unanswered"),
        ("outage", 700, False, False),
    ],
    "a retry that is made again after its task's own moment": [
        ("requeue", 0),
        ("give", 0, "a"),
        ("requeue", 0),
        PLAIN,
        PLAIN,
        ("give", 0, "a"),
        ("create", "pool", 0, 3, "plain"),
        ("outage", 12_300, False, False),
        ("manage", 0, "retry", "unanswered"),
        PLAIN,
    ],
    "a cancel of a dead letter, which discards it": [
        ("create", "pool", 1, 0, "plain"),
        *[("requeue", 0)] * 2,
        ("work", 0, "claim", "plain"),
        ("requeue", 0),
        ("work", 0, "claim", "plain"),
        ("requeue", 0),
        PLAIN,
        ("work", 0, "claim", "plain"),
        ("work", 0, "claim", "unanswered"),
        ("pass", 31_019),
        ("restart", 3_300_007, False, False),
        ("come", "silent", False),
        ("requeue", 3),
        ("pass", 40),
        ("pass", 31_019),
        ("requeue", 0),
        ("manage", 2, "cancel", "unanswered"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_it_stays_found(store: Store, name: str) -> None:
    run_in_virtual_time(partial(run, store, CASES[name]))
