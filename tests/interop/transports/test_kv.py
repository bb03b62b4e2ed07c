"""Scenarios 53 and 58 to 65: key-value operations and who may use them.

tests/client/operations/test_served.py has the others, on every transport of the client.
"""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.client import AetherError, PayloadTooLarge, Refused
from aether_trio.client.operations import AccessLevel, Scope
from tests.helpers.rules import grant
from tests.interop.transports.world import World, alive, both, framed, until


@framed
async def test_53_a_value_over_the_limit(world: World) -> None:
    a = await world.agent("a")
    with pytest.raises(PayloadTooLarge, match="ERR_QUOTA_001") as raised:
        await a.kv.put("k", bytes(5 * 1024 * 1024))
    assert not raised.value.retryable


@framed
async def test_58_ttl(world: World) -> None:
    kv = (await world.agent("a")).kv
    await kv.put("for ever", b"v", ttl_s=0)
    await kv.put("brief", b"v", ttl_s=1)
    assert await kv.increment("count", ttl_s=1) == 1
    assert await kv.put_if_absent("once", b"v", ttl_s=1)
    assert (await kv.set_add("set", b"m", ttl_s=1)).size == 1
    for key in ("brief", "count", "once"):
        await until(lambda key=key: kv.get(key), b"")
    await until(lambda: kv.set_size("set"), 0)
    assert list((await kv.list()).entries) == ["for ever"]
    # What has expired starts again.
    assert await kv.increment("count") == 1
    assert await kv.put_if_absent("once", b"w")
    assert (await kv.set_add("set", b"m")).applied, "an expired set kept its member"


@framed
async def test_59_a_long_row_of_requests_is_no_flood(world: World) -> None:
    a = await world.agent("busy")
    for n in range(1, 1001):
        assert await a.kv.increment("n") == n
    await alive(a)


@framed
async def test_60_guarded_counters(world: World) -> None:
    kv = (await world.agent("a")).kv
    for delta, ceiling, value, applied in ((20, 20, 20, True), (1, 20, 20, False), (0, 21, 21, True)):
        got = await kv.increment_if("n", delta=delta, ceiling=ceiling)
        assert (got.value, got.applied) == (value, applied), (delta, ceiling)
    for delta, floor, value, applied in ((22, 0, 21, False), (21, 0, 0, True), (1, 0, 0, False), (0, -1, -1, True)):
        got = await kv.decrement_if("n", delta=delta, floor=floor)
        assert (got.value, got.applied) == (value, applied), (delta, floor)
    with pytest.raises(Refused, match="KV_ERROR"):
        await kv.increment_if("n", delta=-5, ceiling=100)
    with pytest.raises(Refused, match="KV_ERROR"):
        await kv.decrement_if("n", delta=-5, floor=100)
    assert await kv.get("n") == b"-1"


@framed
async def test_64_purging_an_identity_needs_a_capability(world: World) -> None:
    """Without it nothing is purged, not even by its owner; with it, the count is told."""
    own: dict[str, Any] = {"scope": Scope.WORKSPACE_EXCLUSIVE}
    owner, other = await world.agent("owner"), await world.agent("other")
    await owner.kv.put("mine", b"kept", **own)
    for client in (owner, other):
        with pytest.raises(AetherError, match=r"ERR_PERMISSION_DENIED: .*kv_purge_identity"):
            await client.kv.purge_identity(owner.topic, **own)
    assert await owner.kv.get("mine", **own) == b"kept"
    await grant(world.target, "agent", other.topic, "capability", "capability/kv_purge_identity", AccessLevel.MANAGE)
    assert await other.kv.purge_identity(owner.topic, **own) == 1
    assert await owner.kv.get("mine", **own) == b""
    await alive(other)


@both
async def test_65_users_have_no_kv(world: World) -> None:
    user = await world.user("w")
    with pytest.raises(AetherError, match="KV_ERROR"):
        await user.kv.put("k", b"v")
    await alive(user)
