"""Participants in memory that create tasks and work on them."""

from __future__ import annotations

from itertools import count
from typing import Any

import trio

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb

_numbers = count(1)
Op = pb.TaskOperation


async def answer(peer: MemoryLink, case: str, request_id: str) -> Any:
    """The answer to a request; what came before it is left for the test to read."""
    while True:
        for one in peer.waiting(case):
            payload = getattr(one, case)
            if payload.request_id == request_id:
                return payload
        if peer.ended is not None:
            raise peer.ended
        await trio.sleep(0.001)


async def create(peer: MemoryLink, **fields: Any) -> pb.CreateTaskResponse:
    """What becomes of a new task.

    A POOL task for the implementation `i` unless said otherwise.
    """
    fields = {"task_type": "t", "assignment_mode": pb.POOL, "target_implementation": "i", **fields}
    request_id = f"create-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(request_id=request_id, **fields)))
    response: pb.CreateTaskResponse = await answer(peer, "create_task", request_id)
    return response


async def operate(
    peer: MemoryLink, op: pb.TaskOperation.OpType.ValueType, task_id: str, **fields: Any
) -> pb.TaskOperationResponse:
    """The answer to a task operation."""
    request_id = f"op-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(task_op=Op(op=op, task_id=task_id, request_id=request_id, **fields)))
    response: pb.TaskOperationResponse = await answer(peer, "task_op", request_id)
    return response


async def own(peer: MemoryLink, **fields: Any) -> str:
    """A task that its creator has begun."""
    created = await create(peer, assignment_mode=pb.SELF_ASSIGN, **fields)
    assert created.success, created.error_message
    await begin(peer, created.task_id)
    return created.task_id


async def begin(worker: MemoryLink, *task_ids: str) -> None:
    """Claim tasks, which a worker has been given or is about to be."""
    for task_id in task_ids:
        while not (await get(worker, task_id)).assigned_to:
            await trio.sleep(0.01)
        assert (await operate(worker, Op.CLAIM, task_id)).success


async def hibernate(worker: MemoryLink, task_id: str) -> None:
    """Save a checkpoint, and wait for a resume."""
    save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="k", data=b"x", request_id=f"save-{task_id}")
    worker.send(pb.UpstreamMessage(checkpoint_op=save))
    assert (await answer(worker, "checkpoint", save.request_id)).success
    wait = pb.WaitSpec(reason=pb.WAIT_REASON_HIBERNATION, hibernation=pb.HibernationDescriptor(checkpoint_key="k"))
    assert (await operate(worker, Op.PAUSE, task_id, wait_spec=wait)).success


async def bury(creator: MemoryLink) -> str:
    """A new task, when it has met its last deadline and is a dead letter."""
    late = {"schedule_to_close_ms": "1000"}
    task_id = (await create(creator, metadata=late, target_implementation="none")).task_id
    await trio.sleep(2)
    assert (await get(creator, task_id)).metadata["_dead_letter"] == "true"
    return task_id


def report(task_id: str, **fields: Any) -> pb.UpstreamMessage:
    """A report of progress."""
    return pb.UpstreamMessage(progress=pb.ProgressReport(task_id=task_id, state="running", **fields))


async def session_of(peer: MemoryLink) -> str:
    """The session of a participant whose acknowledgement was not waited for."""
    return (await peer.next("connection_ack")).connection_ack.session_id


async def wait_for(peer: MemoryLink, task_id: str, *others: str, **fields: Any) -> pb.TaskOperationResponse:
    """Let a task wait for others."""
    return await operate(peer, Op.WAIT_FOR, task_id, wait_spec=pb.WaitSpec(depends_on=others, **fields))


async def get(peer: MemoryLink, task_id: str) -> pb.TaskInfo:
    """A task as it is shown."""
    request_id = f"get-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(task_query=pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id=request_id)))
    response: pb.TaskQueryResponse = await answer(peer, "task_query", request_id)
    assert response.success, response.error
    return response.task


async def listed(peer: MemoryLink, **filters: Any) -> list[pb.TaskInfo]:
    """The tasks of a list."""
    query = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=pb.TaskFilter(**filters), request_id=f"list-{next(_numbers)}")
    peer.send(pb.UpstreamMessage(task_query=query))
    return list((await answer(peer, "task_query", query.request_id)).tasks)


def given(peer: MemoryLink) -> list[str]:
    """The tasks that a worker has been given and the test has not taken yet."""
    return [one.task_assignment.task_id for one in peer.waiting("task_assignment")]
