"""Scenarios 93, 95, 96 and 97: workspaces, two calls at once, sessions."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from scitrera_aether_client import AsyncAdminClient
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import World, answered, declined, in_asyncio


@pytest.fixture
def world(any_target: str) -> World:
    """The peers of one scenario, on each storage engine."""
    return World(any_target)


def fresh() -> str:
    return f"lab-{uuid.uuid4().hex[:8]}"


async def flow_of(client: Any, workspace: str) -> Any:
    op = pb.WorkspaceOperation(op=pb.WorkspaceOperation.GET_MESSAGE_FLOW, workspace_id=workspace)
    return await client.workspace_op(op)


@in_asyncio
async def test_93_a_the_life_of_a_workspace(world: World) -> None:
    (admin,) = await world.open(world.orchestrator())
    client, name = AsyncAdminClient(admin.client), fresh()
    answered(await client.create_workspace(name, "Lab", "where we try things", {"team": "blue"}), "create")
    declined(await client.create_workspace(name), "a second create")
    found = answered(await client.get_workspace(name), "get").workspace
    assert (found.workspace_id, found.display_name, found.description) == (name, "Lab", "where we try things")
    assert dict(found.metadata) == {"team": "blue"}
    assert found.created_at >= time.time() - 60
    listed = answered(await client.list_workspaces(limit=1000), "list")
    assert name in [one.workspace_id for one in listed.workspaces]
    assert listed.total_count == len(listed.workspaces)
    page = answered(await client.list_workspaces(limit=1, offset=listed.total_count - 1), "a page")
    assert [one.workspace_id for one in page.workspaces] == [listed.workspaces[-1].workspace_id]
    answered(await client.update_workspace(name, description="moved"), "update")
    changed = answered(await client.get_workspace(name), "get").workspace
    assert (changed.display_name, changed.description) == ("Lab", "moved")
    assert answered(await flow_of(admin.client, name), "flow").message_flow.workspace_id == name
    answered(await client.delete_workspace(name), "delete")
    for missing in (
        await client.get_workspace(name),
        await client.delete_workspace(name),
        await client.update_workspace(name, "x"),
        await flow_of(admin.client, name),
    ):
        declined(missing, "an operation on a deleted workspace")
        assert name in missing.error


@in_asyncio
async def test_93_a_a_workspace_with_participants_is_not_deleted(world: World) -> None:
    (admin, plain) = await world.open(world.orchestrator(), world.agent("a"))
    workspace = plain.topic.split("::")[1]
    found = answered(
        await AsyncAdminClient(admin.client).get_workspace(workspace), "get a workspace that exists by use"
    ).workspace
    assert found.active_agents >= 1
    declined(await AsyncAdminClient(admin.client).delete_workspace(workspace), "delete")


@in_asyncio
async def test_93_a_quotas_are_metadata(world: World) -> None:
    (admin,) = await world.open(world.orchestrator())
    client, name = AsyncAdminClient(admin.client), fresh()
    answered(await client.create_workspace(name, metadata={"quota.connections_per_workspace": "7"}), "create")
    shown = answered(await client.get_workspace(name), "get").workspace.metadata
    assert dict(shown) == {"quota.connections_per_workspace": "7"}
    declined(await client.update_workspace(name, metadata={"quota.connections": "7"}), "an unknown quota")
    answered(await client.update_workspace(name, metadata={"quota.connections_per_workspace": ""}), "clear")
    assert not answered(await client.get_workspace(name), "get").workspace.metadata
    answered(await client.delete_workspace(name), "delete")


@in_asyncio
async def test_95_a_others_are_refused_promptly(world: World) -> None:
    (plain,) = await world.open(world.agent("a"))
    client = AsyncAdminClient(plain.client)
    for answer in (
        await client.list_workspaces(),
        await client.get_workspace("lab"),
        await client.create_workspace(fresh()),
        await client.update_workspace("lab", "x"),
        await client.delete_workspace("lab"),
        await flow_of(plain.client, "lab"),
    ):
        declined(answer, "an agent's operation")
        assert (await plain.error("ERR_PERMISSION_DENIED")).code


@in_asyncio
async def test_96_a_two_calls_at_once_each_get_their_own_answer(world: World) -> None:
    (admin,) = await world.open(world.orchestrator())
    client, names = AsyncAdminClient(admin.client), [fresh(), fresh()]
    created = await asyncio.gather(*(client.create_workspace(name, name.upper()) for name in names))
    assert [answered(one, "create").workspace.workspace_id for one in created] == names
    for _ in range(20):
        one, other = await asyncio.gather(*(client.get_workspace(name) for name in names))
        assert [answered(found, "get").workspace.display_name for found in (one, other)] == [
            name.upper() for name in names
        ]
    for name in names:
        answered(await client.delete_workspace(name), "delete")


@in_asyncio
async def test_97_a_sessions_are_listed_looked_up_and_ended(world: World) -> None:
    one, other, admin = await world.open(world.agent("a"), world.agent("b"), world.orchestrator())
    listed = answered(await admin.client.list_sessions(workspace=world.ws), "list_sessions")
    assert {found.identity for found in listed.connections} == {one.topic, other.topic}
    assert listed.total_count == 2
    found = answered(await admin.client.get_session(one.session_id), "get_session").connection
    assert (found.identity, found.workspace) == (one.topic, world.ws)
    answered(await admin.client.disconnect_session(one.session_id, "you are done"), "disconnect_session")
    async with asyncio.timeout(60):
        await one.gone.wait()
    assert not one.client.is_running
    assert any("you are done" in reason for reason in one.reasons), one.reasons
    await other.barrier()
    declined(await other.client.disconnect_session(admin.session_id, "no"), "an agent's disconnect_session")
    await admin.barrier()
