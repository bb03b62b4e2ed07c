"""Connect a creator and a worker to a real or a scripted gateway."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Unpack

import anyio
import trio

from aether_trio.client import AgentClient, ClientOptions, Job, JobEnd
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import Task
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, agent, with_gateway
from tests.client.peer import Peer, scripted

LIMIT_S = 300.0


def worker(address: str, specifier: str = "1", **options: Unpack[ClientOptions]) -> AgentClient:
    options.setdefault("retry", QUICK)
    return AgentClient(address, workspace="w", implementation="bench", specifier=specifier, **options)


@asynccontextmanager
async def open_shop(address: str) -> AsyncIterator[tuple[AgentClient, AgentClient]]:
    with anyio.fail_after(LIMIT_S):
        async with agent(address, "boss") as boss, worker(address) as one:
            yield boss, one


def with_shop(**where: Any) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Make tests of a function that takes a creator and a worker; see `with_gateway`."""

    def decorate(body: Callable[..., Awaitable[None]]) -> Any:
        @wraps(body)
        async def test(address: str, **fixtures: Any) -> None:
            async with open_shop(address) as (boss, one):
                await body(boss, one, **fixtures)

        address, *rest = list(inspect.signature(body).parameters.values())[1:]
        test.__signature__ = inspect.Signature([address, *rest])  # type: ignore[attr-defined]
        return with_gateway(**where)(test)

    return decorate


async def known(boss: AgentClient, one: AgentClient) -> None:
    """Make tests of a function of a creator and a worker; see `with_gateway`."""
    await order(boss, "known")
    async with await one_of(one):
        pass


async def order(boss: AgentClient, payload: str = "", **fields: Any) -> str:
    return (await boss.tasks.within(LIMIT_S).create("job", payload.encode(), pool="bench", **fields)).task_id


async def one_of(client: AgentClient) -> Job:
    return await anext(client.work())


async def ordered(boss: AgentClient, one: AgentClient, payload: str = "", **fields: Any) -> Job:
    await order(boss, payload, **fields)
    return await one_of(one)


async def wait_for(boss: AgentClient, task_id: str, *statuses: TaskStatus) -> Task:
    while (task := await boss.tasks.within(LIMIT_S).get(task_id)).status not in statuses:
        await anyio.sleep(0.01)
    return task


async def wait_until_over(job: Job) -> JobEnd:
    """Return when the gateway has taken the task away, or a client has ended it."""
    while job.end is None:
        await anyio.sleep(0.005)
    return job.end


# -- the scripted gateway's side


@asynccontextmanager
async def scripted_worker(body: Callable[[AgentClient], Awaitable[None]]) -> AsyncIterator[Peer]:
    """Let a worker in, which does `body`, and give it the task "t1"."""
    with trio.fail_after(LIMIT_S):
        async with scripted(body, client=worker, close_timeout_s=0.1) as (peer, line):
            await line.tell(**assignment())
            yield peer


def assignment(task_id: str = "t1", payload: bytes = b"p") -> dict[str, pb.TaskAssignment]:
    return {
        "task_assignment": pb.TaskAssignment(
            task_id=task_id, task_type="job", assigned_to="ag::w::bench::1", payload=payload, workspace="w"
        )
    }


def info(status: int, task_id: str = "t1", assigned_to: str = "ag::w::bench::1", error: str = "") -> pb.TaskInfo:
    return pb.TaskInfo(
        task_id=task_id,
        task_type="job",
        status=pb.TaskStatus.ValueType(status),
        assigned_to=assigned_to,
        error=error,
        creator_actor_id="ag::w::i::boss",
    )


async def asked(peer: Peer, kind: int) -> pb.TaskOperation:
    """Let the next message lead to this status; it must be this operation."""
    op = (await peer.line.asked()).task_op
    assert op.op == kind, op
    return op


async def moved(peer: Peer, kind: int, status: int) -> pb.TaskOperation:
    """Refuse the next message, which must be a task operation of this kind."""
    op = await asked(peer, kind)
    response = pb.TaskOperationResponse(success=True, task=info(status, op.task_id), request_id=op.request_id)
    await peer.line.tell(task_op=response)
    return op


async def refused(peer: Peer, kind: int, error: str) -> None:
    """The next message, which must be a task operation of this kind, is refused."""
    op = await asked(peer, kind)
    await peer.line.tell(task_op=pb.TaskOperationResponse(error=error, request_id=op.request_id))


async def looked_up(peer: Peer, task: pb.TaskInfo | None) -> None:
    """Answer the given SUBSCRIBE, or the next message, which must be one."""
    await found(peer, (await peer.line.asked()).task_query, task)


async def found(peer: Peer, query: pb.TaskQuery, task: pb.TaskInfo | None) -> None:
    """Answer a GET with this task, or that there is none."""
    assert query.op == pb.TaskQuery.GET
    assert query.task_id
    response = pb.TaskQueryResponse(request_id=query.request_id)
    if task is None:
        response.error = "task not found"
    else:
        response.success = True
        response.task.CopyFrom(task)
    await peer.line.tell(task_query=response)


async def subscribed(peer: Peer, op: pb.TaskSubscriptionOperation | None = None, subscription_id: str = "s") -> None:
    """The given SUBSCRIBE, or the next message, which must be one, is answered."""
    op = op or (await peer.line.asked()).task_subscription_op
    assert op.op == pb.TaskSubscriptionOperation.SUBSCRIBE, op
    response = pb.TaskSubscriptionOperationResponse(
        success=True, client_request_id=op.client_request_id, task_id=op.task_id, subscription_id=subscription_id
    )
    await peer.line.tell(task_subscription_response=response)
