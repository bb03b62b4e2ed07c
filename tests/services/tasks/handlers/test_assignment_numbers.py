"""A late request of a former assignment does not count for the present one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.protobuf import named
from aether_trio.session.init_connection import ASSIGNMENTS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect
from tests.services.tasks.peers import Op, create, get, operate

ASKS = pb.ExtensionDeclaration(uri=ASSIGNMENTS)
WAIT = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)


@asynccontextmanager
async def assigned_anew(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink, str]]:
    """Yield creator, worker and a task that the worker has lost and was given again."""
    async with (
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1", extensions=[ASKS])) as worker,
    ):
        await barrier(worker)
        task_id = (await create(creator, metadata={"of": "the creator"})).task_id
        assert (await operate(worker, Op.CLAIM, f"{task_id}@1")).success
        assert (await operate(creator, Op.FAIL, task_id, reason="too slow")).success
        assert (await operate(creator, Op.RETRY, task_id)).success
        await barrier(worker)
        yield creator, worker, task_id


async def test_only_those_that_ask_are_told_the_numbers(core: Core) -> None:
    async with assigned_anew(core) as (creator, worker, task_id):
        given = [one.task_assignment for one in worker.waiting("task_assignment")]
        assert [one.metadata["_assignment"] for one in given] == ["1", "2"]
        assert (await get(worker, task_id)).metadata["_assignment"] == "2"
        assert (await operate(worker, Op.CLAIM, f"{task_id}@2")).task.metadata["_assignment"] == "2"
        assert dict((await get(creator, task_id)).metadata) == {"of": "the creator"}
    async with connect(core, agent("w", "i", "2")) as other, connect(core, agent("w", "c", "1")) as creator:
        await barrier(other)
        await create(creator, metadata={"of": "the creator"})
        assert dict((await other.next("task_assignment")).task_assignment.metadata) == {"of": "the creator"}


@pytest.mark.parametrize("begun", [False, True])
async def test_what_is_late_is_refused(core: Core, begun: bool) -> None:
    async with assigned_anew(core) as (creator, worker, task_id):
        if begun:
            assert (await operate(worker, Op.CLAIM, f"{task_id}@2")).success
        for late in (Op.COMPLETE, Op.FAIL, Op.PAUSE, Op.CLAIM, Op.REJECT):
            refused = await operate(worker, late, f"{task_id}@1", wait_spec=WAIT if late == Op.PAUSE else None)
            assert "the task was assigned anew (assignment 2, yours was 1)" in refused.error
        assert (await get(creator, task_id)).status == (pb.TASK_STATUS_RUNNING if begun else pb.TASK_STATUS_QUEUED)
        for _ in range(2):
            assert (await operate(worker, Op.COMPLETE, f"{task_id}@2")).success
        assert "yours was 1" in (await operate(worker, Op.COMPLETE, f"{task_id}@1")).error


async def test_a_late_block_ends_no_wait_of_the_next_one(core: Core) -> None:
    """The old block of the same worker gives up its wait when it is cancelled."""
    async with assigned_anew(core) as (creator, worker, task_id):
        assert (await operate(worker, Op.CLAIM, f"{task_id}@2")).success
        assert (await operate(worker, Op.PAUSE, f"{task_id}@2", wait_spec=WAIT)).success
        assert "assigned anew (2, yours was 1)" in (await operate(worker, Op.RESUME, f"{task_id}@1")).error
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_WAITING_INPUT
        assert (await operate(worker, Op.RESUME, f"{task_id}@2")).success


async def test_without_a_number_it_is_the_latest_that_is_meant(core: Core) -> None:
    async with assigned_anew(core) as (creator, worker, task_id):
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_COMPLETED


async def test_a_number_makes_no_participant_a_worker(core: Core) -> None:
    async with assigned_anew(core) as (creator, _, task_id):
        refused = await operate(creator, Op.CLAIM, f"{task_id}@2")
        assert "another worker" in refused.error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", ("a", 0)),
        ("a@7", ("a", 7)),
        ("a@b@7", ("a@b", 7)),
        ("a@", ("a@", 0)),
        ("a@-1", ("a@-1", 0)),
        ("a@٣", ("a@٣", 0)),
        ("a@1234567890123456", ("a@1234567890123456", 0)),
    ],
)
def test_how_it_is_said(text: str, found: tuple[str, int]) -> None:
    assert named(text) == found


async def test_an_outsider_is_not_told_that_there_is_such_a_task(core: Core) -> None:
    async with connect(core, agent("w", "i", "1")) as worker, connect(core, agent("v", "i", "1")) as outsider:
        task_id = (await create(worker, assignment_mode=pb.SELF_ASSIGN)).task_id
        for ended in (False, True):
            if ended:
                for op in (Op.CLAIM, Op.COMPLETE):
                    assert (await operate(worker, op, task_id)).success
            for op in (Op.CLAIM, Op.COMPLETE, Op.FAIL, Op.REJECT, Op.CANCEL, Op.RETRY):
                asked = [await operate(outsider, op, one) for one in (task_id, "no-such-task")]
                assert [one.success for one in asked] == [False, False]
                assert asked[0].error == asked[1].error
