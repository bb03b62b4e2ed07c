"""What a client has asked for is done wholly, though it is cut meanwhile."""

from __future__ import annotations

import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.protobuf import CANCEL, ON_PARENT_CANCELLED
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect
from tests.services.tasks.peers import Op, create, given, own

GONE_S = 2.0
"""Longer than a session lasts behind its broken connection."""
OF_POOL = pb.CreateTaskRequest(task_type="t", assignment_mode=pb.POOL, target_implementation="i")
STATUS = "SELECT status FROM tasks WHERE target_implementation = 'i'"


async def ask_and_be_cut(client: MemoryLink, world: World, request: pb.UpstreamMessage) -> None:
    """Have a request committed, and its session end before it is answered."""
    gate = world.databases["tasks"].after_write
    gate.close()
    client.send(request)
    await gate.arrival()
    client.cut()
    await trio.sleep(GONE_S)
    gate.open()


async def test_a_worker_is_given_the_task_of_a_creator_that_was_cut(core: Core, world: World) -> None:
    async with connect(core, agent("w", "i", "1")) as worker, connect(core, agent("w", "boss", "1")) as boss:
        await barrier(worker)
        await ask_and_be_cut(boss, world, pb.UpstreamMessage(create_task=OF_POOL))
        await barrier(worker)
        assert len(given(worker)) == 1


async def test_the_children_of_a_task_end_with_it_though_its_canceller_was_cut(core: Core, world: World) -> None:
    async with connect(core, agent("w", "boss", "1")) as boss:
        parent = await own(boss)
        for _ in range(3):
            await create(boss, parent_task_id=parent, metadata={ON_PARENT_CANCELLED: CANCEL})
        cancel = pb.TaskOperation(op=Op.CANCEL, task_id=parent, request_id="r")
        await ask_and_be_cut(boss, world, pb.UpstreamMessage(task_op=cancel))
    await trio.sleep(60)  # after an hour a deadline ends the children
    assert world.databases["tasks"].query(f"{STATUS} AND parent_task_id <> ''") == [("cancelled",)] * 3


async def test_the_deadline_of_a_task_falls_due_though_its_creator_was_cut(core: Core, world: World) -> None:
    async with connect(core, agent("w", "boss", "1")) as boss:
        request = pb.CreateTaskRequest()
        request.CopyFrom(OF_POOL)
        request.metadata["schedule_to_close_ms"] = "10000"
        await ask_and_be_cut(boss, world, pb.UpstreamMessage(create_task=request))
    assert world.databases["tasks"].query(STATUS) == [("pending",)]
    await trio.sleep(60)
    assert world.databases["tasks"].query(STATUS) == [("dlq",)]


async def test_a_worker_is_given_the_task_of_an_unanswered_commit_whose_client_has_left(
    core: Core, world: World
) -> None:
    """The session ends in the pause before its transaction would run again."""
    async with connect(core, agent("w", "i", "1")) as worker, connect(core, agent("w", "boss", "1")) as boss:
        await barrier(worker)
        world.databases["tasks"].unanswered_writes = 1
        boss.send(pb.UpstreamMessage(create_task=OF_POOL))
        while world.databases["tasks"].unanswered_writes:
            await trio.sleep(0.01)
        session = core.registry.holder("ag::w::boss::1")
        assert session is not None
        session.disconnect("enough")
        await trio.sleep(GONE_S)
        await barrier(worker)
        assert len(given(worker)) == 1
