"""A worker speaks for one assignment of a task: what it says late does not count for the next one,
and a block notices that it is over.
"""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import JobEnd, Refused
from aether_trio.client.jobs import manager
from aether_trio.client.operations import RetryPolicy, TaskStatus
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.client.jobs.shop import LIMIT_S, assignment, info, looked_up, moved, one_of, open_shop, order, worker
from tests.client.peer import open_peer

Op = pb.TaskOperation
RUNNING = 2


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens to a task: what becomes of it is found out in other ways."""
    monkeypatch.setattr(manager, "WATCH_AFTER_S", 3600.0)


async def test_a_block_that_ends_late_does_not_complete_what_it_was_given_anew() -> None:
    async with open_test_gateway() as gateway, open_shop(f"aether://{gateway.address}") as (boss, one):
        task_id = await order(boss, retry_policy=RetryPolicy(max_attempts=2, initial_delay_ms=1))
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
    """Another process with this worker's name may have been given the task meanwhile, and have been
    cut off as well.
    """
    ends: list[JobEnd | None] = []
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def run() -> None:
                async with worker(peer.address, close_timeout=0.1) as one:
                    async with await one_of(one) as job:
                        pass
                    ends.append(job.end)

            nursery.start_soon(run)
            line = await peer.accept()
            assert line.init.extensions[-1].uri == "urn:aether-trio:assignments"
            told = assignment()
            told["task_assignment"].metadata["_assignment"] = "1"
            await line.tell(**told)
            assert (await moved(line, Op.CLAIM, RUNNING)).task_id == "t1@1"
            assert (await line.asked()).task_op.task_id == "t1@1"  # COMPLETE
            await trio.aclose_forcefully(line.stream)
            line = await peer.accept("s2")
            found = info(RUNNING)
            found.metadata["_assignment"] = number
            await looked_up(line, found)
            if number == "1":
                assert (await moved(line, Op.COMPLETE, 3)).task_id == "t1@1"
            await line.end()
    assert ends == [JobEnd.COMPLETED if number == "1" else JobEnd.LOST]
