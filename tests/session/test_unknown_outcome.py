"""A client whose write may or may not be stored is not told to try again."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, message_to, orchestrator

MANY = 1000
"""More than the gateway asks again."""


@pytest.mark.parametrize("request_id", ["r", ""])
async def test_a_key(world: World, peer: MemoryLink, request_id: str) -> None:
    await peer.next("config")
    world.state.unanswered_writes = 1
    op = pb.KVOperation(op=pb.KVOperation.INCREMENT, scope=pb.KVOperation.GLOBAL, key="n", request_id=request_id)
    peer.send(pb.UpstreamMessage(kv_op=op))
    if request_id:
        assert not (await peer.next("kv")).kv.success
    error = (await peer.next("error")).error
    assert (error.code, error.retryable, error.request_id) == ("ERR_OUTCOME_UNKNOWN", False, request_id)
    world.state.fail_writes = 1  # of this it is known
    error = await ask(peer, "error", kv_op=op)
    assert (error.code, error.retryable) == ("KV_ERROR", True)


async def ask(peer: MemoryLink, answer: str, **request: Any) -> Any:
    peer.send(pb.UpstreamMessage(**request))
    return getattr(await peer.next(answer), answer)


def is_unknown(answer: Any) -> bool:
    return not answer.success and answer.error.startswith("ERR_OUTCOME_UNKNOWN: ")


async def test_a_checkpoint(world: World, peer: MemoryLink) -> None:
    await peer.next("config")
    for op in (pb.CheckpointOperation.SAVE, pb.CheckpointOperation.DELETE):
        world.state.unanswered_writes = 1
        request = pb.CheckpointOperation(op=op, key="k", data=b"x")
        assert is_unknown(await ask(peer, "checkpoint", checkpoint_op=request))


async def test_a_task(world: World, peer: MemoryLink) -> None:
    create = pb.CreateTaskRequest(task_type="t", workspace="w", request_id="c", assignment_mode=pb.SELF_ASSIGN)
    task_id = (await ask(peer, "create_task", create_task=create)).task_id
    assert task_id
    world.databases["tasks"].unanswered_writes = MANY
    error = await ask(peer, "error", create_task=create)
    assert (error.code, error.retryable) == ("ERR_OUTCOME_UNKNOWN", False)
    assert (await peer.next("create_task")).create_task.error_code == "ERR_OUTCOME_UNKNOWN"
    op = pb.TaskOperation(op=pb.TaskOperation.COMPLETE, task_id=task_id, request_id="o")
    assert is_unknown(await ask(peer, "task_op", task_op=op))
    world.databases["tasks"].unanswered_writes = 0


async def test_a_task_while_storage_goes_away_altogether(world: World, peer: MemoryLink) -> None:
    """The first try may be committed, although it is known that the last one is not."""
    tasks = world.databases["tasks"]
    create = pb.CreateTaskRequest(task_type="t", workspace="w", request_id="c", assignment_mode=pb.SELF_ASSIGN)
    tasks.unanswered_writes = 1
    peer.send(pb.UpstreamMessage(create_task=create))
    while tasks.unanswered_writes:
        await trio.lowlevel.checkpoint()
    tasks.failing = True
    error = (await peer.next("error")).error
    assert (error.code, error.retryable) == ("ERR_OUTCOME_UNKNOWN", False)
    assert (await peer.next("create_task")).create_task.error_code == "ERR_OUTCOME_UNKNOWN"
    refused = await ask(peer, "create_task", create_task=create)  # of this it is known
    assert refused.error_code == "ERR_INTERNAL"
    tasks.failing = False


async def test_the_registry_of_agents(world: World, core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as peer:
        world.databases["tasks"].unanswered_writes = MANY
        info = pb.AgentRegistrationInfo(implementation="x")
        op = pb.AgentOperation(op=pb.AgentOperation.REGISTER, implementation="x", agent=info)
        assert is_unknown(await ask(peer, "agent", agent_op=op))
        world.databases["tasks"].unanswered_writes = 0


async def test_a_message(world: World, core: Core) -> None:
    """In a file: in a shared database the log finds it out."""
    if world.log.shared:
        pytest.skip("the log does not give up before it knows")
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, agent("w", "b", "1")) as other:
        await peer.next("config")
        peer.send(message_to("ag::w::b::1", b"first"))
        await other.next("msg")
        for unanswered, expected in ((MANY, ("ERR_OUTCOME_UNKNOWN", False)), (0, ("ERR_PUBLISH_FAILED", True))):
            world.log.unanswered_writes, world.log.failing = unanswered, not unanswered
            peer.send(message_to("ag::w::b::1", b"x"))
            error = (await peer.next("error")).error
            assert (error.code, error.retryable) == expected
        world.log.failing = False
