"""Scenarios 66 and 67: checkpoints of one identity, and what becomes of them."""

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
async def test_66_save_load_list_delete(world: World) -> None:
    a, b = await world.talker("a"), await world.agent("b")
    assert await load(a, "none") is None
    blob = bytes(range(256)) * 4000
    saved_at = await a.checkpoints.save(blob, "k1")
    await a.checkpoints.save(b"default slot", "")
    assert saved_at is not None
    found = await a.checkpoints.load("k1")
    assert found is not None
    assert (found.data, found.saved_at) == (blob, saved_at)
    assert await load(a, "default") == await load(a, "") == b"default slot"
    assert await load(b, "k1") is None
    assert await a.checkpoints.list() == ("default", "k1")
    for _ in range(2):  # idempotent
        await a.checkpoints.delete("k1")
    assert await load(a, "k1") is None
    assert await a.checkpoints.list() == ("default",)


@both
async def test_67_a_checkpoint_outlives_the_gateway_and_a_ttl_ends(
    own_gateway: Callable[..., GatewayProcess], transport: str
) -> None:
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
