"""Quotas that are set on one node are in force on all when the answer comes."""

from __future__ import annotations

from typing import Any

import trio

from aether_trio.model.errors import Code, Status
from aether_trio.testing.memory import StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, Participant, join, until
from tests.helpers.core import agent, barrier, errors, message_to, orchestrator, switch_to, task, user

Op = pb.WorkspaceOperation


async def ask(peer: Participant, kind: Any, name: str, **metadata: str) -> pb.WorkspaceResponse:
    quotas = {f"quota.{quota}": value for quota, value in metadata.items()}
    workspace = pb.WorkspaceInfo(workspace_id=name, metadata=quotas)
    peer.send(pb.UpstreamMessage(workspace_op=Op(op=kind, workspace_id=name, workspace=workspace)))
    return (await peer.next("workspace")).workspace


async def done(peer: Participant, kind: Any, name: str, **metadata: str) -> pb.WorkspaceResponse:
    answer = await ask(peer, kind, name, **metadata)
    assert answer.success, answer.error
    return answer


async def refusal(gateway: Gateway, hello: pb.UpstreamMessage) -> StreamEnded:
    link = Participant()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.core.sessions.serve, link)
        link.send(hello)
        return await link.wait_end()
    raise AssertionError("it was neither refused nor let in")


async def test_connections_of_all_nodes_count_against_a_quota(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    admin = await one.join(orchestrator("o", "1"))
    await one.join(agent("w", "a", "1"))
    await done(admin, Op.CREATE, "w", connections_per_workspace="2")
    await two.join(agent("w", "a", "2"))
    for gateway in (one, two):
        ended = await refusal(gateway, agent("w", "a", "3"))
        assert ended.status is Status.RESOURCE_EXHAUSTED
        assert "ERR_QUOTA_001: workspace w has 2 connections" in ended.message
    await done(admin, Op.UPDATE, "w", connections_per_workspace="3")
    async with join(two, agent("w", "a", "3")):
        pass
    await until(lambda: not two.cluster.leaving())
    await done(admin, Op.UPDATE, "w", connections_per_workspace="")
    for number in range(3, 7):
        await two.join(agent("w", "a", str(number)))


async def test_a_workspace_is_counted_and_kept_while_any_node_has_participants(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    admin = await one.join(orchestrator("o", "1"))
    await done(admin, Op.CREATE, "w")
    async with join(two, agent("w", "a", "1")), join(one, task("w", "t", "1")), join(two, user("u", "1")) as window:
        window.send(switch_to("w"))
        await barrier(window)

        async def counted() -> bool:
            found = (await done(admin, Op.GET, "w")).workspace
            return (found.active_agents, found.active_tasks, found.active_users) == (1, 1, 1)

        await until(counted)
        refused = await ask(admin, Op.DELETE, "w")
        assert "3 participants are connected" in refused.error
        answer = await done(admin, Op.LIST, "")
        assert [(info.workspace_id, info.active_agents) for info in answer.workspaces] == [("w", 1)]
    await until(lambda: not one.cluster.leaving() and not two.cluster.leaving())
    await done(admin, Op.DELETE, "w")
    assert not (await ask(await two.join(orchestrator("o", "2")), Op.GET, "w")).success


async def test_the_rate_of_a_workspace_is_that_of_all_nodes(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    admin = await one.join(orchestrator("o", "1"))
    senders = [await gateway.join(agent("w", "a", str(number))) for number, gateway in enumerate((one, two))]
    await done(admin, Op.CREATE, "w", workspace_rate_per_s="3")
    began, accepted = trio.current_time(), 0
    for _ in range(10):
        for sender in senders:
            sender.send(*(message_to("ag::w::gone::1", b"x") for _ in range(5)))
        await barrier(*senders)
        await trio.sleep(0.1)
    passed = trio.current_time() - began
    refused = [error.code for sender in senders for error in errors(sender)]
    assert set(refused) == {Code.WORKSPACE_RATE_LIMITED}
    accepted = 100 - len(refused)
    # Each node may give a message in advance, and holds one second's worth, at least a message.
    assert 2 <= accepted <= 3 * (passed + 1) + 4
    await done(admin, Op.UPDATE, "w", workspace_rate_per_s="")
    before = len(refused)
    for sender in senders:
        sender.send(*(message_to("ag::w::gone::1", b"x") for _ in range(50)))
    await barrier(*senders)
    assert sum(len(errors(sender)) for sender in senders) == before
