"""Scenarios 53 to 55, 57, 58 and 65: keys, scopes, expiry, and who may have them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from scitrera_aether_client import AetherError

from tests.helpers.sdk import LIMIT_S, World, answered, declined, eventually, in_asyncio


async def put(peer: Any, key: str, value: bytes, **scope: Any) -> None:
    answered(await peer.client.kv_put(key, value, timeout=LIMIT_S, **scope), f"put {key} {scope}")


async def get(peer: Any, key: str, **scope: Any) -> bytes:
    return answered(await peer.client.kv_get(key, timeout=LIMIT_S, **scope), f"get {key} {scope}").value


@in_asyncio
async def test_53_a_global_keys(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b", ws=f"{world.ws}-other"))
    k, blob = f"{world.run}/k", bytes(range(256)) * 40
    assert await get(a, f"{k}/none") == b""
    await put(a, f"{k}/1", blob)
    await put(a, f"{k}/2", b"")
    await put(a, f"{k}:colons::too", b"3")
    await put(a, f"{k}x", b"outside the prefix")
    assert await get(a, f"{k}/1") == blob
    assert await get(b, f"{k}/1") == blob
    listed = answered(await a.client.kv_list(f"{k}/", timeout=LIMIT_S), "list")
    assert sorted(listed.keys) == [f"{k}/1", f"{k}/2"]
    assert dict(listed.kv_map) == {f"{k}/1": blob, f"{k}/2": b""}
    assert not listed.has_more
    await put(a, f"{k}/1", b"overwritten")
    assert await get(a, f"{k}/1") == b"overwritten"
    for _ in range(2):  # idempotent
        answered(await a.client.kv_delete(f"{k}/1", timeout=LIMIT_S), "delete")
    assert await get(a, f"{k}/1") == b""
    listed = answered(await a.client.kv_list(f"{k}/", timeout=LIMIT_S), "list")
    assert list(listed.keys) == [f"{k}/2"]


@pytest.mark.parametrize("prefix", ["p%", "p_", "p\\", "pé", "p[a-c]*"], ids=ascii)
@in_asyncio
async def test_53_a_a_prefix_is_no_pattern(world: World, prefix: str) -> None:
    (a,) = await world.open(world.agent("a"))
    scope = {"scope": "workspace"}
    await put(a, f"{prefix}1", b"yes", **scope)
    await put(a, "pX1", b"no", **scope)
    await put(a, "pa1", b"no", **scope)
    listed = answered(await a.client.kv_list(prefix, timeout=LIMIT_S, **scope), "list")
    assert list(listed.keys) == [f"{prefix}1"]


@pytest.mark.parametrize("key", ["", "k" * 257, "é" * 129], ids=["empty", "257-bytes", "258-bytes"])
@in_asyncio
async def test_53_a_malformed_keys_are_refused(world: World, key: str) -> None:
    (a,) = await world.open(world.agent("a"))
    declined(await a.client.kv_put(key, b"v", timeout=LIMIT_S), "put")
    # The double shape: the typed failure answers the call, KV_ERROR follows it.
    await a.error("KV_ERROR")


@in_asyncio
async def test_54_a_workspace_scope(world: World) -> None:
    a, b, foreign = await world.open(world.agent("a"), world.agent("b"), world.agent("c", ws=f"{world.ws}-other"))
    k = f"{world.run}/w"
    await put(a, k, b"shared", scope="workspace")
    assert await get(b, k, scope="workspace") == b"shared"
    assert await get(b, k, scope="workspace", workspace=world.ws) == b"shared"
    assert await get(foreign, k, scope="workspace") == b""
    assert await get(b, k, scope="global") == b""
    await put(foreign, k, b"theirs", scope="workspace")
    assert await get(a, k, scope="workspace") == b"shared"


@in_asyncio
async def test_55_a_exclusive_scopes(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    k = f"{world.run}/x"
    cells: list[dict[str, str]] = [
        {"scope": "global-exclusive"},
        {"scope": "workspace-exclusive", "workspace": world.ws},
        {"scope": "user", "user_id": world.uid},
        {"scope": "user-workspace", "user_id": world.uid, "workspace": world.ws},
    ]
    for n, cell in enumerate(cells):
        await put(a, k, b"a%d" % n, **cell)
        await put(b, k, b"b%d" % n, **cell)
    for n, cell in enumerate(cells):
        assert await get(a, k, **cell) == b"a%d" % n, cell
        assert await get(b, k, **cell) == b"b%d" % n, cell
        answered(await a.client.kv_delete(k, timeout=LIMIT_S, **cell), "delete")
        assert await get(a, k, **cell) == b""
        assert await get(b, k, **cell) == b"b%d" % n, cell


@in_asyncio
async def test_57_a_exclusive_values_are_in_the_next_config(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    first = await a.take(box=a.configs)
    assert (dict(first.workspace_exclusive_kv), dict(first.global_exclusive_kv)) == ({}, {})
    blob = bytes(range(256))
    await put(a, "mine", blob, scope="workspace-exclusive", workspace=world.ws)
    await put(a, "everywhere", b"g", scope="global-exclusive")
    await put(a, "shared", b"s", scope="workspace")
    await a.close()
    a, b = await world.open(world.agent("a"), world.agent("b"))
    config = await a.take(box=a.configs)
    assert dict(config.workspace_exclusive_kv) == {"mine": blob}
    assert dict(config.global_exclusive_kv) == {"everywhere": b"g"}
    assert dict((await b.take(box=b.configs)).workspace_exclusive_kv) == {}


@in_asyncio
async def test_58_a_ttl(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    scope = {"scope": "workspace"}
    await put(a, "for ever", b"v", ttl=0, **scope)
    # Sent in one go, so that the value is read while it lives, however slow this machine is.
    _, value = await asyncio.gather(put(a, "brief", b"v", ttl=2, **scope), get(a, "brief", **scope))
    assert value == b"v"
    await eventually(lambda: get(a, "brief", **scope), lambda v: v == b"", "the key did not expire")
    listed = answered(await a.client.kv_list("", timeout=LIMIT_S, **scope), "list")
    assert list(listed.keys) == ["for ever"]
    # A counter that has expired starts again.
    scoped = {**scope, "timeout": LIMIT_S}
    counts = await asyncio.gather(*(a.client.kv_increment("count", ttl=2, **scoped) for _ in range(2)))
    assert sorted(one.counter_value for one in counts) == [1, 2]

    async def count() -> bytes:
        return await get(a, "count", **scope)

    await eventually(count, lambda v: v == b"", "the counter did not expire")
    assert (await a.client.kv_increment("count", **scoped)).counter_value == 1
    # A put without ttl makes a brief key lasting.
    await put(a, "changed", b"v", ttl=1, **scope)
    await put(a, "changed", b"w", ttl=0, **scope)
    await put(a, "clock", b"v", ttl=2, **scope)
    await eventually(lambda: get(a, "clock", **scope), lambda v: v == b"", "the key did not expire")
    assert await get(a, "changed", **scope) == b"w"


@pytest.mark.parametrize("call", ["kv_get", "kv_put", "kv_list", "kv_delete", "kv_increment", "kv_decrement"])
@in_asyncio
async def test_65_a_users_have_no_kv(world: World, call: str) -> None:
    """A typed failure within the timeout, or an error that the SDK raises."""
    (user,) = await world.open(world.user("w"))
    args = ("k", b"v") if call == "kv_put" else ("k",)
    with contextlib.suppress(AetherError):
        declined(await getattr(user.client, call)(*args, timeout=LIMIT_S), call)
        await user.error("KV_ERROR")
    await user.barrier()
    assert user.client.is_connected
