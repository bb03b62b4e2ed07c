"""Scenario 67: a checkpoint outlives the gateway, and its client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from tests.helpers.gateway import GatewayProcess
from tests.interop.transports.world import World, both, until


async def load(client: Any, key: str = "default") -> bytes | None:
    found = await client.checkpoints.load(key)
    return None if found is None else bytes(found.data)


@both
async def test_67_a_checkpoint_lasts_until_its_ttl(own_gateway: Callable[..., GatewayProcess], transport: str) -> None:
    gateway = await trio.to_thread.run_sync(own_gateway)
    async with World(gateway.address, transport) as world:
        a = await world.talker("a")
        await a.checkpoints.save(b"lasting", "k1", ttl_s=0)
        await a.checkpoints.save(b"default ttl")
        await a.checkpoints.save(b"brief", "k2", ttl_s=1)
        await trio.to_thread.run_sync(gateway.kill)
        await trio.to_thread.run_sync(gateway.restart)
        # The same client object: it reconnects, and a request waits for that.
        assert await load(a, "k1") == b"lasting"
        assert await load(a) == b"default ttl"
        await until(lambda: load(a, "k2"), None)
        assert await a.checkpoints.list() == ("default", "k1")
        assert a.connections == 2
