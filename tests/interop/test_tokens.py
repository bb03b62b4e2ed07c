"""Scenario 102: API tokens by the published SDK, on each storage engine."""

from __future__ import annotations

import time

import pytest
from scitrera_aether_client.admin_async import AsyncAdminClient
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import World, answered, in_asyncio, sdk_log


@pytest.fixture
def world(any_target: str) -> World:
    """The peers of one scenario, on each storage engine."""
    return World(any_target)


@in_asyncio
async def test_102_a_the_life_of_a_token(world: World) -> None:
    (operator,) = await world.open(world.orchestrator())
    admin = AsyncAdminClient(operator.client)
    made = answered(
        await admin.create_token("ci", principal_type="agent", workspace_patterns=[world.ws], expires_in_hours=1),
        "create",
    )
    secret, token_id = made.plaintext_token, made.created_token.id
    assert secret.startswith("aek_")
    assert list(made.created_token.workspace_patterns) == [world.ws]
    assert list(made.created_token.scopes) == ["connect"]
    assert abs(made.created_token.created_at - time.time()) < 600
    assert made.created_token.expires_at == made.created_token.created_at + 3600

    (holder,) = await world.open(world.agent("holder", credentials={"x-api-key": secret}))
    await holder.client.send_message_to_agent(world.ws, world.impl, "holder", b"to itself")
    await holder.message(b"to itself")

    listed = answered(await admin.list_tokens(limit=1000), "list")
    got = answered(
        await operator.client.token_op(pb.TokenOperation(op=pb.TokenOperation.GET, token_id=token_id)), "get"
    )
    for answer in (listed, got):
        assert not answer.plaintext_token
        assert secret not in str(answer)
    assert token_id in [one.id for one in listed.tokens]
    assert listed.total_count >= 1
    assert got.token.name == "ci"

    with sdk_log() as log:
        answered(await admin.revoke_token(token_id), "revoke")
        await holder.client.wait_until_disconnected()
        second = await world.agent("second", credentials={"x-api-key": secret}).connect()
        await second.refused()
        assert "UNAUTHENTICATED" in log.text
        assert secret not in log.text
    assert token_id not in [one.id for one in answered(await admin.list_tokens(limit=1000), "list").tokens]
    revoked = answered(await admin.list_tokens(include_revoked=True, limit=1000), "list with revoked ones").tokens
    assert [(one.revoked, one.revoked_at > 0) for one in revoked if one.id == token_id] == [(True, True)]


@in_asyncio
async def test_102_a_a_token_for_elsewhere(world: World) -> None:
    (operator,) = await world.open(world.orchestrator())
    made = answered(
        await AsyncAdminClient(operator.client).create_token("ci", principal_type="user", created_by="u"), ""
    )
    with sdk_log() as log:
        other = await world.agent("a", credentials={"x-api-key": made.plaintext_token}).connect()
        await other.refused()
        assert "PERMISSION_DENIED" in log.text


@in_asyncio
async def test_102_a_a_plain_agent_makes_none(world: World) -> None:
    (agent,) = await world.open(world.agent("a"))
    answer = await AsyncAdminClient(agent.client).create_token("ci", principal_type="agent")
    assert not answer.success
    assert answer.error.startswith("ERR_PERMISSION_DENIED")
    assert not answer.plaintext_token
