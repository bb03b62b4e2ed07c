"""Every task ends in one state, whichever participant has it in hand and goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    bridge,
    connect,
    deadlock_is_an_error,
    let_manage,
    user,
    workflow_engine,
)
from tests.services.tasks.peers import Op, create, get, given, hibernate, operate, own, session_of

PARTICIPANTS = {
    "agent": lambda **init: agent("w", "i", "1", **init),
    "bridge": lambda **init: bridge("b", "1", **init),
    "user": lambda **init: user("ann", "window", **init),
    "workflow engine": workflow_engine,
}
every_participant = pytest.mark.parametrize("hello", PARTICIPANTS.values(), ids=PARTICIPANTS)
Hello = Callable[..., pb.UpstreamMessage]


async def begin_and_lose(core: Core, hello: Hello) -> tuple[str, str]:
    """Let a creator begin a task and lose its connection; (session, task)."""
    async with connect(core, hello(), wait_ack=False) as creator:
        session_id = await session_of(creator)
        task_id = await own(creator, workspace="w")
        creator.cut()
    return session_id, task_id


async def test_a_second_resume_begins_nothing_for_the_worker(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator)).task_id
        await barrier(worker)
        assert (await operate(worker, Op.CLAIM, task_id)).success
        await hibernate(worker, task_id)
        for _ in range(2):
            resumed = await operate(creator, Op.RESUME, task_id)
            assert (resumed.success, resumed.task.status) == (True, pb.TASK_STATUS_QUEUED)
        await barrier(worker)
        assert given(worker) == [task_id, task_id]  # once, and once since it went to sleep
        assert (await operate(worker, Op.RESUME, task_id)).task.status == pb.TASK_STATUS_RUNNING


@every_participant
@pytest.mark.parametrize("clean", [True, False])
async def test_what_its_creator_began_and_left_has_failed(world: World, hello: Hello, clean: bool) -> None:
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
        async with connect(core, hello()) as creator:
            task_id = await own(creator, workspace="w")
            if clean:
                creator.finish()
            else:
                creator.cut()
        await trio.sleep(29)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_RUNNING
        await trio.sleep(2)
        task = await get(watcher, task_id)
        assert task.status == pb.TASK_STATUS_FAILED
        assert "did not reconnect within grace window" in task.error


@every_participant
async def test_what_its_creator_never_began_is_cancelled(world: World, hello: Hello) -> None:
    limits = {"interactive_ttl_s": 600, "pool_ttl_s": 600}
    async with world.open(tasks=limits) as core, connect(core, agent("w", "c", "1")) as watcher:
        async with connect(core, hello()) as creator:
            task_id = (await create(creator, assignment_mode=pb.SELF_ASSIGN, workspace="w")).task_id
            await trio.sleep(2 * 600)
            assert (await get(watcher, task_id)).status == pb.TASK_STATUS_QUEUED
        await trio.sleep(590)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_QUEUED
        await trio.sleep(20)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_CANCELLED


@every_participant
async def test_a_creator_that_is_back_goes_on(world: World, hello: Hello) -> None:
    async with deadlock_is_an_error(), world.open() as core:
        session_id, task_id = await begin_and_lose(core, hello)
        await trio.sleep(20)
        async with connect(core, hello(resume_session_id=session_id)) as back:
            await trio.sleep(600)
            assert (await get(back, task_id)).status == pb.TASK_STATUS_RUNNING
            assert (await operate(back, Op.COMPLETE, task_id)).success


@every_participant
async def test_a_creator_that_is_back_and_goes_again_has_left(world: World, hello: Hello) -> None:
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
        session_id, task_id = await begin_and_lose(core, hello)
        await trio.sleep(10)
        async with connect(core, hello(resume_session_id=session_id)) as back:
            await trio.sleep(60)
            back.cut()
        await trio.sleep(29)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_RUNNING
        await trio.sleep(2)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_FAILED


@every_participant
@pytest.mark.parametrize("back", [True, False])
async def test_what_a_creator_begins_later_says_nothing_of_what_it_had_begun(
    world: World, hello: Hello, back: bool
) -> None:
    """Only one whose client continues its session remembers that."""
    async with deadlock_is_an_error(), world.open() as core:
        session_id, task_id = await begin_and_lose(core, hello)
        await trio.sleep(10)
        async with connect(core, hello(resume_session_id=session_id if back else "")) as later:
            other = await own(later, workspace="w")
            await trio.sleep(60)
            assert (await get(later, task_id)).status == (pb.TASK_STATUS_RUNNING if back else pb.TASK_STATUS_FAILED)
            assert (await operate(later, Op.COMPLETE, other)).success
        await trio.sleep(60)
        sessions = core.tasks.sessions
        assert (sessions._resumed_owners, sessions._registered_owners) == (set(), {})


@every_participant
async def test_a_creator_whose_gateway_is_killed_has_left(world: World, hello: Hello) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, hello()) as creator:
            task_id = await own(creator, workspace="w")
            world.fail()
        async with world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
            await trio.sleep(20)
            assert (await get(watcher, task_id)).status == pb.TASK_STATUS_RUNNING
            await trio.sleep(20)
            assert (await get(watcher, task_id)).status == pb.TASK_STATUS_FAILED


async def test_a_task_that_goes_on_while_its_creator_is_away_ends(world: World) -> None:
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
        let_manage(core)
        async with connect(core, bridge("b", "1")) as creator:
            task_id = await own(creator, workspace="w")
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
            assert (await operate(creator, Op.PAUSE, task_id, wait_spec=wait)).success
        await trio.sleep(60)
        assert (await operate(watcher, Op.RESUME, task_id)).success
        await trio.sleep(31)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_FAILED


@every_participant
async def test_a_creator_that_comes_anew_and_waits_has_its_task_in_hand(world: World, hello: Hello) -> None:
    """A wait shows that it knows of the task, as a claim does."""
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
        let_manage(core)
        _, task_id = await begin_and_lose(core, hello)
        await trio.sleep(20)
        async with connect(core, hello()) as anew:
            assert (await operate(anew, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=pb.WAIT_REASON_INPUT))).success
            await trio.sleep(60)
            assert (await operate(watcher, Op.RESUME, task_id)).task.status == pb.TASK_STATUS_RUNNING
            await trio.sleep(600)
            assert (await get(watcher, task_id)).status == pb.TASK_STATUS_RUNNING
            anew.cut()
        await trio.sleep(31)
        assert (await get(watcher, task_id)).status == pb.TASK_STATUS_FAILED


@every_participant
async def test_only_workers_report(world: World, hello: Hello) -> None:
    """A participant that is no worker begins nothing by a report."""
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as watcher:
        async with connect(core, hello()) as creator:
            task_id = (await create(creator, assignment_mode=pb.SELF_ASSIGN, workspace="w")).task_id
        async with connect(core, hello()) as anew:
            report = pb.ProgressReport(task_id=task_id, recipient="us::ann", request_id="report")
            anew.send(pb.UpstreamMessage(progress=report))
            await barrier(anew)
            refused = [one.error.code for one in anew.waiting("error")]
            began = (await get(watcher, task_id)).status == pb.TASK_STATUS_RUNNING
            by_agent = hello is PARTICIPANTS["agent"]
            assert (refused, began) == (([], True) if by_agent else (["ERR_INVALID_PRINCIPAL"], False))
