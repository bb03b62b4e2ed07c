"""Scenarios 66 and 67: checkpoints of one identity, and what becomes of them."""

from __future__ import annotations

import asyncio

from tests.helpers.gateway import GatewayProcess
from tests.helpers.sdk import LIMIT_S, Peer, World, answered, eventually, in_asyncio


async def load(peer: Peer, key: str = "") -> bytes:
    return answered(await peer.client.checkpoint_load(key, timeout=LIMIT_S), f"load {key!r}").data


async def save(peer: Peer, data: bytes, key: str = "", ttl: int = -1) -> int:
    return answered(await peer.client.checkpoint_save(data, key=key, ttl=ttl, timeout=LIMIT_S), "save").saved_at


@in_asyncio
async def test_66_a_save_load_list_delete(world: World) -> None:
    a, b, user = await world.open(world.agent("a"), world.agent("b"), world.user("w"))
    assert await load(a, "none") == b""
    blob = bytes(range(256)) * 4000
    saved_at = await save(a, blob, "k1")
    await save(a, b"default slot")
    assert saved_at > 1_600_000_000
    got = answered(await a.client.checkpoint_load("k1", timeout=LIMIT_S), "load")
    assert (got.data, got.saved_at) == (blob, saved_at)
    assert await load(a, "default") == await load(a) == b"default slot"
    assert await load(b, "k1") == b""
    keys = answered(await a.client.checkpoint_list(timeout=LIMIT_S), "list").keys
    assert sorted(keys) == ["default", "k1"]
    for _ in range(2):  # idempotent
        answered(await a.client.checkpoint_delete("k1", timeout=LIMIT_S), "delete")
    assert await load(a, "k1") == b""
    assert list(answered(await a.client.checkpoint_list(timeout=LIMIT_S), "list").keys) == ["default"]
    # Any principal has them.
    await save(user, b"window state")
    assert await load(user) == b"window state"


@in_asyncio
async def test_67_a_a_checkpoint_outlives_the_gateway_and_a_ttl_ends(new_gateway: GatewayProcess) -> None:
    async with World(new_gateway.address) as world:
        (a,) = await world.open(world.agent("a"))
        await save(a, b"lasting", "k1", ttl=0)
        await save(a, b"default ttl")
        _, brief = await asyncio.gather(save(a, b"brief", "k2", ttl=1), load(a, "k2"))
        assert brief == b"brief"
        await asyncio.to_thread(new_gateway.kill)
        await asyncio.to_thread(new_gateway.restart)
        (a,) = await world.open(world.agent("a"))
        assert await load(a, "k1") == b"lasting"
        assert await load(a) == b"default ttl"
        await eventually(lambda: load(a, "k2"), lambda data: data == b"", "the checkpoint did not expire")
        keys = answered(await a.client.checkpoint_list(timeout=LIMIT_S), "list").keys
        assert sorted(keys) == ["default", "k1"]
