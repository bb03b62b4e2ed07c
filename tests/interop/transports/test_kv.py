"""Scenarios 53 to 55 and 57 to 65: key-value operations and who may use them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from aether_trio.client import AetherError, PayloadTooLarge, Refused
from aether_trio.client.operations.enums import Scope
from aether_trio.client.operations.kv import Kv, SetAdded, Swap
from tests.interop.transports.world import World, alive, both, framed, until

GLOBAL: dict[str, Any] = {"scope": Scope.GLOBAL}


@framed
async def test_53_global_keys(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b", ws=f"{world.ws}-other")
    k, blob = f"{world.run}/k", bytes(range(256)) * 40
    assert await a.kv.get(f"{k}/none", **GLOBAL) == b""
    for key, value in ((f"{k}/1", blob), (f"{k}/2", b""), (f"{k}:colons::too", b"3"), (f"{k}x", b"outside")):
        await a.kv.put(key, value, **GLOBAL)
    assert await a.kv.get(f"{k}/1", **GLOBAL) == await b.kv.get(f"{k}/1", **GLOBAL) == blob
    page = await a.kv.list(f"{k}/", **GLOBAL)
    assert (dict(page.entries), page.next_cursor) == ({f"{k}/1": blob, f"{k}/2": b""}, "")
    await a.kv.put(f"{k}/1", b"overwritten", **GLOBAL)
    assert await a.kv.get(f"{k}/1", **GLOBAL) == b"overwritten"
    for _ in range(2):  # idempotent
        await a.kv.delete(f"{k}/1", **GLOBAL)
    assert await a.kv.get(f"{k}/1", **GLOBAL) == b""
    assert list((await a.kv.list(f"{k}/", **GLOBAL)).entries) == [f"{k}/2"]


@framed
@pytest.mark.parametrize("prefix", ["p%", "p_", "p\\", "pé", "p[a-c]*"], ids=ascii)
async def test_53_a_prefix_is_no_pattern(world: World, prefix: str) -> None:
    a = await world.agent("a")
    for key in (f"{prefix}1", "pX1", "pa1"):
        await a.kv.put(key, b"v")
    assert list((await a.kv.list(prefix)).entries) == [f"{prefix}1"]


@framed
@pytest.mark.parametrize("key", ["", "k" * 257, "é" * 129], ids=["empty", "257-bytes", "258-bytes"])
async def test_53_malformed_keys_are_refused(world: World, key: str) -> None:
    a = await world.agent("a")
    with pytest.raises(Refused, match="KV_ERROR"):
        await a.kv.put(key, b"v", **GLOBAL)
    await alive(a)


@framed
async def test_53_a_value_over_the_limit(world: World) -> None:
    a = await world.agent("a")
    with pytest.raises(PayloadTooLarge, match="ERR_QUOTA_001") as raised:
        await a.kv.put("k", bytes(5 * 1024 * 1024))
    assert not raised.value.retryable


@framed
async def test_54_workspace_scope(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b")
    foreign = await world.agent("c", ws=f"{world.ws}-other")
    k = f"{world.run}/w"
    await a.kv.put(k, b"shared")
    assert await b.kv.get(k) == await b.kv.get(k, workspace=world.ws) == b"shared"
    assert await foreign.kv.get(k) == b""
    assert await b.kv.get(k, **GLOBAL) == b""
    await foreign.kv.put(k, b"theirs")
    assert await a.kv.get(k) == b"shared"


@framed
async def test_55_exclusive_scopes(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b")
    k = f"{world.run}/x"
    cells: list[dict[str, Any]] = [
        {"scope": Scope.GLOBAL_EXCLUSIVE},
        {"scope": Scope.WORKSPACE_EXCLUSIVE, "workspace": world.ws},
        {"scope": Scope.USER, "user_id": world.uid},
        {"scope": Scope.USER_WORKSPACE, "user_id": world.uid, "workspace": world.ws},
    ]
    for n, cell in enumerate(cells):
        await a.kv.put(k, b"a%d" % n, **cell)
        await b.kv.put(k, b"b%d" % n, **cell)
    for n, cell in enumerate(cells):
        assert await a.kv.get(k, **cell) == b"a%d" % n, cell
        assert await b.kv.get(k, **cell) == b"b%d" % n, cell
        await a.kv.delete(k, **cell)
        assert await a.kv.get(k, **cell) == b""
        assert await b.kv.get(k, **cell) == b"b%d" % n, cell


@framed
async def test_57_exclusive_values_are_in_the_next_config(world: World, target: str, transport: str) -> None:
    blob = bytes(range(256))
    async with World(target, transport) as first:
        a = await first.agent("a", ws=world.ws, impl=world.impl)
        await alive(a)  # the snapshot comes right behind the ack, and so before any answer
        assert a.config is not None
        assert (dict(a.config.workspace_exclusive_kv), dict(a.config.global_exclusive_kv)) == ({}, {})
        await a.kv.put("mine", blob, scope=Scope.WORKSPACE_EXCLUSIVE)
        await a.kv.put("everywhere", b"g", scope=Scope.GLOBAL_EXCLUSIVE)
        await a.kv.put("shared", b"s")
    a, b = await world.agent("a"), await world.agent("b")
    for client, here, everywhere in ((a, {"mine": blob}, {"everywhere": b"g"}), (b, {}, {})):
        await alive(client)
        assert client.config is not None
        assert dict(client.config.workspace_exclusive_kv) == here
        assert dict(client.config.global_exclusive_kv) == everywhere


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Results of calls that are made at once."""
    results: dict[int, Any] = {}

    async def one(n: int, call: Callable[[], Awaitable[Any]]) -> None:
        results[n] = await call()

    async with trio.open_nursery() as nursery:
        for n, call in enumerate(calls):
            nursery.start_soon(one, n, call)
    return [results[n] for n in range(len(calls))]


