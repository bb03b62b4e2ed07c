"""Several nodes create, assign and end tasks of one pool: each is assigned once.

Two gateways' databases are opened on one PostgreSQL; what each program would push is taken as what
workers were given. Which worker is given which task, on one node and step by step, is in
test_random_steps.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import trio

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.handlers.operate import OperationRequest, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import sessions
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.storage.base import Database, Program, ProgramFactory, StorageUnavailable
from tests.helpers.engines import PostgresEngine

T = TypeVar("T")

NOW_MS = 1_700_000_000_000
ROOM = 3
TASKS = 120
MAKERS = 12
"""Who make tasks at the same time, so that the programs of several run interleaved."""
PRIORITIES = (10, 30, 40)


class Node:
    """A gateway as far as the tables are concerned."""

    def __init__(self, name: str, database: Database, floor: Floor) -> None:
        self.context = Context(NOW_MS, name, TimeLimits(), shared=True)
        self.database = database
        self.floor = floor

    async def make(self, numbers: range, chance: random.Random, made: list[TaskRow]) -> None:
        for number in numbers:
            task = TaskRow(f"t{number}", "work", "w", mode=Mode.POOL, target_implementation="i", creator="ag::w::c::1")
            task.priority, task.order_us = chance.choice(PRIORITIES), NOW_MS * 1000 + number
            task.created_ms = task.updated_ms = task.pending_ms = NOW_MS
            made.append(task)
            await self.write(lambda tx, task=task: tx.create(task.changed({}), b""), task.task_id)  # type: ignore[misc]

    async def join(self, name: str) -> None:
        worker = Worker(name, name, self.context.node, "w", "i", True, 0, ROOM)
        await self.write(lambda tx: sessions.join(tx, sessions.WorkerJoined(worker, resumed=False)))

    async def write(self, part: Callable[[TaskTransaction], Program[Any]], key: str = "") -> None:
        def program() -> Program[TaskTransaction]:
            tx = TaskTransaction(self.context)
            yield from part(tx)
            return tx

        self.floor.hand_out(await self.run(program, key))

    async def run(self, program: ProgramFactory[T], key: str) -> T:
        """Run a program, and again if another node was faster too often."""
        while True:
            try:
                return await (self.database.run_keyed(program, key) if key else self.database.run(program))
            except StorageUnavailable:
                await trio.sleep(0.01)

    async def move(self, name: str, task_id: str, move: Move) -> None:
        caller = Caller(Identity.parse(name), "w")
        outcome = await self.run(lambda: operate(self.context, caller, OperationRequest(task_id, move)), task_id)
        assert outcome.refusal == ""
        assert outcome.tx is not None
        self.floor.hand_out(outcome.tx)


class Floor:
    """Where workers take what they are given."""

    def __init__(self) -> None:
        self.given: Counter[tuple[str, int]] = Counter()
        self.channels: dict[str, trio.MemorySendChannel[str]] = {}

    def hand_out(self, tx: TaskTransaction) -> None:
        for push in tx.effects.assignments:
            self.given[push.task.task_id, push.task.epoch] += 1
            self.channels[push.worker.identity].send_nowait(push.task.task_id)


@pytest.mark.parametrize("seed", [1, 2])
async def test_each_task_of_a_pool_is_handed_out_once_whichever_node_makes_it(
    postgres_engine: PostgresEngine, seed: int
) -> None:
    chance = random.Random(seed)
    floor = Floor()
    done: Counter[str] = Counter()
    over = trio.Event()

    async def tx(node: Node, name: str, door: trio.MemoryReceiveChannel[str]) -> None:
        hands: set[str] = set()

        async def one(task_id: str) -> None:
            await node.move(name, task_id, Move.CLAIM)
            await trio.sleep(chance.uniform(0, 0.01))
            hands.discard(task_id)  # before its end is asked for, which may bring the next one
            await node.move(name, task_id, Move.COMPLETE)
            done[task_id] += 1
            if len(done) == TASKS:
                over.set()

        async with trio.open_nursery() as nursery:
            async for task_id in door:
                hands.add(task_id)
                assert len(hands) <= ROOM
                nursery.start_soon(one, task_id)

    async with postgres_engine.open("tasks") as one, postgres_engine.open("tasks") as two:
        nodes = [Node("n1", one, floor), Node("n2", two, floor)]
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                for maker in range(MAKERS):
                    nursery.start_soon(nodes[maker % 2].make, range(maker, TASKS, MAKERS), chance, [])
                for number in range(4):
                    name = f"ag::w::i::{number}"
                    floor.channels[name], door = trio.open_memory_channel[str](TASKS)
                    nursery.start_soon(partial(tx, nodes[number % 2], name, door))
                    await nodes[number % 2].join(name)
                await over.wait()
                nursery.cancel_scope.cancel()
        assert floor.given == Counter({(f"t{number}", 1): 1 for number in range(TASKS)})
        assert done == Counter({f"t{number}": 1 for number in range(TASKS)})
        assert await one.fetch("SELECT identity, live FROM task_workers ORDER BY 1") == [
            (f"ag::w::i::{number}", 0) for number in range(4)
        ]
        assert await one.fetch("SELECT task_id, worker FROM task_attempts WHERE outcome <> ''") == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_several_nodes_have_queued_comes_by_priority_and_then_in_the_order_it_was_made(
    postgres_engine: PostgresEngine, seed: int
) -> None:
    chance = random.Random(seed)
    floor = Floor()
    made: list[TaskRow] = []
    name = "ag::w::i::only"
    floor.channels[name], door = trio.open_memory_channel[str](TASKS)

    async with postgres_engine.open("tasks") as one, postgres_engine.open("tasks") as two:
        nodes = [Node("n1", one, floor), Node("n2", two, floor)]
        async with trio.open_nursery() as nursery:
            for maker in range(MAKERS):
                nursery.start_soon(nodes[maker % 2].make, range(maker, 40, MAKERS), chance, made)
        await nodes[0].join(name)
        order: list[str] = []
        for number in range(40):
            order.append(door.receive_nowait())
            await nodes[number % 2].move(name, order[-1], Move.COMPLETE)
    assert order == [task.task_id for task in sorted(made, key=lambda task: (-task.priority, task.order_us))]
