"""Scenarios 94 and 95: the agent registry, and who may not change it."""

from __future__ import annotations

import time
import uuid

import pytest
from scitrera_aether_client import make_resource_schema_entry
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import World, answered, declined, in_asyncio


@pytest.fixture
def world(any_target: str) -> World:
    """The peers of one scenario, on each storage engine."""
    return World(any_target)


@in_asyncio
async def test_94_a_the_life_of_a_registration(world: World) -> None:
    (admin,) = await world.open(world.orchestrator())
    client, name = admin.client, f"echo-{uuid.uuid4().hex[:8]}"
    prefix = f"docs-{name}"
    answered(
        await client.register_agent(
            name,
            profile="local",
            description="says it again",
            launch_params={"image": "echo:1"},
            resource_schema=[
                make_resource_schema_entry(resource_type_prefix=prefix, permission_verbs=["read", "write"])
            ],
            capabilities={"streams": True},
            extensions=["urn:echo"],
        ),
        "register",
    )
    found = answered(await client.get_agent(name), "get").agent
    assert dict(found.launch_params) == {"profile": "local", "image": "echo:1"}
    assert (found.orchestrator_profile, found.description) == ("local", "says it again")
    assert found.registered_at >= time.time() - 60
    assert list(found.resource_schema[0].permission_verbs) == ["read", "write"]
    clash = await client.register_agent(
        f"{name}-2",
        resource_schema=[make_resource_schema_entry(resource_type_prefix=prefix, permission_verbs=["read"])],
    )
    assert not clash.success
    assert clash.error.startswith("ERR_PREFIX_CONFLICT: ")

    answered(await client.update_agent(name, profile="k8s", description="moved"), "update")
    replaced = answered(await client.get_agent(name), "get").agent
    assert dict(replaced.launch_params) == {"profile": "k8s"}
    assert not replaced.resource_schema
    assert name in [one.implementation for one in answered(await client.list_agents(), "list").agents]
    answered(await client.delete_agent(name), "delete")
    for missing in (await client.get_agent(name), await client.delete_agent(name)):
        assert not missing.success
        assert name in missing.error


@in_asyncio
async def test_94_a_connected_orchestrators(world: World) -> None:
    (admin,) = await world.open(world.orchestrator())
    op = pb.AgentOperation(op=pb.AgentOperation.LIST_ORCHESTRATORS)
    listed = answered(await admin.client.agent_op(op), "list orchestrators").orchestrators
    (own,) = [one for one in listed if one.orchestrator_id == admin.topic]
    assert list(own.profiles)
    assert own.connected_at >= time.time() - 60


@in_asyncio
async def test_95_a_others_are_refused_promptly(world: World) -> None:
    (plain,) = await world.open(world.agent("a"))
    for answer in (
        await plain.client.list_agents(),
        await plain.client.register_agent("mine"),
        await plain.client.launch_agent("mine", specifier="1"),
    ):
        declined(answer, "an agent's operation")
        assert (await plain.error("ERR_PERMISSION_DENIED")).code
