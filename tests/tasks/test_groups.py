"""Tasks in the commit groups of PostgreSQL, whose programs run interleaved.

After each group no task waits while a worker of its queue has room, whatever the order in which the
programs of the group came.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import permutations, product
from typing import Any, Final

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, StoredStatus, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.model.tasks.waiting_queue import pool_queue
from aether_trio.services.tasks.handlers.operate import OperationRequest, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import sessions, task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, Worker
from aether_trio.storage.base import Fetch, Program, ProgramFactory, single
from tests.helpers.direct import PostgresPlace, PostgresStore

NOW_MS: Final = 1_700_000_000_000
POOLS: Final = (("w", "i"), ("v", "i"), ("w", "j"))
CREATOR: Final = "ag::w::c::1"
WORKERS: Final = ("ag::w::i::1", "ag::w::i::2", "ag::v::i::1", "sv::i::1", "ag::w::j::1")
PRIORITIES: Final = (10, 30, 40)
MOVES: Final = (Move.CLAIM, Move.COMPLETE, Move.FAIL)
UNKEYED: Final = (Move.CANCEL, Move.RETRY)
"""Moves whose programs have no key."""
STEPS: Final = 50

Keyed = tuple[ProgramFactory[Any], str]
"""A program with its key."""


class Floor:
    """The tasks and workers of one database."""

    def __init__(self, place: PostgresPlace) -> None:
        self.place = place
        self.made: list[TaskRow] = []

    def run(self, *programs: Keyed) -> None:
        """Run programs as one commit group, in this order."""
        self.place.drive_group(programs)

    def task(self, workspace: str = "w", implementation: str = "i", priority: int = 30) -> TaskRow:
        number = len(self.made)
        task = TaskRow(f"t{number}", "work", workspace, mode=Mode.POOL, target_implementation=implementation)
        task.creator, task.priority, task.order_us = CREATOR, priority, NOW_MS * 1000 + number
        task.created_ms = task.updated_ms = task.pending_ms = NOW_MS
        self.made.append(task)
        return task

    def some(self, chance: random.Random) -> list[TaskRow]:
        """Choose two of the tasks that were made last."""
        latest = self.made[-12:]
        return chance.sample(latest, min(len(latest), 2))

    def rows(self) -> list[TaskRow]:
        return self.place.drive(lambda: task_rows.select("task_id <> '' ORDER BY task_id", ()))

    def status(self, task: TaskRow) -> StoredStatus:
        [row] = [row for row in self.rows() if row.task_id == task.task_id]
        return row.status

    def workers(self) -> dict[str, Worker]:
        sql = f"SELECT {WORKER_FIELDS} FROM task_workers"
        return {row[0]: Worker._make(row) for row in self.place.drive(lambda: single(Fetch(sql)))}

    def check(self) -> None:
        """Check that no task waits while a worker of its queue has room."""
        rows = self.rows()
        for worker in self.workers().values():
            assert worker.live == sum(row.holder == worker.identity for row in rows)
            if worker.has_room:
                reach = (worker.workspace,) if worker.workspace else ("w", "v")
                queues = {pool_queue(workspace, worker.implementation) for workspace in reach}
                assert [row.task_id for row in rows if row.queue in queues] == []


@pytest.fixture
def floor(postgres_store: PostgresStore) -> Iterator[Floor]:
    place = postgres_store.place()
    yield Floor(place)
    place.close()


def create(task: TaskRow, *, again: bool = False) -> Keyed:
    """`again`: it is not known whether an earlier run was committed."""
    return partial(_create, task, again), task.task_id


def _create(task: TaskRow, again: bool) -> Program[None]:
    tx = TaskTransaction(Context(NOW_MS, "n", TimeLimits(), shared=True, again=again))
    yield from tx.create(task.changed({}), b"")


def create_later(task: TaskRow, reads: int) -> Keyed:
    """Create a task after other rows are read, as an execution does that begins."""
    return partial(_create_later, task, reads), task.task_id


def _create_later(task: TaskRow, reads: int) -> Program[None]:
    for number in range(reads):
        yield from task_rows.load(f"none-{number}-{task.task_id}")
    yield from _create(task, again=False)


def move(identity: str, task_id: str, what: Move) -> Keyed:
    return partial(_move, identity, task_id, what), "" if what in UNKEYED else task_id


def _move(identity: str, task_id: str, what: Move) -> Program[None]:
    context = Context(NOW_MS, "n", TimeLimits(), shared=True)
    yield from operate(context, Caller(Identity.parse(identity), "w"), OperationRequest(task_id, what))


def join(identity: str, capacity: int = 1) -> Keyed:
    """A program without a key, as a session's begin has none."""
    parsed = Identity.parse(identity)
    worker = Worker(identity, identity, "n", parsed.workspace, parsed.implementation, True, 0, capacity)
    return partial(_join, worker), ""


