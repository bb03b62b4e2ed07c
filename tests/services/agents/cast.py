"""Scripted orchestrators and agents, and the state of startup tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from aether_trio.gateway.core import Core
from aether_trio.model.clock import VirtualClock
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, message_to
from tests.services.agents.ops import Op, operate, register, starter

ECHO = "ag::w::echo::1"


class SetClock(VirtualClock):
    """A calendar that can be set forward."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def echo(specifier: str = "1", **init: Any) -> pb.UpstreamMessage:
    """The InitConnection of the agent."""
    return agent("w", "echo", specifier, **init)


async def assignment(peer: MemoryLink) -> pb.TaskAssignment:
    return (await peer.next("task_assignment")).task_assignment


async def nothing_more(*peers: MemoryLink) -> None:
    """Check that none of these is assigned a start, for a long time."""
    await trio.sleep(20)
    for peer in peers:
        assert peer.waiting("task_assignment") == []


async def starts(core: Core) -> list[tuple[str, str]]:
    """(status, error) of every start, in the order in which they were made."""
    found = await core.tasks.engine.database.fetch(
        "SELECT status, error FROM tasks WHERE task_type = 'agent_startup' ORDER BY created_ms, order_us"
    )
    return [(status, error) for status, error in found]


async def until(core: Core, *statuses: str) -> list[str]:
    """Once the starts have these statuses: their errors."""
    while (found := await starts(core)) and [status for status, _ in found] != list(statuses):
        await trio.sleep(0.05)
    return [error for _, error in found]


async def fail(peer: MemoryLink, task_id: str, reason: str) -> pb.TaskOperationResponse:
    op = pb.TaskOperation(op=pb.TaskOperation.FAIL, task_id=task_id, reason=reason, request_id="f")
    peer.send(pb.UpstreamMessage(task_op=op))
    return (await peer.next("task_op")).task_op


async def create(peer: MemoryLink, **fields: Any) -> pb.CreateTaskResponse:
    fields = {"task_type": "t", "workspace": "w", "assignment_mode": pb.TARGETED, "target_agent_id": ECHO, **fields}
    peer.send(pb.UpstreamMessage(create_task=pb.CreateTaskRequest(request_id="c", **fields)))
    return (await peer.next("create_task")).create_task


@asynccontextmanager
async def cast(core: Core, **params: str) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    """Give (an orchestrator of the profile "process", a sender); "echo" is registered."""
    async with connect(core, starter("1", "process")) as orchestrator, connect(core, agent("w", "asker", "1")) as asker:
        await register(orchestrator, "echo", **params)
        yield orchestrator, asker


async def launch(peer: MemoryLink, specifier: str) -> str:
    answer = await operate(
        peer, Op.LAUNCH, implementation="echo", launch_params=pb.AgentLaunchParams(workspace="w", specifier=specifier)
    )
    assert answer.success, answer.error
    return answer.launch_result.task_id


@asynccontextmanager
async def running(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink, MemoryLink, pb.TaskAssignment]]:
    """(orchestrator, asker, the started agent, its start)."""
    async with cast(core) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        asked = await assignment(orchestrator)
        async with connect(core, echo(credentials={"token": asked.launch_params["auth_token"]})) as started:
            await until(core, "running")
            yield orchestrator, asker, started, asked


async def operation(peer: MemoryLink, op: pb.TaskOperation.OpType.ValueType, task_id: str, **fields: Any) -> None:
    peer.send(pb.UpstreamMessage(task_op=pb.TaskOperation(op=op, task_id=task_id, request_id="o", **fields)))
    answer = (await peer.next("task_op")).task_op
    assert answer.success, answer.error
