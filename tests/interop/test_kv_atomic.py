"""Scenarios 59 to 63: counters, compare-and-set, sets and pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.forwarder import Forwarder
from tests.helpers.sdk import LIMIT_S, POLL_S, SyncPeer, SyncWorld, World, answered, declined, in_asyncio

K = pb.KVOperation


@in_asyncio
async def test_59_a_counters(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    scope: dict[str, Any] = {"scope": "workspace", "timeout": LIMIT_S}
    assert answered(await a.client.kv_increment("up", **scope), "increment").counter_value == 1
    assert answered(await a.client.kv_decrement("down", **scope), "decrement").counter_value == -1
    answers = await asyncio.gather(*(p.client.kv_increment("n", **scope) for p in (a, b) for _ in range(25)))
    assert sorted(answer.counter_value for answer in answers) == list(range(1, 51))
    assert answered(await a.client.kv_get("n", **scope), "get").value == b"50"
    answered(await a.client.kv_put("text", b"not a number", **scope), "put")
    declined(await a.client.kv_increment("text", **scope), "increment")
    await a.error("KV_ERROR")


@in_asyncio
async def test_60_a_guarded_counters(world: World) -> None:
    (a,) = await world.open(world.agent("a"))
    scope: dict[str, Any] = {"scope": "workspace", "timeout": LIMIT_S}

    async def up(delta: int, ceiling: int) -> Any:
        return await a.client.kv_increment_if("n", delta=delta, ceiling=ceiling, **scope)

    async def down(delta: int, floor: int) -> Any:
        return await a.client.kv_decrement_if("n", delta=delta, floor=floor, **scope)

    assert await up(20, 20) == (20, True)
    assert await up(1, 20) == (20, False)
    assert await up(0, 21) == (21, True)  # a delta of 0 means 1
    assert await down(22, 0) == (21, False)
    assert await down(21, 0) == (0, True)
    assert await down(1, 0) == (0, False)
    assert await down(0, -1) == (-1, True)
    for call in (up, down):
        _value, applied = await call(-5, 100)
        assert not applied
        await a.error("KV_ERROR")
    assert answered(await a.client.kv_get("n", **scope), "get").value == b"-1"


@pytest.fixture
def agent(target: str) -> Iterator[SyncPeer]:
    """A threaded agent, for operations that are put on its queue by hand."""
    with SyncWorld(target) as world:
        yield world.agent("a").open()


def test_59_q_a_long_row_of_requests_is_no_flood(target: str) -> None:
    """grpcio answers each small message with two WINDOW_UPDATEs; on a new connection."""
    with Forwarder(target) as path, SyncWorld(path.address) as world:
        agent = world.agent("busy").open()
        for n in range(1, 4001):
            got = answered(agent.kv(K.INCREMENT, scope=K.WORKSPACE, key="n"), f"round trip {n}")
            assert got.counter_value == n
        assert path.server_goaways == 0


def test_61_q_set_if_absent_and_compare(agent: SyncPeer) -> None:
    def op(kind: int, **fields: Any) -> Any:
        return answered(agent.kv(kind, scope=K.WORKSPACE, key="cas", **fields), K.OpType.Name(kind))

    assert not op(K.COMPARE_AND_SET, expected_value=b"nope", value=b"x").applied
    assert op(K.SET_NX, value=b"one").applied
    assert not op(K.SET_NX, value=b"two").applied
    mismatch = op(K.COMPARE_AND_SET, expected_value=b"nope", value=b"two")
    assert (mismatch.applied, mismatch.value) == (False, b"one")
    assert op(K.COMPARE_AND_SET, expected_value=b"one", value=b"two").applied
    assert op(K.GET).value == b"two"
    mismatch = op(K.COMPARE_AND_DELETE, expected_value=b"one")
    assert (mismatch.applied, mismatch.value) == (False, b"two")
    assert op(K.COMPARE_AND_DELETE, expected_value=b"two").applied
    assert op(K.GET).value == b""
    assert op(K.SET_NX, value=b"three", ttl=1).applied
    while op(K.GET).value:  # ended by the suite's own time limit
        time.sleep(POLL_S)
    assert op(K.SET_NX, value=b"four").applied


def test_62_q_sets(agent: SyncPeer) -> None:
    def op(kind: int, key: str, **fields: Any) -> Any:
        return answered(agent.kv(kind, scope=K.WORKSPACE, key=key, **fields), K.OpType.Name(kind))

    assert op(K.SET_CARD, "s").counter_value == 0
    for member, applied, size in ((b"m1", True, 1), (b"m1", False, 1), (b"m2", True, 2), (b"m2", False, 2)):
        got = op(K.SET_ADD, "s", value=member, ttl=60)
        assert (got.applied, got.counter_value) == (applied, size), member
    assert op(K.SET_CARD, "s").counter_value == 2
    assert op(K.SET_ADD, "brief", value=b"m", ttl=1).counter_value == 1
    while op(K.SET_CARD, "brief").counter_value:
        time.sleep(POLL_S)
    assert op(K.SET_ADD, "brief", value=b"m", ttl=60).applied, "an expired set kept its member"


def test_63_q_pages(agent: SyncPeer) -> None:
    keys = [f"page/{n:02}" for n in range(25)]
    for key in keys:
        answered(agent.kv(K.PUT, scope=K.WORKSPACE, key=key, value=key.encode()), "put")
    answered(agent.kv(K.PUT, scope=K.WORKSPACE, key="zzz", value=b"outside the prefix"), "put")
    pages, cursor = [], ""
    while True:
        page = answered(agent.kv(K.LIST, scope=K.WORKSPACE, key="page/", limit=10, cursor=cursor), "list")
        assert {key: key.encode() for key in page.keys} == dict(page.kv_map)
        pages.append(list(page.keys))
        assert page.has_more == bool(page.next_cursor)
        if not page.has_more:
            break
        cursor = page.next_cursor
    assert [len(page) for page in pages] == [10, 10, 5]
    assert sorted(key for page in pages for key in page) == keys


def test_63_q_pages_under_writes(agent: SyncPeer) -> None:
    """Keys that stay are listed once, whatever is added and removed between pages."""
    lasting = [f"k/{n:03}" for n in range(0, 100, 2)]
    for key in lasting:
        answered(agent.kv(K.PUT, scope=K.WORKSPACE, key=key, value=b"v"), "put")
    seen: list[str] = []
    cursor = ""
    for turn in range(1000):
        page = answered(agent.kv(K.LIST, scope=K.WORKSPACE, key="k/", limit=7, cursor=cursor), "list")
        seen += page.keys
        if not page.has_more:
            break
        cursor = page.next_cursor
        # The key that the cursor stands on goes away, and neighbours appear on both sides of it.
        passing = f"k/{2 * turn + 1:03}"
        answered(agent.kv(K.PUT, scope=K.WORKSPACE, key=passing, value=b"v"), "put")
        answered(agent.kv(K.PUT, scope=K.WORKSPACE, key=f"{page.keys[-1]}+", value=b"v"), "put")
        answered(agent.kv(K.DELETE, scope=K.WORKSPACE, key=f"{page.keys[0]}+"), "delete")
    assert [key for key in seen if key in set(lasting)] == lasting
    assert len(set(seen)) == len(seen)
