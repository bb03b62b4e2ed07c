"""Dead letters, and what goes on when something of ours does not."""

from __future__ import annotations

from typing import Any

import pytest
import structlog.testing
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.tasks import Move, TaskRow
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.services.tasks.transaction import due
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect
from tests.services.tasks.peers import Op, bury, create, get, given, operate


async def test_letters_are_listed_shown_and_resolved(core: Core) -> None:
    letters = DeadLetters(core.tasks.engine)
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("v", "c", "1")) as elsewhere:
        here, there = sorted([await bury(creator), await bury(creator)]), await bury(elsewhere)
        assert [one.task_id for one in await letters.page("w")] == here
        assert {one.task_id for one in await letters.page()} == {*here, there}
        assert [one.task_id for one in await letters.page("w", after=here[0])] == here[1:]
        assert [one.task_id for one in await letters.page("w", limit=1)] == here[:1]
        letter, task = await letters.show(here[0])
        assert letter is not None
        assert task is not None
        assert (letter.workspace, letter.error_type, letter.resolved_ms) == ("w", "TIMEOUT", 0)
        assert "schedule_to_close" in letter.reason
        assert await letters.resolve(here[0], "us::operator::1", "seen")
        assert not await letters.resolve(here[0], "us::operator::1", "seen")
        assert [one.task_id for one in await letters.page("w")] == here[1:]
        assert [one.notes for one in await letters.page("w", resolved=True)] == ["seen", ""]
        assert await letters.show("no-such-task") == (None, None)


async def test_a_letter_is_requeued_once(core: Core) -> None:
    letters = DeadLetters(core.tasks.engine)
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        await barrier(worker)
        task_id = (
            await create(creator, metadata={"start_to_close_ms": "1000"}, retry_policy=pb.RetryPolicy(max_attempts=1))
        ).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        await trio.sleep(2)
        assert not await letters.requeue("no-such-task", "me")
        assert await letters.requeue(task_id, "me")
        assert not await letters.requeue(task_id, "me")
        await barrier(worker)
        assert given(worker) == [task_id, task_id]
        assert await letters.page("w") == []
        assert (await get(creator, task_id)).attempt == 0


async def test_its_creator_hears_of_it_though_it_had_failed_before(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=60_000)
    late = {"schedule_to_close_ms": "1000"}
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, target_implementation="none", retry_policy=policy, metadata=late)).task_id
        assert (await operate(creator, Op.FAIL, task_id, reason="torn")).success
        await trio.sleep(2)
        await barrier(creator)
        told = [one.progress_update for one in creator.waiting("progress_update")]
    assert [(one.state, one.summary.partition(" (")[0]) for one in told] == [
        ("failed", "task failed: torn"),
        ("dlq", "task dlq: not done within 1000 ms of its creation"),
    ]


async def test_a_notice_that_cannot_be_sent_costs_a_second_and_not_the_gateway(core: Core) -> None:
    class Broken:
        def kick(self) -> None:
            raise ZeroDivisionError

    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        await barrier(worker)
        core.tasks.engine._status_kicks.add(Broken())
        await trio.sleep(2)
        task_id = (await create(creator)).task_id
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        assert (await creator.next("progress_update")).progress_update.state == "completed"


async def test_a_mistake_of_ours_costs_a_second_and_not_the_gateway(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire, failures = due.fire, [2]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        failures[0] -= 1
        if failures[0] >= 0:
            raise ZeroDivisionError
        return fire(*args, **kwargs)

    monkeypatch.setattr(due, "fire", sometimes)
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, metadata={"schedule_to_close_ms": "1000"})).task_id
        await trio.sleep(10)
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_FAILED
    assert failures[0] < 0


async def test_a_mistake_with_one_task_delays_no_deadline_of_others(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its page is undone, and made again without it."""
    move_of, bad = due.move_of, "none"

    def all_but_one(task: TaskRow, *args: Any) -> Any:
        if task.task_id == bad:
            raise ZeroDivisionError
        return move_of(task, *args)

    monkeypatch.setattr(due, "move_of", all_but_one)
    async with connect(core, agent("w", "c", "1")) as creator:
        ids = [(await create(creator, metadata={"schedule_to_close_ms": "1000"})).task_id for _ in range(3)]
        bad = ids[1]
        await trio.sleep(10)
        found = [(await get(creator, task_id)).status for task_id in ids]
        assert found == [pb.TASK_STATUS_FAILED, pb.TASK_STATUS_QUEUED, pb.TASK_STATUS_FAILED]
        bad = "none"
        await trio.sleep(60)
        assert (await get(creator, ids[1])).status == pb.TASK_STATUS_FAILED


async def test_what_cannot_be_moved_at_its_moment_is_looked_at_once_a_minute(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due, "move_of", lambda task, _, facts: (Move.WAKE, facts))
    engine = core.tasks.engine
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, metadata={"schedule_to_close_ms": "1000"})).task_id
        await trio.sleep(10)
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_QUEUED
        before = engine.statistics().due
        await trio.sleep(180)
        assert engine.statistics().due - before == 3


async def test_an_outage_is_in_the_log_once(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, metadata={"schedule_to_close_ms": "1000"})).task_id
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                world.databases["tasks"].failing = True
                core.tasks.engine.timer.look()
                await trio.sleep(30)
                world.databases["tasks"].failing = False
                await trio.sleep(30)
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_FAILED
    said = [one["event"] for one in logs if one["event"].startswith("deadlines and retries")]
    assert said == ["deadlines and retries of tasks wait until storage answers"] * 2
