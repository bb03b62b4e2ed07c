"""A cancelled task ends for its worker, and for children that end with it."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, StoredStatus, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers.operate import OperationRequest
from aether_trio.services.tasks.handlers.operate import operate as operate_on
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import task_transaction
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Statement
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, errors
from tests.helpers.direct import Store, caught
from tests.services.tasks.peers import Op, create, get, operate, report

ENDS = [(Op.CANCEL, "cancelled"), (Op.COMPLETE, "completed"), (Op.FAIL, "failed")]


def count_of(world: World, task_id: str) -> int:
    found: int = world.databases["tasks"].query("SELECT COUNT(*) FROM task_events WHERE task_id = $1", task_id)[0][0]
    return found


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize(("op", "word"), ENDS, ids=[word for _, word in ENDS])
async def test_progress_of_a_task_that_has_ended_is_an_error_and_no_event(
    core: Core, world: World, op: pb.TaskOperation.OpType.ValueType, word: str, retried: bool
) -> None:
    policy = pb.RetryPolicy(max_attempts=3, initial_delay_ms=3_600_000, backoff=pb.BACKOFF_STRATEGY_FIXED)
    more: dict[str, Any] = {"retry_policy": policy} if retried else {}
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator, **more)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        worker.send(report(task_id, request_id="mine"))
        await trio.sleep(1)
        assert not errors(worker)
        assert (await operate(creator if op == Op.CANCEL else worker, op, task_id)).success
        before = count_of(world, task_id)
        for peer in (worker, creator):
            peer.send(report(task_id, request_id="mine"))
            await trio.sleep(1)
            (told,) = errors(peer)
            assert (told.code, told.request_id) == ("ERR_INVALID_ARGUMENT", "mine")
            assert f"task {task_id} has ended: it is {word}" in told.message
        assert count_of(world, task_id) == before


async def test_who_has_no_part_in_a_task_does_not_hear_of_its_end(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("v", "x", "1")) as outsider:
        task_id = (await create(creator)).task_id
        assert (await operate(creator, Op.CANCEL, task_id)).success
        outsider.send(report(task_id), report("nothing"))
        await trio.sleep(1)
        await barrier(outsider)
        assert not errors(outsider)


async def child_of(peer: MemoryLink, parent: str, policy: str = "") -> str:
    metadata = {"on_parent_cancelled": policy} if policy else {}
    response = await create(peer, parent_task_id=parent, metadata=metadata, assignment_mode=pb.SELF_ASSIGN)
    assert response.success, response.error_message
    return response.task_id


async def test_children_of_a_cancelled_task_go_on_or_are_cancelled(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent = (await create(peer, assignment_mode=pb.SELF_ASSIGN)).task_id
        plain, abandoned, cancelled, ended = [
            await child_of(peer, parent, policy) for policy in ("", "abandon", "cancel", "cancel")
        ]
        below = [await child_of(peer, cancelled, policy) for policy in ("cancel", "abandon")]
        assert (await operate(peer, Op.COMPLETE, ended)).success
        assert (await operate(peer, Op.CANCEL, parent)).success
        await trio.sleep(1)
        states = [(await get(peer, one)).status for one in (plain, abandoned, cancelled, ended, *below)]
        assert states == [
            pb.TASK_STATUS_QUEUED,
            pb.TASK_STATUS_QUEUED,
            pb.TASK_STATUS_CANCELLED,
            pb.TASK_STATUS_COMPLETED,
            pb.TASK_STATUS_CANCELLED,
            pb.TASK_STATUS_QUEUED,
        ]
        assert (await get(peer, cancelled)).error == f"parent task {parent} was cancelled"


@pytest.mark.parametrize("op", [Op.COMPLETE, Op.FAIL])
async def test_children_of_a_task_that_ends_otherwise_go_on(core: Core, op: pb.TaskOperation.OpType.ValueType) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent = (await create(peer, assignment_mode=pb.SELF_ASSIGN)).task_id
        child = await child_of(peer, parent, "cancel")
        assert (await operate(peer, op, parent)).success
        await trio.sleep(1)
        assert (await get(peer, child)).status == pb.TASK_STATUS_QUEUED


async def test_an_unknown_policy_is_refused(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        refused = await create(peer, metadata={"on_parent_cancelled": "bury"})
        assert not refused.success
        assert "on_parent_cancelled" in refused.error_message
        assert "abandon" in refused.error_message


@pytest.mark.parametrize("shape", ["wide", "deep"])
async def test_very_many_children_are_cancelled(core: Core, shape: str) -> None:
    """More than a page of them, and deeper than calls may nest."""
    async with connect(core, agent("w", "c", "1")) as peer:
        parent = (await create(peer, assignment_mode=pb.SELF_ASSIGN)).task_id
        tasks = [parent]
        for _ in range(2 * task_transaction.WAKE_PAGE + 1 if shape == "wide" else 400):
            tasks.append(await child_of(peer, parent if shape == "wide" else tasks[-1], "cancel"))
        assert (await operate(peer, Op.CANCEL, parent)).success
        await trio.sleep(600)
        assert {(await get(peer, one)).status for one in tasks} == {pb.TASK_STATUS_CANCELLED}
        left = await core.tasks.engine.database.fetch("SELECT * FROM task_cancelled_parents")
        assert not left


async def test_children_are_cancelled_though_the_gateway_ends_before(world: World) -> None:
    tasks_db = world.databases["tasks"]
    async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
        parent = (await create(peer, assignment_mode=pb.SELF_ASSIGN)).task_id
        child = await child_of(peer, parent, "cancel")
        core.tasks.engine.follow_ups.put = lambda *_: 0  # type: ignore[method-assign]  # it ends right after the commit
        assert (await operate(peer, Op.CANCEL, parent)).success
        assert (await get(peer, child)).status == pb.TASK_STATUS_QUEUED
    assert tasks_db.query("SELECT task_id FROM task_cancelled_parents") == [(parent,)]
    async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
        await trio.sleep(60)
        assert (await get(peer, child)).status == pb.TASK_STATUS_CANCELLED
    assert not tasks_db.query("SELECT task_id FROM task_cancelled_parents")


async def test_children_of_many_cancelled_tasks_share_no_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One participant may cancel very many; who comes meanwhile waits for one page."""
    monkeypatch.setattr(task_transaction, "WAKE_PAGE", 4)
    sizes: list[int] = []
    after_commit = Engine.after_commit

    def noted(engine: Engine, tx: task_transaction.TaskTransaction) -> None:
        sizes.append(len([one for one in tx.effects.status_changes if one.status is StoredStatus.CANCELLED]))
        after_commit(engine, tx)

    monkeypatch.setattr(Engine, "after_commit", noted)
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as creator:
            parents = [(await create(creator)).task_id for _ in range(20)]
            more = {"metadata": {"on_parent_cancelled": "cancel"}}
            children = [
                (await create(creator, parent_task_id=one, **more)).task_id for one in parents for _ in range(4)
            ]
            database = core.tasks.engine.database
            # As a gateway leaves it that is killed before.
            await database.execute(
                "UPDATE tasks SET status = 'cancelled', queue = '', due_ms = 0 WHERE parent_task_id = ''"
            )
            for one in parents:
                await database.execute("INSERT INTO task_cancelled_parents (task_id) VALUES ($1)", one)
        async with world.open() as core, connect(core, agent("w", "c", "1")) as creator:
            for child in children:
                while (await get(creator, child)).status != pb.TASK_STATUS_CANCELLED:
                    await trio.sleep(1)
    assert (sum(sizes), max(sizes)) == (80, 4)


def test_the_end_of_a_task_without_children_looks_for_none(store: Store) -> None:
    """There may be millions of other tasks, and a plan that reads them."""
    task = TaskRow("one", "t", "w", mode=Mode.POOL, creator="ag::w::c::1", root_task_id="one")
    caller = Caller(Identity.parse(task.creator), "w")
    asked: list[Statement] = []

    with closing(store.place()) as place:
        database = place.direct("tasks")
        context = Context(1, "n", TimeLimits(), shared=database.shared)
        database.drive(lambda: TaskTransaction(context).create(task, b""))
        cancelled = database.drive(
            lambda: caught(operate_on(context, caller, OperationRequest("one", Move.CANCEL)), asked)
        )
        assert cancelled.task is not None
        assert cancelled.task.status is StoredStatus.CANCELLED
        assert not [one.sql for one in asked if "parent_task_id = " in one.sql and "SELECT" in one.sql]
        assert not [one.sql for one in asked if "task_cancelled_parents" in one.sql]
