"""Scripted orchestrators and agents, and the state of startup tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import agent, connect, let_manage, message_to
from tests.services.agents.ops import Op, operate, register, starter
from tests.services.tasks import peers

ECHO = "ag::w::echo::1"


class SetClock(VirtualClock):
    """A calendar that can be set forward."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def echo(specifier: str = "1", **init: Any) -> pb.UpstreamMessage:
    return agent("w", "echo", specifier, **init)


def started_by(asked: pb.TaskAssignment) -> pb.UpstreamMessage:
    """The InitConnection of the agent that an orchestrator has started for this start."""
    credentials = {"token": asked.launch_params["auth_token"]}
    return agent(asked.workspace, asked.target_implementation, asked.specifier, credentials=credentials)


async def assignment(peer: MemoryLink) -> pb.TaskAssignment:
    return (await peer.next("task_assignment")).task_assignment


async def nothing_more(*links: MemoryLink) -> None:
    """Check that none of these is assigned a start, for a long time."""
    await trio.sleep(20)
    for peer in links:
        assert peer.waiting("task_assignment") == []


async def starts(core: Core) -> list[tuple[str, str]]:
    """(status, error) of every start, in the order in which they were made."""
    found = await core.tasks.engine.database.fetch(
        "SELECT status, error FROM tasks WHERE task_type = 'agent_startup' ORDER BY created_ms, order_us"
    )
    return [(status, error) for status, error in found]


async def statuses(core: Core) -> list[str]:
    """Return the statuses of the starts, in the order in which they were made."""
    return [status for status, _ in await starts(core)]


async def until(core: Core, *wanted: str) -> list[str]:
    """Once the starts have these statuses: their errors."""
    while (found := await starts(core)) and [status for status, _ in found] != list(wanted):
        await trio.sleep(0.05)
    return [error for _, error in found]


async def fail(peer: MemoryLink, task_id: str, reason: str) -> pb.TaskOperationResponse:
    return await peers.operate(peer, peers.Op.FAIL, task_id, reason=reason)


async def operation(peer: MemoryLink, op: peers.Op.OpType.ValueType, task_id: str, **fields: Any) -> None:
    answer = await peers.operate(peer, op, task_id, **fields)
    assert answer.success, answer.error


async def create(peer: MemoryLink, **fields: Any) -> pb.CreateTaskResponse:
    """What becomes of a new task for ECHO, unless said otherwise."""
    target = {"workspace": "w", "assignment_mode": pb.TARGETED, "target_agent_id": ECHO, "target_implementation": ""}
    return await peers.create(peer, **{**target, **fields})


@asynccontextmanager
async def cast(core: Core, *, manage: bool = True, **params: str) -> AsyncIterator[tuple[MemoryLink, MemoryLink]]:
    """Give (an orchestrator of "process", a sender); "echo" is registered.

    `manage`: agents may manage every workspace.
    """
    if manage:
        let_manage(core)
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
async def starting(core: Core, **params: str) -> AsyncIterator[tuple[MemoryLink, MemoryLink, pb.TaskAssignment]]:
    """(orchestrator, asker, the start that a message of the asker has caused)."""
    async with cast(core, **params) as (orchestrator, asker):
        asker.send(message_to(ECHO, b"one"))
        yield orchestrator, asker, await assignment(orchestrator)


@asynccontextmanager
async def running(core: Core) -> AsyncIterator[tuple[MemoryLink, MemoryLink, MemoryLink, pb.TaskAssignment]]:
    """(orchestrator, asker, the started agent, its start)."""
    async with starting(core) as (orchestrator, asker, asked), connect(core, started_by(asked)) as started:
        await until(core, "running")
        yield orchestrator, asker, started, asked


async def sleep_on(peer: MemoryLink, task_id: str, **wait: Any) -> None:
    """Have an agent put a task of its to sleep, once it has saved its state."""
    save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="half", data=b"done", request_id="s")
    peer.send(pb.UpstreamMessage(checkpoint_op=save))
    await peer.next("checkpoint")
    state = pb.HibernationDescriptor(checkpoint_key="half", resume_session_id="before")
    spec = pb.WaitSpec(reason=pb.WAIT_REASON_HIBERNATION, hibernation=state, **wait)
    await operation(peer, peers.Op.PAUSE, task_id, wait_spec=spec)
