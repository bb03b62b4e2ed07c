"""A repeated request happens once, also after a commit without an answer.

The same holds for idempotency keys. Tasks never wait for each other in a circle.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers import operate as operations
from aether_trio.storage.base import Fetch, Statement
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, let_manage
from tests.helpers.direct import caught
from tests.services.tasks.peers import Op, create, get, hibernate, operate, own, report, wait_for

FAILED = pb.TASK_STATUS_FAILED
EVENTS = "SELECT event FROM task_events WHERE task_id = $1 ORDER BY number"


def events_of(world: World, task_id: str) -> list[pb.TaskEvent]:
    return [pb.TaskEvent.FromString(event) for (event,) in world.databases["tasks"].query(EVENTS, task_id)]


async def test_a_retry_whose_commit_was_not_answered_has_been_made(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "c", "2")) as other:
        let_manage(core)
        task_id = (await create(creator)).task_id
        assert (await operate(creator, Op.CANCEL, task_id)).success
        told = len(events_of(world, task_id))
        world.databases["tasks"].unanswered_writes = 1
        answered = await operate(creator, Op.RETRY, task_id)
        assert answered.success, answered.error
        assert answered.task.status == pb.TASK_STATUS_QUEUED
        assert len(events_of(world, task_id)) == told + 1
        again = await operate(other, Op.RETRY, task_id)
        assert "invalid transition" in again.error


async def test_a_resume_of_a_sleeper_whose_commit_was_not_answered_has_been_made(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        await hibernate(worker, task_id)
        told = len(events_of(world, task_id))
        world.databases["tasks"].unanswered_writes = 1
        answered = await operate(creator, Op.RESUME, task_id)
        assert answered.success, answered.error
        assert len(events_of(world, task_id)) == told + 1


@pytest.mark.parametrize("why", ["", "the disk is full"])
async def test_a_failure_whose_commit_was_not_answered_is_one(core: Core, world: World, why: str) -> None:
    """The same worker has begun the next attempt when the failure is repeated."""
    policy = pb.RetryPolicy(max_attempts=3, backoff=pb.BACKOFF_STRATEGY_FIXED)

    async def look_for_what_is_due() -> None:
        while True:
            core.tasks.engine.timer.look()
            await trio.sleep(0.001)

    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator, retry_policy=policy)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        world.databases["tasks"].unanswered_writes = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_for_what_is_due)
            answered = await operate(worker, Op.FAIL, task_id, reason=why)
            nursery.cancel_scope.cancel()
        assert answered.success, answered.error
        failures = [event for event in events_of(world, task_id) if event.status_changed.to_status == FAILED]
        assert [event.status_changed.reason for event in failures] == [why or "task failed"]
        assert world.databases["tasks"].query("SELECT status, epoch FROM tasks") == [("assigned", 2)]


@pytest.mark.parametrize(
    ("fault", "count"), [*(("unanswered_writes", count) for count in (0, 1, 3, 8)), ("fail_writes", 3)]
)
async def test_a_report_whose_write_is_in_doubt_is_one_event(core: Core, world: World, fault: str, count: int) -> None:
    """Also where two say the same at the same time.

    And a commit that never answers in time is asked for by the writer.
    """
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        before = len(events_of(world, task_id))
        setattr(world.databases["tasks"], fault, count)
        peer.send(*(report(task_id, summary=summary) for summary in ("half", "half", "more")))
        await trio.sleep(60)
        told = [event.progress.message for event in events_of(world, task_id)[before:]]
        assert told == ["half", "half", "more"]


async def test_a_key_that_was_used_for_something_else_is_refused(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        first = await create(peer, idempotency_key="k", payload=b"one", metadata={"b": "1", "a": "2"})
        again = await create(peer, idempotency_key="k", payload=b"one", metadata={"a": "2", "b": "1"})
        assert (again.success, again.task_id) == (True, first.task_id)
        for fields in ({"payload": b"two"}, {"payload": b"one", "priority": pb.TASK_PRIORITY_HIGH}, {"task_type": "u"}):
            refused = await create(peer, idempotency_key="k", **fields)
            assert not refused.success
            assert "idempotency_key" in refused.error_message
            assert "another request" in refused.error_message
            assert not refused.task_id
        elsewhere = await create(peer, idempotency_key="k2", payload=b"two")
        assert elsewhere.success


@pytest.mark.parametrize("length", [1, 2, 3, 40])
async def test_tasks_that_would_wait_for_themselves_or_each_other_are_refused(core: Core, length: int) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        tasks = [await own(peer) for _ in range(length)]
        other = await own(peer)
        for one, after in pairwise(tasks):
            waiting = await wait_for(peer, one, after)
            assert waiting.success, waiting.error
        last = tasks[-1]
        problem = "cannot wait for itself" if length == 1 else f"{tasks[0]} waits for this task"
        for op in (Op.WAIT_FOR, Op.PAUSE):
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_DEPENDENCY, depends_on=[other, tasks[0]])
            refused = await operate(peer, op, last, wait_spec=wait)
            assert (refused.success, problem in refused.error) == (False, True)
        assert (await get(peer, last)).status == pb.TASK_STATUS_RUNNING
        assert (await wait_for(peer, last, other)).success
        assert (await operate(peer, Op.COMPLETE, other)).success
        assert (await operate(peer, Op.COMPLETE, last)).success
        assert {(await get(peer, task_id)).status for task_id in tasks[-2:-1]} <= {pb.TASK_STATUS_RUNNING}


async def test_a_task_that_is_tried_again_may_close_a_circle(core: Core) -> None:
    """It had ended for the one that waits for it and for another one.

    When that ends, it is waited for anew.
    """
    async with connect(core, agent("w", "c", "1")) as peer:
        first, other, waiting = await own(peer), await own(peer), await own(peer)
        assert (await wait_for(peer, waiting, first, other)).success
        assert (await operate(peer, Op.CANCEL, first)).success
        assert (await operate(peer, Op.RETRY, first)).success
        assert (await operate(peer, Op.CLAIM, first)).success
        refused = await wait_for(peer, first, waiting)
        assert f"{waiting} waits for this task" in refused.error


async def test_a_circle_is_looked_for_within_a_bound(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_CIRCLE", 4)
    async with connect(core, agent("w", "c", "1")) as peer:
        awaited, other = await own(peer), await own(peer)
        assert (await wait_for(peer, await own(peer), awaited)).success
        assert (await wait_for(peer, other, *[await own(peer) for _ in range(4)])).success
        refused = await wait_for(peer, awaited, other)
        assert "for more than 4 tasks" in refused.error
        assert not errors(peer)
        await barrier(peer)


async def test_a_circle_is_looked_for_in_small_steps(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row names up to 1,000 tasks, which are decoded in one step."""
    statements: list[Statement] = []
    check = operations._check_circle
    monkeypatch.setattr(operations, "_check_circle", lambda *args: caught(check(*args), statements))
    async with connect(core, agent("w", "c", "1")) as peer:
        awaited = await own(peer)
        assert (await wait_for(peer, await own(peer), awaited)).success
        others = [f"{awaited}-{number}" for number in range(120)]
        operation = await operate(
            peer, Op.PAUSE, awaited, wait_spec=pb.WaitSpec(reason=pb.WAIT_REASON_DEPENDENCY, depends_on=others)
        )
        assert operation.success, operation.error
        asked = [len(one.args) - 2 for one in statements if isinstance(one, Fetch)]
        assert len(asked) == len(statements)
        assert sum(asked) >= len(others)
        assert max(asked) <= 50


@pytest.mark.parametrize("lost", [1, 3, 8])
async def test_what_an_unanswered_commit_has_put_off_happens_at_its_moment(core: Core, world: World, lost: int) -> None:
    """The moment was in the table only, and the timer did not know of it."""
    policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=5_000)
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator, retry_policy=policy)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        world.databases["tasks"].unanswered_writes = lost
        await operate(worker, Op.FAIL, task_id)
        world.databases["tasks"].unanswered_writes = 0
        await trio.sleep(10)
        assert world.databases["tasks"].query("SELECT status, epoch FROM tasks") == [("assigned", 2)]
