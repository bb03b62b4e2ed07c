"""Scenarios 7, 8, 10 to 17: one holder for an identity, and how it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import Peer, SyncWorld, World, agent_init, in_asyncio, raw_stream, sdk_log


@in_asyncio
async def test_10_a_second_holder_is_refused_and_the_first_unaffected(world: World) -> None:
    first, other = await world.open(world.agent("dup"), world.agent("other"))
    second = world.agent("dup", auto_reconnect=True)
    await second.refused_with("ALREADY_EXISTS")
    assert not second.client.is_connected
    await other.client.send_message_to_agent(world.ws, world.impl, "dup", b"still mine")
    await first.message(b"still mine")


def test_10_s_second_holder_is_refused_and_the_first_unaffected(target: str) -> None:
    with SyncWorld(target) as world:
        first, other = world.agent("dup").open(), world.agent("other").open()
        with sdk_log() as log:
            second = world.agent("dup", auto_reconnect=True)
            second.client.connect(target)
            second.refused()
        assert "ALREADY_EXISTS" in log.text
        other.client.send_message_to_agent(world.ws, world.impl, "dup", b"still mine")
        assert first.take().payload == b"still mine"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (World.engine, []),
        (World.metrics_bridge, []),
        (World.user, ["w"]),
        (World.service, ["s"]),
        (World.unique_task, ["t"]),
    ],
    ids=["07-workflow-engine", "08-metrics-bridge", "11-user-window", "11-service", "11-unique-task"],
)
@in_asyncio
async def test_second_holders_of_a_kind_are_refused(world: World, make: Callable[..., Peer], names: list[str]) -> None:
    (first,) = await world.open(make(world, *names))
    await make(world, *names, auto_reconnect=True).refused_with("ALREADY_EXISTS")
    await first.barrier()


@in_asyncio
async def test_12_a_identity_is_free_after_close(world: World) -> None:
    (holder,) = await world.open(world.agent("again"))
    for _ in range(5):
        await holder.close()
        # 1 s is granted, as five attempts; a gateway with a lock that times out needs many more.
        for _ in range(5):
            holder = await world.agent("again").connect()
            if await holder.came_up():
                break
            await asyncio.sleep(0.2)
        else:
            raise AssertionError("not free after five attempts")
        await holder.barrier()


@in_asyncio
async def test_13_a_live_takeover_by_the_holders_session_id(world: World) -> None:
    old, other = await world.open(world.agent("moving"), world.agent("other"))
    new = world.agent("moving")
    new.client.init.resume_session_id = old.session_id
    await new.open()
    assert new.session_id != old.session_id
    await asyncio.wait_for(old.gone.wait(), 30)
    await other.client.send_message_to_agent(world.ws, world.impl, "moving", b"to the new one")
    await new.message(b"to the new one")
    assert old.inbox.empty()


@in_asyncio
async def test_14_r_takeover_is_told_to_both_sides(world: World, target: str) -> None:
    init = agent_init(world.ws, world.impl, "moving")
    async with raw_stream(target, **init) as first:
        ack = await first.expect("connection_ack")
        async with raw_stream(target, **init, resume_session_id=ack.session_id) as second:
            resumed = await second.expect("connection_ack")
            assert resumed.resumed
            assert resumed.reconnection_count == 1
            assert resumed.initial_connection_unix_ms == ack.initial_connection_unix_ms > 0
            assert resumed.session_id not in ("", ack.session_id)
            end, _ = await first.ended()
            assert end.code is not grpc.StatusCode.OK
            # The evicted stream's cleanup must not have freed the identity of its successor.
            async with raw_stream(target, **init) as third:
                end, kinds = await third.ended()
                assert (end.code, kinds) == (grpc.StatusCode.ALREADY_EXISTS, [])
            # And the count goes on, with the same first connection.
            async with raw_stream(target, **init, resume_session_id=resumed.session_id) as fourth:
                again = await fourth.expect("connection_ack")
                assert (again.resumed, again.reconnection_count) == (True, 2)
                assert again.initial_connection_unix_ms == ack.initial_connection_unix_ms


@in_asyncio
async def test_14_r_resume_after_the_stream_died(world: World, target: str) -> None:
    """A client may resume a session that has just ended, or is about to."""
    init = agent_init(world.ws, world.impl, "moving")
    session = ""
    for _ in range(5):
        async with raw_stream(target, **init, resume_session_id=session) as stream:
            session = (await stream.expect("connection_ack")).session_id


@in_asyncio
async def test_15_a_unknown_resume_id_on_a_free_identity(world: World) -> None:
    agent = world.agent("fresh")
    agent.client.init.resume_session_id = "00000000-0000-4000-8000-000000000000"
    with sdk_log() as log:
        await agent.open()
    assert "Session resumed" not in log.text


@in_asyncio
async def test_16_a_unknown_resume_id_on_a_held_identity(world: World) -> None:
    (holder,) = await world.open(world.agent("held"))
    thief = world.agent("held")
    thief.client.init.resume_session_id = "00000000-0000-4000-8000-000000000000"
    await thief.refused_with("ALREADY_EXISTS")
    await holder.barrier()


@in_asyncio
async def test_16_r_anothers_session_id_takes_over_nothing(target: str) -> None:
    """A live session id is a key to its own identity only."""
    async with (
        World(target) as world,
        raw_stream(target, **agent_init(world.ws, world.impl, "one")) as one,
        raw_stream(target, **agent_init(world.ws, world.impl, "two")) as two,
    ):
        key = (await one.expect("connection_ack")).session_id
        await two.expect("connection_ack")
        init = agent_init(world.ws, world.impl, "two", resume_session_id=key)
        async with raw_stream(target, **init) as thief:
            end, kinds = await thief.ended()
            assert (end.code, kinds) == (grpc.StatusCode.ALREADY_EXISTS, [])
        await two.expect("config")
        load = pb.CheckpointOperation(op=pb.CheckpointOperation.LOAD, request_id="still here")
        await two.send(checkpoint_op=load)
        assert (await two.expect("checkpoint")).request_id == "still here"


def test_17_s_a_closed_client_connects_again(target: str) -> None:
    with SyncWorld(target) as world:
        agent, other = world.agent("again").open(), world.agent("other").open()
        first_session = agent.session_id
        agent.close()
        agent.open()  # names the session that has just been closed
        assert agent.session_id not in ("", first_session)
        other.client.send_message_to_agent(world.ws, world.impl, "again", b"welcome back")
        assert agent.take().payload == b"welcome back"
