"""Test that a worker speaks for one assignment of a task, and no other one."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AgentClient, JobEnd, Refused
from aether_trio.client.operations import RetryPolicy, TaskStatus
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.client.jobs.shop import LIMIT_S, asked, assignment, info, looked_up, moved, one_of, open_shop, order, worker
from tests.client.peer import scripted

Op = pb.TaskOperation
RUNNING = 2


pytestmark = pytest.mark.usefixtures("unwatched")


async def test_a_block_that_ends_late_does_not_complete_what_it_was_given_anew() -> None:
    async with open_test_gateway() as gateway, open_shop(f"aether://{gateway.address}") as (boss, one):
        task_id = await order(boss, retry_policy=RetryPolicy(max_attempts=2, initial_delay_s=0.001))
        async with await one_of(one) as first:
            with trio.CancelScope(shield=True):
                await boss.tasks.fail(task_id, reason="too slow")
                while len(first._keeper.intake) == 0 and first.end is None:
                    await trio.sleep(0.005)
                await one.tasks.claim(task_id)
                with pytest.raises(Refused, match="assigned anew"):
                    await one.tasks.complete(first.assignment.reference)
        assert first.end is JobEnd.LOST
        assert (await boss.tasks.get(task_id)).status is TaskStatus.RUNNING


@pytest.mark.parametrize("number", ["1", "2"])
async def test_after_a_cut_a_block_goes_on_only_with_the_assignment_that_it_had(number: str) -> None:
    """Another process with this worker's name may have been given the task meanwhile."""
    ends: list[JobEnd | None] = []

    async def body(one: AgentClient) -> None:
        async with await one_of(one) as job:
            pass
        ends.append(job.end)

    with trio.fail_after(LIMIT_S):
        async with scripted(body, client=worker, close_timeout_s=0.1) as (peer, line):
            assert line.init is not None
            assert line.init.extensions[-1].uri == "urn:aether-trio:assignments"
            told = assignment()
            told["task_assignment"].metadata["_assignment"] = "1"
            await line.tell(**told)
            assert (await moved(peer, Op.CLAIM, RUNNING)).task_id == "t1@1"
            assert (await asked(peer, Op.COMPLETE)).task_id == "t1@1"
            await peer.cut()
            task = info(RUNNING)
            task.metadata["_assignment"] = number
            await looked_up(peer, task)
            if number == "1":
                assert (await moved(peer, Op.COMPLETE, 3)).task_id == "t1@1"
    assert ends == [JobEnd.COMPLETED if number == "1" else JobEnd.LOST]
