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


async def get(peer: MemoryLink, task_id: str) -> pb.TaskInfo:
    """A task as it is shown."""
    request_id = f"get-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(task_query=pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id=request_id)))
    response: pb.TaskQueryResponse = await answer(peer, "task_query", request_id)
    assert response.success, response.error
    return response.task


def given(peer: MemoryLink) -> list[str]:
    """The tasks that a worker has been given and the test has not taken yet."""
    return [one.task_assignment.task_id for one in peer.waiting("task_assignment")]