@framed
async def test_58_ttl(world: World) -> None:
    kv = (await world.agent("a")).kv
    await kv.put("for ever", b"v", ttl_s=0)
    await kv.put("brief", b"v", ttl_s=1)
    await until(lambda: kv.get("brief"), b"")
    assert list((await kv.list()).entries) == ["for ever"]
    # A counter that has expired starts again.
    assert await kv.increment("count", ttl_s=1) == 1
    await until(lambda: kv.get("count"), b"")
    assert await kv.increment("count") == 1
    # A put without ttl makes a brief key lasting.
    await kv.put("changed", b"v", ttl_s=1)
    await kv.put("changed", b"w", ttl_s=0)
    await kv.put("clock", b"v", ttl_s=2)
    await until(lambda: kv.get("clock"), b"")
    assert await kv.get("changed") == b"w"


@framed
async def test_59_counters(world: World) -> None:
    a, b = await world.agent("a"), await world.agent("b")
    assert await a.kv.increment("up") == 1
    assert await a.kv.decrement("down") == -1
    calls = [lambda kv=client.kv: kv.increment("n") for client in (a, b) for _ in range(25)]
    assert sorted(await together(*calls)) == list(range(1, 51))
    assert await a.kv.get("n") == b"50"
    await a.kv.put("text", b"not a number")
    with pytest.raises(Refused, match="KV_ERROR"):
        await a.kv.increment("text")


@framed
async def test_59_a_long_row_of_requests_is_no_flood(world: World) -> None:
    a = await world.agent("busy")
    for n in range(1, 1001):
        assert await a.kv.increment("n") == n
    await alive(a)


@framed
async def test_60_guarded_counters(world: World) -> None:
    kv = (await world.agent("a")).kv

    async def up(delta: int, ceiling: int) -> tuple[int, bool]:
        got = await kv.increment_if("n", delta=delta, ceiling=ceiling)
        return got.value, got.applied

    async def down(delta: int, floor: int) -> tuple[int, bool]:
        got = await kv.decrement_if("n", delta=delta, floor=floor)
        return got.value, got.applied

    assert await up(20, 20) == (20, True)
    assert await up(1, 20) == (20, False)
    assert await up(0, 21) == (21, True)  # a delta of 0 means 1
    assert await down(22, 0) == (21, False)
    assert await down(21, 0) == (0, True)
    assert await down(1, 0) == (0, False)
    assert await down(0, -1) == (-1, True)
    for call in (up, down):
        with pytest.raises(Refused, match="KV_ERROR"):
            await call(-5, 100)
    assert await kv.get("n") == b"-1"


