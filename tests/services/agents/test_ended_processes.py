"""What the report on the end of a process does to start, tasks and identity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, let_manage, message_to
from tests.services.agents.cast import (
    ECHO,
    assignment,
    create,
    echo,
    fail,
    launch,
    nothing_more,
    started_by,
    starts,
    statuses,
    until,
)
from tests.services.agents.ops import lister, register, starter
from tests.services.tasks.peers import Op, operate

REASON = "its process ended with exit code 1 after 0.1 s; its last lines:\nValueError: no"


@asynccontextmanager
async def started(
    core: Core, *, manage: bool = True
) -> AsyncIterator[tuple[MemoryLink, MemoryLink, MemoryLink, pb.TaskAssignment]]:
    """(an orchestrator that reports ends, another participant, the agent, its start)."""
    if manage:
        let_manage(core)
    async with connect(core, lister("1", "echo")) as orchestrator, connect(core, agent("w", "asker", "1")) as asker:
        await register(orchestrator, "echo")
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(core, started_by(asked)) as it:
            await until(core, "running")
            yield orchestrator, asker, it, asked


async def report(peer: MemoryLink, task_id: str, how: str) -> pb.TaskOperationResponse:
    if how == "well":
        return await operate(peer, Op.COMPLETE, task_id)
    return await fail(peer, task_id, REASON)


@pytest.mark.parametrize("how", ["well", "badly"])
@pytest.mark.parametrize("first", ["goodbye", "report"])
async def test_the_report_decides_how_a_start_ends_whichever_comes_first(core: Core, how: str, first: str) -> None:
    async with started(core) as (orchestrator, _, it, asked):
        if first == "goodbye":
            it.finish()
            await trio.sleep(1)
            assert await statuses(core) == ["running"]
        assert (await report(orchestrator, asked.task_id, how)).success
        it.finish()
        await until(core, "completed" if how == "well" else "failed")
        assert await starts(core) == [("completed", "") if how == "well" else ("failed", REASON)]


async def test_a_goodbye_without_a_report_is_a_good_end_after_the_grace_window(core: Core) -> None:
    async with started(core) as (orchestrator, _, it, asked):
        it.finish()
        await trio.sleep(4)
        assert await statuses(core) == ["running"]
        await trio.sleep(3)
        assert await statuses(core) == ["completed"]
        late = await report(orchestrator, asked.task_id, "badly")
        assert (late.success, await statuses(core)) == (False, ["completed"])


async def test_one_that_comes_back_after_its_goodbye_goes_on(core: Core) -> None:
    async with started(core) as (orchestrator, _, it, asked):
        it.finish()
        await trio.sleep(1)
        async with connect(core, started_by(asked)) as again:
            await trio.sleep(20)
            assert await statuses(core) == ["running"]
            again.finish()
            await report(orchestrator, asked.task_id, "well")
            await until(core, "completed")


async def test_an_orchestrator_that_does_not_report_leaves_it_to_the_goodbye(core: Core) -> None:
    async with connect(core, starter("1", "process")) as orchestrator:
        await register(orchestrator, "echo")
        async with connect(core, starter("2", "other")) as asker:
            await launch(asker, "1")
        asked = await assignment(orchestrator)
        async with connect(core, started_by(asked)) as it:
            await until(core, "running")
            it.finish()
            await trio.sleep(0.5)
            assert await statuses(core) == ["completed"]


@pytest.mark.parametrize("link", ["half open", "cut"])
async def test_tasks_and_identity_are_free_at_once(core: Core, link: str) -> None:
    async with started(core) as (orchestrator, asker, it, asked):
        job = (await create(asker)).task_id
        assert (await assignment(it)).task_id == job
        assert (await operate(it, Op.CLAIM, job)).success
        if link == "cut":
            it.cut()
            await trio.sleep(0.1)
        since = trio.current_time()
        assert (await report(orchestrator, asked.task_id, "badly")).success
        if link == "half open":
            assert (await it.wait_end()).status is Status.CANCELLED
        status = "SELECT status FROM tasks WHERE task_id = $1"
        while (await core.tasks.engine.database.fetch(status, job)) != [("failed",)]:
            await trio.sleep(0.1)
        async with connect(core, echo()):
            assert trio.current_time() - since < 3  # virtual time; the grace window has 5 s


async def test_a_retry_policy_decides_about_its_tasks(core: Core) -> None:
    async with started(core) as (orchestrator, asker, it, asked):
        policy = pb.RetryPolicy(max_attempts=2, initial_delay_ms=100)
        job = (await create(asker, retry_policy=policy)).task_id
        await assignment(it)
        assert (await operate(it, Op.CLAIM, job)).success
        await report(orchestrator, asked.task_id, "badly")
        assert (await assignment(orchestrator)).task_id != asked.task_id  # for the second attempt


async def test_no_other_participant_may_report_it(core: Core) -> None:
    async with (
        started(core, manage=False) as (_, asker, _it, asked),
        connect(core, lister("2", "echo")) as other,
        connect(core, starter("3", "process")) as third,
    ):
        for peer in (asker, other, third):
            for how in ("well", "badly"):
                assert not (await report(peer, asked.task_id, how)).success
        await nothing_more(other, third)
        assert await statuses(core) == ["running"]


async def test_an_orchestrator_without_room_gives_a_start_back(core: Core) -> None:
    async with connect(core, lister("1", "echo")) as first, connect(core, starter("9", "other")) as asker:
        await register(asker, "echo")
        await launch(asker, "1")
        asked = await assignment(first)
        for _ in range(5):  # that is no failed attempt
            assert (await operate(first, Op.REJECT, asked.task_id, reason="no room")).success
            assert (await assignment(first)).task_id == asked.task_id
        async with connect(core, lister("2", "echo")) as second:
            assert (await operate(first, Op.REJECT, asked.task_id, reason="no room")).success
            assert (await assignment(second)).task_id == asked.task_id
            assert not (await operate(first, Op.REJECT, asked.task_id)).success
        assert "dlq" not in await statuses(core)


async def test_a_report_is_kept_when_the_gateway_is_killed_before_the_session_ends(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, started(core) as (orchestrator, _, it, asked):
            it.pause()
            assert (await report(orchestrator, asked.task_id, "badly")).success
            for database in world.databases.values():
                database.failing = True
        async with world.open() as core:
            await trio.sleep(2)
            assert await starts(core) == [("failed", REASON)]


async def test_a_message_after_the_goodbye_starts_it_again_when_the_report_is_there(core: Core) -> None:
    async with started(core) as (orchestrator, asker, it, asked):
        it.finish()
        await trio.sleep(0.5)
        asker.send(message_to(ECHO, b"two"))
        await trio.sleep(0.5)
        await report(orchestrator, asked.task_id, "well")
        assert (await assignment(orchestrator)).task_id != asked.task_id
