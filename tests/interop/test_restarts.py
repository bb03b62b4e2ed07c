"""Scenarios 21, 22, 25: clients that outlive the gateway, and one that idles."""

from __future__ import annotations

import asyncio

from tests.helpers.gateway import GatewayProcess
from tests.helpers.sdk import World, in_asyncio, sdk_log
from tests.interop.idle import IdleWatch


@in_asyncio
async def test_21_a_client_survives_a_crash_of_the_gateway(new_gateway: GatewayProcess) -> None:
    async with World(new_gateway.address, auto_reconnect=True, max_retries=0) as world:
        a, b = await world.open(world.agent("a"), world.agent("b"))
        sessions = {a.session_id, b.session_id}
        await asyncio.to_thread(new_gateway.kill)
        await asyncio.to_thread(new_gateway.restart)
        await asyncio.gather(a.online(), b.online())
        assert not sessions & {a.session_id, b.session_id}
        await a.client.send_message_to_agent(world.ws, world.impl, "b", b"after the crash")
        await b.message(b"after the crash")


@in_asyncio
async def test_22_a_client_resumes_after_a_drain(new_gateway: GatewayProcess) -> None:
    async with World(new_gateway.address, auto_reconnect=True, max_retries=0) as world:
        a, b = await world.open(world.agent("a"), world.agent("b"))
        with sdk_log() as log:
            new_gateway.terminate()
            assert await asyncio.to_thread(new_gateway.wait) == 0
            await asyncio.to_thread(new_gateway.restart)
            await asyncio.gather(a.online(), b.online())
        assert "ALREADY_EXISTS" not in log.text
        assert a.client.is_running
        await a.client.send_message_to_agent(world.ws, world.impl, "b", b"after the drain")
        await b.message(b"after the drain")


def test_25_a_idle_connection_with_pings_is_left_alone(idle_watch: IdleWatch) -> None:
    """35 s are three pings; with TESTS_SLOW=1 the three minutes of the checklist."""
    seen = idle_watch.finish()
    assert seen["alive"]
    assert seen["connects"] == 1
    assert idle_watch.forwarder.client_pings >= int(idle_watch.idle_s // 10) - 1
    assert idle_watch.forwarder.server_ping_acks >= idle_watch.forwarder.client_pings - 1
    # The drain of the client's own close may end with one; none may have come before, or there were
    # two connections.
    assert idle_watch.forwarder.connections == 1
