"""How many tasks a worker is given, and what is left of them when it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Move, Reason, TaskRow, Wait
from aether_trio.services.tasks.handlers.operate import OperationRequest
from aether_trio.services.tasks.handlers.operate import operate as move
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction.task_transaction import Mutation
from aether_trio.session.init_connection import WORKER_TASKS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, service
from tests.services.tasks.peers import Op, begin, create, given, hibernate, operate, session_of


def wanting(number: str) -> pb.ExtensionDeclaration:
    return pb.ExtensionDeclaration(uri=WORKER_TASKS, version=number)


async def test_a_worker_is_given_as_many_as_it_wants_and_the_next_when_one_has_ended(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        ids = [(await create(creator)).task_id for _ in range(4)]
        async with connect(core, agent("w", "i", "1", extensions=[wanting("2")])) as worker:
            await barrier(worker)
            assert given(worker) == ids[:2]
            assert (await operate(worker, Op.COMPLETE, ids[0])).success
            assert given(worker) == ids[:3]
            # A pause lets it have another one, which it keeps when the first goes on.
            assert (await operate(worker, Op.CLAIM, ids[1])).success
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
            assert (await operate(worker, Op.PAUSE, ids[1], wait_spec=wait)).success
            assert given(worker) == ids
            assert (await operate(worker, Op.RESUME, ids[1])).success
            assert given(worker) == ids


async def test_a_worker_that_wants_none_is_given_what_is_for_it_alone(core: Core) -> None:
    async with (
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1", extensions=[wanting("0")])) as worker,
    ):
        await barrier(worker)
        await create(creator)
        aimed = await create(creator, assignment_mode=pb.TARGETED, target_agent_id="ag::w::i::1")
        await barrier(worker)
        assert aimed.status == "assigned"
        assert given(worker) == [aimed.task_id]


async def test_what_is_no_number_of_tasks_is_refused(core: Core) -> None:
    async with connect(core, agent("w", "i", "1", extensions=[wanting("many")]), wait_ack=False) as worker:
        assert (await worker.wait_end()).status is Status.INVALID_ARGUMENT
    async with connect(core, agent("w", "i", "1", extensions=[wanting("7")]), wait_ack=False) as worker:
        ack = (await worker.next("connection_ack")).connection_ack
        assert [(one.uri, one.supported) for one in ack.negotiated_extensions] == [(WORKER_TASKS, True)]


async def test_agents_of_the_workspace_come_before_services(core: Core) -> None:
    async with (
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, service("i", "1")) as everywhere,
        connect(core, agent("w", "i", "1", extensions=[wanting("1")])) as here,
    ):
        await barrier(here, everywhere)
        first, second = [(await create(creator)).task_id for _ in range(2)]
        await barrier(here, everywhere)
        assert (given(here), given(everywhere)) == ([first], [second])


async def test_a_client_is_told_of_no_hibernation_before_its_acknowledgement(core: Core) -> None:
    """The client would take it for its acknowledgement, as the published SDK does."""
    async with connect(core, agent("w", "boss", "1")) as boss, trio.open_nursery() as nursery:
        worker, back, gate = MemoryLink(), MemoryLink(), trio.Event()
        nursery.start_soon(core.sessions.serve, worker)
        worker.send(agent("w", "i", "1"))
        session_id = await session_of(worker)
        task_id = (await create(boss)).task_id
        await begin(worker, task_id)
        save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="half", data=b"done")
        worker.send(pb.UpstreamMessage(checkpoint_op=save))
        assert (await worker.next("checkpoint")).checkpoint.success
        find = core.starter.current_start

        async def late(identity: Identity) -> TaskRow | None:
            await gate.wait()
            return await find(identity)

        async def written_late(mutation: Mutation) -> None:
            await gate.wait()
            await core.tasks.engine.perform(mutation)

        core.starter.current_start = late  # type: ignore[method-assign]
        core.tasks.engine.writes._perform = written_late  # the former session's row is still there
        nursery.start_soon(core.sessions.serve, back)
        back.send(agent("w", "i", "1", resume_session_id=session_id))
        await worker.wait_end()
        # Only the worker can; what its former session asked for is done late.
        asked = OperationRequest(task_id, Move.PAUSE, wait=Wait(Reason.HIBERNATION, checkpoint_key="half"))
        caller = Caller(Identity.parse("ag::w::i::1"), "w")
        outcome = await core.tasks.engine.run_program(
            lambda context: move(context, caller, asked), lambda result: result.tx
        )
        assert outcome.refusal == ""
        gate.set()
        assert (await back.receive_message()).WhichOneof("payload") == "connection_ack"
        back.finish()


@asynccontextmanager
async def worker_of_hibernated(core: Core) -> AsyncIterator[tuple[MemoryLink, str]]:
    """A worker that was told of the hibernation of its task, and the task's id."""
    if not core.tasks.engine.database.shared:
        pytest.skip("no other node writes to these tasks")
    async with connect(core, agent("w", "boss", "1")) as boss, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(boss)).task_id
        await begin(worker, task_id)
        await hibernate(worker, task_id)
        await worker.next("task_hibernated")
        yield worker, task_id


async def test_a_hibernation_that_another_node_tells_of_is_told_when_storage_answers_again(
    core: Core, world: World
) -> None:
    engine = core.tasks.engine
    async with worker_of_hibernated(core) as (worker, task_id):
        world.databases["tasks"].failing = True
        engine._hibernated_elsewhere(task_id)
        await trio.sleep(20)
        world.databases["tasks"].failing = False
        assert (await worker.next("task_hibernated")).task_hibernated.task_id == task_id


async def test_a_hibernation_that_another_node_tells_of_during_the_look_at_the_last_one_is_told(
    core: Core, world: World
) -> None:
    engine = core.tasks.engine
    async with worker_of_hibernated(core) as (worker, task_id):
        gate = world.databases["tasks"].after_read
        gate.close()
        engine._hibernated_elsewhere(task_id)
        await gate.arrival()
        engine._hibernated_elsewhere(task_id)
        gate.open()
        for _ in range(2):
            assert (await worker.next("task_hibernated")).task_hibernated.task_id == task_id
