"""Do all that can happen to tasks in any order, on both engines.

What was decided is checked against the table of moves, what is stored against itself.

The machine makes the very transactions that handlers and sessions make, with a separate clock.
Before an operation it reads the row and asks the table what is to become of it; after every
transaction all the tables must agree with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import (
    Mode,
    Move,
    MoveStep,
    Reason,
    RefusedMove,
    Repeat,
    StoredStatus,
    TaskRow,
    Wait,
    decide,
)
from aether_trio.model.tasks.status import HELD, TERMINAL, WAITING
from aether_trio.model.tasks.timed_transitions import TimeLimits, next_due
from aether_trio.services.tasks.handlers import create as creating
from aether_trio.services.tasks.handlers.create import OfflinePolicy, new_task
from aether_trio.services.tasks.handlers.operate import OperationRequest, OperationResult, operate
from aether_trio.services.tasks.handlers.permissions import Caller, may_be_given
from aether_trio.services.tasks.transaction import due, sessions, task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.storage.base import Fetch, Program, single
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.direct import Place, Store

T = TypeVar("T")

LIMITS = TimeLimits()
CAPACITY = 2
CREATOR = Identity.agent("w", "c", "1")
WORKERS = [*(Identity.agent("w", "i", number) for number in "123"), Identity.service("i", "1"), CREATOR]
POLICIES = [None, pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=500)]
STEPS_MS = [0, 1, 1, 1, 500, 500, 500, 1_000, 1_000, 30_000, 3_600_000, 8 * 86_400_000]

workers = st.sampled_from(WORKERS)
callers = st.sampled_from([*WORKERS, Identity.agent("w", "x", "1")])
asked_moves = st.sampled_from(
    [Move.CLAIM, Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.RETRY, Move.PAUSE, Move.RESUME, Move.REJECT]
)
reasons = st.sampled_from([Reason.INPUT, Reason.AUTHORITY, Reason.DEPENDENCY, Reason.HIBERNATION])
picks = st.integers(0, 2**16)
CIRCLE = "neither would ever go on"


class TaskMachine(RuleBasedStateMachine):
    """See the module docstring."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.place: Place = self.store.place()
        self.database = self.place.direct("tasks")
        self.now_ms = 1_700_000_000_000
        self.node = "n1"
        self.ids: list[str] = []
        self.sessions: dict[Identity, str] = {}
        self.count = 0
        self.ended: dict[str, StoredStatus] = {}
        self.keys: dict[bytes, tuple[int, bytes]] = {}
        """When each key was first used, and for what."""

    def teardown(self) -> None:
        self.place.close()

    # -- running -----------------------------------------------------------------------------------

    def run(self, program: Callable[[Context], Program[T]]) -> T:
        self.now_ms += 1
        context = Context(self.now_ms, self.node, LIMITS)
        return self.database.drive(lambda: program(context))

    def tx(self, mutation: Callable[[TaskTransaction], Program[Any]]) -> TaskTransaction:
        def program(context: Context) -> Program[TaskTransaction]:
            tx = TaskTransaction(context)
            yield from mutation(tx)
            return tx

        tx = self.run(program)
        for task_id in tx.effects.unfinished:
            self.tx(lambda tx, task_id=task_id: tx.wake_dependents(task_id))  # type: ignore[misc]
        return tx

    def fetch(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.database.drive(lambda: single(Fetch(sql, args)))
        return found

    def load(self, task_id: str) -> TaskRow | None:
        return self.database.drive(lambda: task_rows.load(task_id))

    def held(self, number: int) -> tuple[TaskRow, Caller] | None:
        """One of the tasks that a worker has in hand, and this worker."""
        held = [task for task in map(self.load, self.ids) if task is not None and task.status in HELD]
        if not held:
            return None
        task = held[number % len(held)]
        return task, Caller(Identity.parse(task.assigned_to), "w")

    def pick(self, number: int) -> str:
        return self.ids[number % len(self.ids)]

    def closes_circle(self, task_id: str, wait: Wait) -> bool:
        """Whether a task would wait for its own end, itself or through others."""
        if wait.status is not StoredStatus.WAITING_DEPENDENCY:
            return False
        reached: set[str] = set()
        ahead = list(wait.depends_on)
        while ahead:
            one = ahead.pop()
            if one == task_id:
                return True
            other = None if one in reached else self.load(one)
            reached.add(one)
            if other is not None and other.status is StoredStatus.WAITING_DEPENDENCY and other.waits_for is not None:
                ahead.extend(other.waits_for.depends_on)
        return False

    # -- rules -------------------------------------------------------------------------------------

    @initialize()
    def a_worker_is_connected(self) -> None:
        for identity in WORKERS[:2]:
            self.connect(identity, back=False)

    @rule(identity=workers, back=st.booleans())
    def connect(self, identity: Identity, back: bool) -> None:
        self.count += 1
        session_id = f"s{self.count}"
        self.sessions[identity] = session_id
        worker = Worker(
            identity.text, session_id, self.node, identity.workspace, identity.implementation, True, 0, CAPACITY
        )
        tx = self.tx(lambda tx: sessions.join(tx, sessions.WorkerJoined(worker, back)))
        assert all(push.worker.session_id in self.sessions.values() for push in tx.effects.assignments)

    @rule(identity=workers, clean=st.booleans())
    def disconnect(self, identity: Identity, clean: bool) -> None:
        session_id = self.sessions.pop(identity, "never")
        self.tx(lambda tx: sessions.leave(tx, sessions.WorkerLeft(identity.text, session_id, clean)))

    @rule()
    def node_dies(self) -> None:
        dead, self.node = self.node, f"n{self.count}-{len(self.ids)}-{self.now_ms}"
        self.sessions.clear()
        self.tx(lambda tx: sessions.end_sessions_of(tx, dead, 50))

    @rule(
        mode=st.sampled_from(Mode),
        policy=st.sampled_from(POLICIES),
        priority=st.sampled_from([0, 10, 40]),
        aim=workers,
        task_class=st.integers(0, 3),
        deadline=st.sampled_from(["", "", "", "", *creating.DEADLINES]),
        key=st.sampled_from([b"", b"k"]),
    )
    def create(
        self, mode: Mode, policy: Any, priority: int, aim: Identity, task_class: int, deadline: str, key: bytes
    ) -> None:
        wire = {Mode.SELF_ASSIGN: pb.SELF_ASSIGN, Mode.TARGETED: pb.TARGETED, Mode.POOL: pb.POOL}[mode]
        request = pb.CreateTaskRequest(
            task_type="t",
            assignment_mode=wire,
            target_implementation="i",
            retry_policy=policy,
            priority=pb.TaskPriority.ValueType(priority),
            task_class=pb.TaskClass.ValueType(task_class),
            metadata={deadline: "1000"} if deadline else {},
        )
        self.count += 1
        asked = creating.request_hash(request, "w")
        task = new_task(
            request,
            task_id=f"t{self.count}",
            workspace="w",
            creator=CREATOR,
            parent_task_id="",
            target=aim if mode is Mode.TARGETED else None,
            now_ms=self.now_ms,
            order_us=self.now_ms * 1000 + self.count,
        )
        more = {"offline": OfflinePolicy.QUEUE, "start": None, "target": None, "minted": None}
        created = self.run(
            lambda context: creating.create_in_transaction(context, task, b"p", key=key, request=asked, **more)
        )
        known = self.keys.get(key) if key else None
        if known is not None and known[0] + creating.KEY_MS <= self.now_ms:
            known = None
        if created.problem:
            assert created.problem == creating.REUSED_KEY
            assert known is not None
            assert known[1] != asked
            return
        assert known is None or known[1] == asked
        if known is None:
            self.keys[key] = self.now_ms, asked
        if created.task is None:
            assert key
            assert created.task_id in self.ids
        else:
            self.ids.append(created.task_id)

    @precondition(lambda self: self.ids)
    @rule(number=picks, move=asked_moves, caller=callers, own=st.booleans(), reason=reasons, others=st.lists(picks, max_size=2),
          any_of=st.booleans(), timeout_ms=st.sampled_from([0, 1000]), escalation=st.sampled_from(["", "retry", "alert"]))  # fmt: skip
    def operate(
        self, number: int, move: Move, caller: Identity, own: bool, reason: Reason, others: list[int], any_of: bool,
        timeout_ms: int, escalation: str,
    ) -> None:  # fmt: skip
        task_id = self.pick(number)
        before = self.load(task_id)
        if own and before is not None and before.assigned_to:
            caller = Identity.parse(before.assigned_to)
        wait = None
        if move is Move.PAUSE:
            depends_on = tuple(one for one in map(self.pick, others) if one != task_id)
            wait = Wait(
                reason, depends_on=depends_on if reason is Reason.DEPENDENCY else (), wake_on_any=any_of,
                timeout_ms=timeout_ms, checkpoint_key="k" if reason is Reason.HIBERNATION else "", escalation=escalation,
            )  # fmt: skip
        epoch = self.database.drive(lambda: task_rows.latest_epoch(task_id, caller.text))
        if before is not None and before.assigned_to == caller.text:
            epoch = before.epoch
        asked = OperationRequest(task_id, move, "why", wait)
        circle = wait is not None and self.closes_circle(task_id, wait)
        outcome: OperationResult = self.run(lambda context: operate(context, Caller(caller, "w", allowed=True), asked))
        if before is None:
            assert outcome.task is None
            return
        facts = TaskTransaction(Context(self.now_ms, self.node, LIMITS)).facts(
            caller.text, caller_epoch=epoch, reason="why", wait=wait
        )
        expected = decide(before, move, facts)
        foreign = move is Move.PAUSE and reason is Reason.HIBERNATION and before.assigned_to != caller.text
        waits = before.mode is Mode.POOL and before.status is StoredStatus.PENDING
        if foreign or (move is Move.CLAIM and waits and not may_be_given(before, caller)):
            assert outcome.refusal
            return
        if move is Move.CANCEL and before.status is StoredStatus.DLQ:  # it discards the dead letter
            after = self.load(task_id)
            assert after is not None
            assert (outcome.refusal, after.status, after.ended_by) == ("", StoredStatus.CANCELLED, caller.text)
            return
        match expected:
            case RefusedMove(_, text):
                assert outcome.refusal == text
                assert self.load(task_id) == before
            case Repeat():
                assert outcome.refusal == ""
                assert self.load(task_id) == before
            case MoveStep() if circle:
                assert CIRCLE in outcome.refusal
                assert self.load(task_id) == before
            case MoveStep(after):
                assert outcome.refusal == ""
                assert outcome.task is not None
                assert outcome.task.retry_count == after.retry_count
                if after.status not in (StoredStatus.PENDING, StoredStatus.WAITING_DEPENDENCY):
                    assert outcome.task.status is after.status
                    assert outcome.task.ended_by == after.ended_by

    @precondition(lambda self: len(self.ids) > 1)
    @rule(number=picks, others=st.lists(picks, min_size=1, max_size=2), any_of=st.booleans())
    def wait_for_others(self, number: int, others: list[int], any_of: bool) -> None:
        """Lead to a wait for other tasks, which chance seldom finds."""
        if (held := self.held(number)) is not None:
            task, caller = held
            depends_on = tuple(one for one in map(self.pick, others) if one != task.task_id)
            wait = Wait(Reason.DEPENDENCY, depends_on=depends_on, wake_on_any=any_of)
            claim = OperationRequest(task.task_id, Move.CLAIM)
            for asked in (claim, OperationRequest(task.task_id, Move.PAUSE, wait=wait)):
                outcome: OperationResult = self.run(lambda context, asked=asked: operate(context, caller, asked))  # type: ignore[misc]
                circle = asked.wait is not None and self.closes_circle(task.task_id, asked.wait)
                assert CIRCLE in outcome.refusal if circle else outcome.refusal == ""

    @precondition(lambda self: self.ids)
    @rule(number=picks, move=st.sampled_from([Move.CLAIM, Move.COMPLETE, Move.COMPLETE, Move.FAIL]))
    def work_on(self, number: int, move: Move) -> None:
        """What workers mostly do."""
        if (held := self.held(number)) is not None:
            task, caller = held
            asked = OperationRequest(task.task_id, move)
            outcome: OperationResult = self.run(lambda context: operate(context, caller, asked))
            assert outcome.refusal == ""

    @precondition(lambda self: self.ids)
    @rule(number=picks, identity=workers)
    def report(self, number: int, identity: Identity) -> None:
        task_id = self.pick(number)
        before = self.load(task_id)
        self.tx(lambda tx: sessions.record_heartbeat(tx, identity.text, task_id))
        after = self.load(task_id)
        if before is not None and after is not None and after.disconnected_ms != before.disconnected_ms:
            assert after.assigned_to == identity.text

    @rule(ms=st.sampled_from(STEPS_MS))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        for _ in range(100):
            looked: list[int] = []

            def mutation(tx: TaskTransaction, looked: list[int] = looked) -> Program[None]:
                looked.append((yield from due.fire(tx, shared=False)))

            self.tx(mutation)
            if not looked[-1]:
                break
        else:
            raise AssertionError("something is due for ever")

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def the_tables_agree(self) -> None:
        tasks = self.database.drive(lambda: task_rows.select("1 = 1 ORDER BY order_us", ()))
        by_id = {task.task_id: task for task in tasks}
        present = self.check_workers(tasks)
        for task in tasks:
            self.check_row(task)
            self.check_events(task)
            self.check_attempts(task)
        self.check_queues(tasks, present)
        for depends_on, task_id in self.fetch("SELECT depends_on, task_id FROM task_dependents"):
            assert by_id[task_id].status is StoredStatus.WAITING_DEPENDENCY
            assert not by_id[depends_on].is_final
        for task in tasks:
            if task.status is StoredStatus.WAITING_DEPENDENCY:
                (left,) = self.fetch("SELECT COUNT(*) FROM task_dependents WHERE task_id = $1", task.task_id)[0]
                wait = task.waits_for
                assert wait is not None
                assert left == len(set(wait.depends_on)) if wait.wake_on_any else left > 0
        buried = {task_id for (task_id,) in self.fetch("SELECT task_id FROM task_dead_letters WHERE resolved_ms = 0")}
        assert {task.task_id for task in tasks if task.status is StoredStatus.DLQ} <= buried

    def check_row(self, task: TaskRow) -> None:
        assert task.due_ms == next_due(task, LIMITS)
        if task.status in HELD or task.status in WAITING:
            assert task.assigned_to or task.status is StoredStatus.WAITING_DEPENDENCY
        assert bool(task.wait) == (task.status in WAITING or task.status is StoredStatus.HIBERNATED or (task.status in TERMINAL
                                   and bool(task.wait)))  # fmt: skip
        if task.next_retry_ms:
            assert task.status is StoredStatus.FAILED
            assert task.retry_count < task.max_attempts
        before = self.ended.get(task.task_id)
        if before is not None and task.status in TERMINAL:
            # Out of an end there is only a retry, a cancellation of one that was to come, and the
            # dead letters.
            assert task.status is before or task.status in (StoredStatus.CANCELLED, StoredStatus.DLQ) or task.events > 2
        if task.is_final:
            self.ended[task.task_id] = task.status
        else:
            self.ended.pop(task.task_id, None)

    def check_events(self, task: TaskRow) -> None:
        stored = self.fetch("SELECT number, event FROM task_events WHERE task_id = $1 ORDER BY number", task.task_id)
        assert [number for number, _ in stored] == list(range(1, task.events + 1))
        shown = pb.TASK_STATUS_QUEUED
        for _, encoded in stored:
            event = pb.TaskEvent.FromString(encoded)
            if event.HasField("status_changed"):
                assert event.status_changed.from_status == shown
                buried = shown == pb.TASK_STATUS_FAILED  # as before: no attempt follows
                assert event.status_changed.to_status != shown or buried
                shown = event.status_changed.to_status
        assert shown == task.status.wire

    def check_attempts(self, task: TaskRow) -> None:
        """The current assignment is in the task's row; earlier ones have ended."""
        attempts = self.fetch(
            "SELECT epoch, worker, ended_ms, outcome FROM task_attempts WHERE task_id = $1 ORDER BY epoch", task.task_id
        )
        past = task.epoch - bool(task.assigned_to)
        assert [epoch for epoch, *_ in attempts] == list(range(1, past + 1))
        assert all(worker and ended_ms and outcome for _, worker, ended_ms, outcome in attempts)

    def check_workers(self, tasks: list[TaskRow]) -> dict[str, tuple[int, int]]:
        present = {}
        for identity, session_id, live, capacity, free in self.fetch(
            "SELECT identity, session_id, live, capacity, free FROM task_workers"
        ):
            assert self.sessions[Identity.parse(identity)] == session_id
            assert live == sum(task.holder == identity for task in tasks)
            assert free == int(live < capacity)
            present[identity] = live, capacity
        assert len(present) == len(self.sessions)
        return present

    def check_queues(self, tasks: list[TaskRow], present: dict[str, tuple[int, int]]) -> None:
        """No task waits while a worker that may have it has room."""
        room = {identity for identity, (live, capacity) in present.items() if live < capacity}
        for task in tasks:
            if not task.queue:
                continue
            if task.mode is Mode.POOL:
                able = {one.text for one in WORKERS if one.implementation == task.target_implementation}
            else:
                able = {task.queue}
            assert not able & room


def test_whatever_happens_the_tables_agree(store: Store) -> None:
    machine = type("OnThisEngine", (TaskMachine,), {"store": store})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=store.examples(120), stateful_step_count=50, deadline=None)
    )
