"""A creator and a worker, for the tests of work: on a real gateway, or on a scripted one that says
what the test tells it to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Unpack

import anyio

from aether_trio.client import AgentClient, ClientOptions, Job, JobEnd
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import Task
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, agent
from tests.client.peer import Line

LIMIT_S = 300.0


def worker(address: str, specifier: str = "1", **options: Unpack[ClientOptions]) -> AgentClient:
    """A worker of the pool "bench"."""
    options.setdefault("retry", QUICK)
    return AgentClient(address, workspace="w", implementation="bench", specifier=specifier, **options)


@asynccontextmanager
async def open_shop(address: str) -> AsyncIterator[tuple[AgentClient, AgentClient]]:
    """(creator, worker), connected."""
    with anyio.fail_after(LIMIT_S):
        async with agent(address, "boss") as boss, worker(address) as one:
            yield boss, one


async def known(boss: AgentClient, one: AgentClient) -> None:
    """Return when the worker has done a task: from then on it is given those that are ordered in
    their order.

    It joins its pool a moment after its acknowledgement; what is ordered in that moment may be told
    behind what is ordered next.
    """
    await order(boss, "known")
    async with await one_of(one):
        pass


async def order(boss: AgentClient, payload: str = "", **fields: Any) -> str:
    """A task for the pool; its id."""
    return (await boss.tasks.within(LIMIT_S).create("job", payload.encode(), pool="bench", **fields)).task_id


async def one_of(client: AgentClient) -> Job:
    """The next task."""
    return await anext(client.work())


async def wait_for(boss: AgentClient, task_id: str, *statuses: TaskStatus) -> Task:
    """Return when the task has one of these."""
    while (task := await boss.tasks.within(LIMIT_S).get(task_id)).status not in statuses:
        await anyio.sleep(0.01)
    return task


async def wait_until_over(job: Job) -> JobEnd:
    """Return when the gateway has taken it away, or somebody has ended it."""
    while job.end is None:
        await anyio.sleep(0.005)
    return job.end


# -- the scripted gateway's side


def assignment(task_id: str = "t1", payload: bytes = b"p") -> dict[str, pb.TaskAssignment]:
    """For `line.tell`."""
    return {
        "task_assignment": pb.TaskAssignment(
            task_id=task_id, task_type="job", assigned_to="ag::w::bench::1", payload=payload, workspace="w"
        )
    }


def info(status: int, task_id: str = "t1", assigned_to: str = "ag::w::bench::1", error: str = "") -> pb.TaskInfo:
    """A task as it is told."""
    return pb.TaskInfo(
        task_id=task_id,
        task_type="job",
        status=pb.TaskStatus.ValueType(status),
        assigned_to=assigned_to,
        error=error,
        creator_actor_id="ag::w::i::boss",
    )


async def moved(line: Line, kind: int, status: int) -> pb.TaskOperation:
    """The next task operation, which must be of this kind.

    It is answered with a task of this status.
    """
    op = (await line.asked()).task_op
    assert op.op == kind, op
    response = pb.TaskOperationResponse(success=True, task=info(status, op.task_id), request_id=op.request_id)
    await line.tell(task_op=response)
    return op


async def refused(line: Line, kind: int, error: str) -> None:
    """The next task operation, which must be of this kind, is refused."""
    op = (await line.asked()).task_op
    assert op.op == kind, op
    await line.tell(task_op=pb.TaskOperationResponse(error=error, request_id=op.request_id))


async def looked_up(line: Line, task: pb.TaskInfo | None) -> None:
    """The next message, which must be a GET, is answered with this task, or that there is none."""
    query = (await line.asked()).task_query
    assert query.op == pb.TaskQuery.GET
    assert query.task_id
    response = pb.TaskQueryResponse(request_id=query.request_id)
    if task is None:
        response.error = "task not found"
    else:
        response.success = True
        response.task.CopyFrom(task)
    await line.tell(task_query=response)


async def subscribed(line: Line, subscription_id: str = "s") -> None:
    """The next message, which must be a SUBSCRIBE, is answered."""
    op = (await line.asked()).task_subscription_op
    assert op.op == pb.TaskSubscriptionOperation.SUBSCRIBE, op
    await line.tell(
        task_subscription_response=pb.TaskSubscriptionOperationResponse(
            success=True, client_request_id=op.client_request_id, task_id=op.task_id, subscription_id=subscription_id
        )
    )
