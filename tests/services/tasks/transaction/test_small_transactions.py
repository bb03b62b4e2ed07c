"""Small transactions are bounded; larger ones run elsewhere with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Move, StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.handlers.operate import OperationRequest, OperationResult, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Context, LargeError
from aether_trio.services.tasks.transaction.task_transaction import MOVED_ROWS, SMALL_ROWS, TaskTransaction
from aether_trio.storage.base import Program, Value
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect
from tests.helpers.direct import Direct, Store
from tests.services.tasks.peers import Op, own, wait_for
from tests.services.tasks.peers import operate as ask

CREATOR = "ag::w::c::1"
FEW = SMALL_ROWS // (MOVED_ROWS + 1)
"""So many that wait for one task only: each is moved, and what it waits for is looked at again."""


@pytest.fixture
def direct(store: Store) -> Iterator[Direct]:
    with closing(store.place()) as place:
        yield place.direct("tasks")


def _begin(direct: Direct, name: str, **fields: Any) -> None:
    fields |= {"creator": CREATOR, "assigned_to": CREATOR, "root_task_id": name}
    task = TaskRow(name, "t", "w", status=StoredStatus.RUNNING, epoch=1, **fields)
    direct.drive(lambda: TaskTransaction(Context(1, "n", TimeLimits())).create(task.changed({}), b""))


def _ask(direct: Direct, name: str, move: Move, *, small: bool, wait: Wait | None = None) -> OperationResult:
    context = Context(2, "n", TimeLimits(), small=small)
    caller = Caller(Identity.parse(CREATOR), "w")
    return direct.drive(
        lambda: operate(context, caller, OperationRequest(name, move, wait=wait, checked=wait is not None))
    )


@pytest.mark.parametrize("count", [FEW, FEW + 1])
def test_waking_many_is_large_and_leaves_no_trace(direct: Direct, count: int) -> None:
    _begin(direct, "first")
    wait = Wait(reason=pb.WAIT_REASON_DEPENDENCY, depends_on=("first",))
    names = [f"t{number}" for number in range(count)]
    for name in names:
        _begin(direct, name)
        assert _ask(direct, name, Move.PAUSE, small=True, wait=wait).refusal == ""
    if count > FEW:
        with pytest.raises(LargeError):
            _ask(direct, "first", Move.COMPLETE, small=True)
        statuses = [_load(direct, name).status for name in ("first", *names)]
        assert statuses == [StoredStatus.RUNNING, *[StoredStatus.WAITING_DEPENDENCY] * count]
    assert _ask(direct, "first", Move.COMPLETE, small=count == FEW).refusal == ""
    assert {_load(direct, name).status for name in names} == {StoredStatus.RUNNING}


def test_waiting_for_many_is_large(direct: Direct) -> None:
    names = [f"t{number}" for number in range(SMALL_ROWS)]
    for name in ("one", *names):
        _begin(direct, name)
    wait = Wait(reason=pb.WAIT_REASON_DEPENDENCY, depends_on=tuple(names))
    with pytest.raises(LargeError):
        _ask(direct, "one", Move.PAUSE, small=True, wait=wait)
    assert _load(direct, "one").status is StoredStatus.RUNNING
    _ask(direct, "one", Move.PAUSE, small=False, wait=wait)
    assert _load(direct, "one").status is StoredStatus.WAITING_DEPENDENCY


@pytest.mark.parametrize("count", [SMALL_ROWS, SMALL_ROWS + 1])
def test_telling_a_task_of_many_children_is_large(direct: Direct, count: int) -> None:
    _begin(direct, "parent")
    for number in range(count):
        _begin(direct, f"c{number}", parent_task_id="parent")
    if count > SMALL_ROWS:
        with pytest.raises(LargeError):
            _ask(direct, "parent", Move.COMPLETE, small=True)
        assert _load(direct, "parent").status is StoredStatus.RUNNING
    assert _ask(direct, "parent", Move.COMPLETE, small=count == SMALL_ROWS).refusal == ""
    assert _load(direct, "parent").events == count + 1


def _load(direct: Direct, name: str) -> TaskRow:
    task = direct.drive(lambda: task_rows.load(name))
    assert task is not None
    return task


async def test_the_engine_runs_it_again_as_a_large_one(core: Core) -> None:
    seen: list[bool] = []

    def program(context: Context) -> Program[str]:
        seen.append(context.small)
        tx = TaskTransaction(context)
        tx.charge(SMALL_ROWS)
        yield from task_rows.load("x")
        tx.charge(1)
        return "done"

    assert await core.tasks.engine.run_program(program, lambda _: None) == "done"
    shared: Value = core.tasks.engine.database.shared
    assert seen == ([False] if shared else [True, False])


async def test_a_client_does_not_see_the_difference(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        first = await own(creator)
        for _ in range(FEW + 5):
            assert (await wait_for(creator, await own(creator), first)).success
        assert (await ask(creator, Op.COMPLETE, first)).success
        counts = world.databases["tasks"].query("SELECT status, COUNT(*) FROM tasks GROUP BY status ORDER BY status")
        assert counts == [("completed", 1), ("running", FEW + 5)]