@framed
async def test_61_set_if_absent_and_compare(world: World) -> None:
    kv = (await world.agent("a")).kv
    assert not (await kv.compare_and_set("k", b"nope", b"x")).applied
    assert await kv.put_if_absent("k", b"one")
    assert not await kv.put_if_absent("k", b"two")
    assert await kv.compare_and_set("k", b"nope", b"two") == Swap(applied=False, value=b"one")
    assert (await kv.compare_and_set("k", b"one", b"two")).applied
    assert await kv.get("k") == b"two"
    assert await kv.compare_and_delete("k", b"one") == Swap(applied=False, value=b"two")
    assert (await kv.compare_and_delete("k", b"two")).applied
    assert await kv.get("k") == b""
    assert await kv.put_if_absent("k", b"three", ttl_s=1)
    await until(lambda: kv.get("k"), b"")
    assert await kv.put_if_absent("k", b"four")


@framed
async def test_62_sets(world: World) -> None:
    kv = (await world.agent("a")).kv
    assert await kv.set_size("s") == 0
    for member, applied, size in ((b"m1", True, 1), (b"m1", False, 1), (b"m2", True, 2), (b"m2", False, 2)):
        assert await kv.set_add("s", member, ttl_s=60) == SetAdded(applied=applied, size=size)
    assert await kv.set_size("s") == 2
    assert (await kv.set_add("brief", b"m", ttl_s=1)).size == 1
    await until(lambda: kv.set_size("brief"), 0)
    assert (await kv.set_add("brief", b"m", ttl_s=60)).applied, "an expired set kept its member"


@framed
async def test_63_pages(world: World) -> None:
    kv = (await world.agent("a")).kv
    keys = [f"page/{n:02}" for n in range(25)]
    for key in keys:
        await kv.put(key, key.encode())
    await kv.put("zzz", b"outside the prefix")
    sizes, cursor = [], ""
    for _ in range(3):
        page = await kv.list("page/", limit=10, cursor=cursor)
        sizes.append(len(page.entries))
        cursor = page.next_cursor
    assert (sizes, cursor) == ([10, 10, 5], "")
    assert [entry async for entry in kv.items("page/", page_size=10)] == [(key, key.encode()) for key in keys]


@framed
async def test_63_pages_under_writes(world: World) -> None:
    """Keys that stay are listed once, whatever is added and removed between pages."""
    kv = (await world.agent("a")).kv
    lasting = [f"k/{n:03}" for n in range(0, 100, 2)]
    for key in lasting:
        await kv.put(key, b"v")
    seen: list[str] = []
    async for key, _ in kv.items("k/", page_size=7):
        seen.append(key)
        await _disturb(kv, len(seen), key)
    assert [key for key in seen if key in set(lasting)] == lasting
    assert len(set(seen)) == len(seen)


async def _disturb(kv: Kv, turn: int, key: str) -> None:
    """Add and remove keys behind and in front of the reader."""
    if turn % 7 == 0 and turn < 200:
        await kv.put(f"k/{turn:03}.5", b"v")
        await kv.put(f"{key}+", b"v")
        await kv.delete(f"{key}+")


CALLS: dict[str, Callable[[Kv], Awaitable[Any]]] = {
    "get": lambda kv: kv.get("k"),
    "put": lambda kv: kv.put("k", b"v"),
    "list": lambda kv: kv.list("k"),
    "delete": lambda kv: kv.delete("k"),
    "increment": lambda kv: kv.increment("k"),
    "decrement": lambda kv: kv.decrement("k"),
    "set_add": lambda kv: kv.set_add("k", b"v"),
}


@framed
async def test_64_purging_an_identity_needs_a_capability(world: World) -> None:
    """No client has the capability yet, so nothing is purged."""
    own: dict[str, Any] = {"scope": Scope.WORKSPACE_EXCLUSIVE}
    owner, other = await world.agent("owner"), await world.agent("other")
    await owner.kv.put("mine", b"kept", **own)
    for client in (owner, other):
        with pytest.raises(AetherError, match=r"KV_ERROR: .*kv_purge_identity"):
            await client.kv.purge_identity(owner.topic, **own)
    assert await owner.kv.get("mine", **own) == b"kept"
    await alive(other)


@both
@pytest.mark.parametrize("call", sorted(CALLS))
async def test_65_users_have_no_kv(world: World, call: str) -> None:
    user = await world.user("w")
    with pytest.raises(AetherError, match="KV_ERROR"):
        await CALLS[call](user.kv)
    await alive(user)