def _join(worker: Worker) -> Program[None]:
    tx = TaskTransaction(Context(NOW_MS, "n", TimeLimits(), shared=True))
    yield from sessions.join(tx, sessions.WorkerJoined(worker, resumed=True))


def leave(identity: str) -> Keyed:
    return partial(_leave, identity), ""


def _leave(identity: str) -> Program[None]:
    tx = TaskTransaction(Context(NOW_MS, "n", TimeLimits(), shared=True))
    yield from sessions.leave(tx, sessions.WorkerLeft(identity, identity, clean=True))


@pytest.mark.parametrize("completed_first", [False, True])
@pytest.mark.parametrize("worker", ["ag::w::i::1", "sv::i::1"])
def test_a_task_that_is_made_with_the_end_of_another_is_assigned(
    floor: Floor, worker: str, completed_first: bool
) -> None:
    first, second = floor.task(), floor.task()
    floor.run(join(worker), create(first))
    assert floor.status(first) is StoredStatus.ASSIGNED
    group = [create(second), move(worker, first.task_id, Move.COMPLETE)]
    floor.run(*(reversed(group) if completed_first else group))
    assert floor.status(second) is StoredStatus.ASSIGNED
    floor.check()


@pytest.mark.parametrize("completed_first", [False, True])
@pytest.mark.parametrize("reads", [1, 2, 3])
def test_one_whose_maker_reads_other_rows_before_is_assigned(floor: Floor, reads: int, completed_first: bool) -> None:
    first, second = floor.task(), floor.task()
    floor.run(join("ag::w::i::1"), create(first))
    group = [create_later(second, reads), move("ag::w::i::1", first.task_id, Move.COMPLETE)]
    floor.run(*(reversed(group) if completed_first else group))
    assert floor.status(second) is StoredStatus.ASSIGNED
    floor.check()


@pytest.mark.parametrize("number", range(6))
def test_a_task_that_is_made_with_the_repetition_of_another_is_assigned(floor: Floor, number: int) -> None:
    """The room that the repetition has taken, until it finds the task, is seen again."""
    first, second, third = floor.task(), floor.task(), floor.task()
    floor.run(join("ag::w::i::1"), create(first), create(second))
    floor.run(move("ag::w::i::1", first.task_id, Move.COMPLETE))
    floor.run(move("ag::w::i::1", second.task_id, Move.COMPLETE))
    group = [create(first, again=True), create(second, again=True), create(third)]
    floor.run(*list(permutations(group))[number])
    assert floor.status(third) is StoredStatus.ASSIGNED
    floor.check()


@pytest.mark.parametrize("seed", range(4))
def test_no_task_waits_after_a_group_while_a_worker_of_its_queue_has_room(floor: Floor, seed: int) -> None:
    chance = random.Random(seed)
    floor.run(*(join(identity, chance.randint(1, 3)) for identity in WORKERS))
    waited = 0
    for _ in range(STEPS):
        before = {row.task_id: row for row in floor.rows()}
        held = [row for row in before.values() if row.holder]
        group = [move(row.holder, row.task_id, chance.choice(MOVES)) for row in chance.sample(held, len(held) // 2)]
        group += [create(task, again=True) for task in floor.some(chance)]
        for _ in range(chance.randint(0, 5)):
            task = floor.task(*chance.choice(POOLS), chance.choice(PRIORITIES))
            reads = chance.choice((0, 0, 1, 2, 3))
            group.append(create_later(task, reads) if reads else create(task, again=chance.random() < 0.1))
        group += [move(CREATOR, task.task_id, what) for what, task in zip(UNKEYED, floor.some(chance), strict=False)]
        in_turn = chance.random() < 0.8
        if not in_turn:  # a worker leaves, or takes any task of its pool
            identity = chance.choice(WORKERS)
            group.append(leave(identity) if identity in floor.workers() else join(identity, chance.randint(1, 3)))
            group += [move(chance.choice(WORKERS), task.task_id, Move.CLAIM) for task in floor.some(chance)]
        chance.shuffle(group)
        floor.run(*group)
        floor.check()
        after = floor.rows()
        begun = [row for row in after if row.epoch > (before[row.task_id].epoch if row.task_id in before else 0)]
        waiting = [row for row in after if row.queue and row.task_id in before and before[row.task_id].queue]
        waited += len(waiting)
        if in_turn:
            for one, other in product(begun, waiting):
                assert pool_of(one) != pool_of(other) or urgency(one) < urgency(other)
    assert waited > STEPS


def pool_of(task: TaskRow) -> str:
    return pool_queue(task.workspace, task.target_implementation)


def urgency(task: TaskRow) -> tuple[int, int]:
    return -task.priority, task.order_us
