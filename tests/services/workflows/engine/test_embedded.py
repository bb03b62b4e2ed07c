"""The gateway's own engine is connected while no external one is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.services.workflows.engine.embedded import RETURN_S
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, workflow_engine

ENGINE = "wfe::shard0"


def event(*names: str, **data: object) -> bytes:
    return json.dumps({"event_names": names, "data": data}).encode()


@asynccontextmanager
async def gateway(world: World, engine: str) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(workflow={"engine": engine}) as core:
        yield core


async def engine_is(core: Core, kind: str) -> None:
    """Wait until this kind of engine is connected: embedded, external, none."""
    while (await core.workflows.embedded.status()).engine != kind:
        await trio.sleep(0.05)


async def refused(core: Core, hello: pb.UpstreamMessage) -> Status:
    """How the connection of a client ends that is not accepted."""
    async with connect(core, hello, wait_ack=False) as peer:
        ended = await peer.wait_end()
    return ended.status


async def test_the_embedded_engine_is_connected_as_any_other_client(world: World) -> None:
    async with gateway(world, "auto") as core:
        await engine_is(core, "embedded")
        session = core.registry.holder(ENGINE)
        assert session is not None
        assert (session.record.peer, session.credential) == ("in-process", "")
        status = await core.workflows.embedded.status()
        assert (status.mode, status.engine, status.node_id, status.waits) == ("auto", "embedded", 0, "")
        assert status.since_ms == session.connected_ms
        assert core.workflows.embedded.connected


async def test_an_external_engine_wins_and_the_embedded_one_comes_back(world: World) -> None:
    async with gateway(world, "auto") as core:
        await engine_is(core, "embedded")
        for count in (1, 2):
            async with connect(core, workflow_engine()) as engine:
                await engine_is(core, "external")
                assert core.workflows.embedded.gave_way == count
                assert (await core.workflows.embedded.status()).waits == "it has given way to an external engine"
                # A second one is refused, by the first.
                assert await refused(core, workflow_engine()) is Status.ALREADY_EXISTS
                await trio.sleep(100)
                assert engine.ended is None
                attempts = core.workflows.embedded.attempts
            left = trio.current_time()
            await trio.sleep(RETURN_S / 2)
            status = await core.workflows.embedded.status()
            assert (status.engine, status.waits) == ("none", "the external engine may come back")
            await engine_is(core, "embedded")
            assert RETURN_S <= trio.current_time() - left < 2 * RETURN_S
            assert attempts == count == core.workflows.embedded.attempts - 1


async def test_an_external_engine_may_come_back_after_a_restart_of_the_gateway(world: World) -> None:
    async with gateway(world, "auto") as core:
        await engine_is(core, "embedded")
        async with connect(core, workflow_engine()) as engine, connect(core, agent("w", "a", "1")) as a:
            a.send(message_to("event::*", event("first"), pb.EVENT))
            await engine.next("msg")
            await barrier(engine, a)
    async with gateway(world, "auto") as core:
        begun = trio.current_time()
        await trio.sleep(RETURN_S / 2)
        assert (await core.workflows.embedded.status()).engine == "none"
        await engine_is(core, "embedded")
        assert RETURN_S <= trio.current_time() - begun < 2 * RETURN_S
    async with gateway(world, "auto") as core:
        begun = trio.current_time()
        await engine_is(core, "embedded")
        # It was the last one that took events, or there were none since.
        assert trio.current_time() - begun < 2 * RETURN_S


async def test_embedded_refuses_all_others(world: World) -> None:
    async with gateway(world, "embedded") as core:
        await engine_is(core, "embedded")
        for resumed in ("", "in-process", core.registry.holder(ENGINE).session_id):  # type: ignore[union-attr]
            assert await refused(core, workflow_engine(resume_session_id=resumed)) is Status.ALREADY_EXISTS
        assert core.workflows.embedded.connected


async def test_no_client_uses_the_path_of_the_embedded_engine(world: World) -> None:
    """One that says that it is in the process is a client like others."""
    async with gateway(world, "auto") as core:
        await engine_is(core, "embedded")
        assert await refused(core, workflow_engine(resume_session_id="in-process")) is Status.ALREADY_EXISTS
    keys = {"allow_anonymous": False}
    async with (
        deadlock_is_an_error(),
        world.open(workflow={"engine": "auto"}, auth=keys, gateway={"dev": False}) as core,
    ):
        await engine_is(core, "embedded")
        assert await refused(core, workflow_engine()) is Status.UNAUTHENTICATED
        assert core.workflows.embedded.connected


@pytest.mark.parametrize("mode", ["external", "off"])
async def test_without_an_embedded_engine_none_is_connected(world: World, mode: str) -> None:
    async with gateway(world, mode) as core, connect(core, agent("w", "a", "1")) as a:
        await trio.sleep(100)
        assert (await core.workflows.embedded.status()).engine == "none"
        a.send(pb.UpstreamMessage(workflow_op=pb.WorkflowOperation(request_id="r")))
        answer = (await a.next("workflow_response")).workflow_response
        assert not answer.success
        assert ("workflow.engine" in answer.error) is (mode == "off")
        async with connect(core, workflow_engine()):
            assert (await core.workflows.embedded.status()).engine == "external"


async def test_the_embedded_engine_comes_back_after_an_operator_has_ended_it(world: World) -> None:
    async with gateway(world, "auto") as core:
        await engine_is(core, "embedded")
        session = core.registry.holder(ENGINE)
        assert session is not None
        session.disconnect("by an operator")
        await engine_is(core, "none")
        await engine_is(core, "embedded")
