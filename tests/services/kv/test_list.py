"""LIST, the ConfigSnapshot's entries and PURGE_IDENTITY."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.limits import MIB, Limits
from aether_trio.services.kv import KvService
from aether_trio.services.kv import service as service_module
from aether_trio.services.kv.ranges import CursorError, decode_cursor, encode_cursor
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
from tests.services.kv.conftest import ALICE, BOB, Caller

EXCLUSIVE = pb.KVOperation.GLOBAL_EXCLUSIVE
WS_EXCLUSIVE = pb.KVOperation.WORKSPACE_EXCLUSIVE


async def fill(caller: Caller, keys: list[str], **fields: object) -> None:
    for key in keys:
        await caller.PUT(key=key, value=key.encode(), **fields)


async def pages_of(caller: Caller, **fields: object) -> AsyncIterator[pb.KVResponse]:
    more, cursor = True, ""
    while more:
        page = await caller.LIST(cursor=cursor, **fields)
        yield page
        more, cursor = page.has_more, page.next_cursor


async def test_a_prefix_and_nothing_beside_it(alice: Caller) -> None:
    await fill(alice, ["a/", "a/1", "a/2", "a/\U0010ffff", "a0", "a", "b/1"])
    response = await alice.LIST(key="a/")
    assert list(response.keys) == ["a/", "a/1", "a/2", "a/\U0010ffff"]
    assert response.kv_map == {key: key.encode() for key in response.keys}
    assert (response.has_more, response.next_cursor) == (False, "")
    assert list((await alice.LIST(key="nothing")).keys) == []
    assert len((await alice.LIST()).keys) == 7


async def test_a_page_that_ends_with_the_last_key_says_so(alice: Caller) -> None:
    await fill(alice, [f"k{number}" for number in range(10)])
    assert not (await alice.LIST(limit=10)).has_more


async def test_page_sizes(alice: Caller, database: Database) -> None:
    await database.executemany(
        "INSERT INTO kv_entries (space, key, value) VALUES ($1, $2, $3)",
        [(b"shared/global", b"%04d" % number, b"") for number in range(1_500)],
    )
    for limit, expected in ((0, 100), (-3, 100), (7, 7), (1000, 1000), (5000, 1000)):
        response = await alice.LIST(limit=limit)
        assert (len(response.keys), response.has_more) == (expected, True)


async def test_a_page_is_cut_before_a_client_would_refuse_it(alice: Caller) -> None:
    for number in range(10):
        await alice.PUT(key=f"k{number}", value=bytes(MIB - 1000))
    pages = [page async for page in pages_of(alice)]
    assert max(page.ByteSize() for page in pages) < 4 * MIB - 4096
    assert [len(page.keys) for page in pages] == [3, 3, 3, 1]


async def test_a_thousand_long_keys_fit(alice: Caller, database: Database) -> None:
    await database.executemany(
        "INSERT INTO kv_entries (space, key, value) VALUES ($1, $2, $3)",
        [(b"shared/global", b"%0256d" % number, bytes(4000)) for number in range(1_000)],
    )
    response = await alice.LIST(limit=1000)
    assert response.has_more
    assert 700 < len(response.keys) < 1000
    assert response.ByteSize() < 4 * MIB - 4096


async def test_keys_that_exist_throughout_are_seen_once_whatever_else_happens(alice: Caller) -> None:
    chaos = random.Random(3)
    steady = [f"{number:03}-steady" for number in range(60)]
    await fill(alice, steady)
    await fill(alice, [f"{number:03}-going" for number in range(60)])
    seen: list[str] = []
    async for page in pages_of(alice, limit=7):
        seen += [key for key in page.keys if key.endswith("steady")]
        for _ in range(10):
            number = chaos.randrange(60)
            await alice.DELETE(key=f"{number:03}-going")
            await alice.PUT(key=f"{chaos.randrange(60):03}-coming", value=b"")
        # The very key that the cursor names.
        if page.has_more and decode_cursor(page.next_cursor).endswith(b"going"):
            await alice.DELETE(key=decode_cursor(page.next_cursor).decode())
    assert seen == steady


async def test_a_cursor_is_checked_and_cannot_leave_its_prefix_or_space(alice: Caller, bob: Caller) -> None:
    await fill(alice, ["a1", "a2", "b1"])
    await fill(bob, ["a3"], scope=EXCLUSIVE)
    for bad in ("nonsense", "%%%", "MQ", "é", encode_cursor(b"x")[:-1]):
        assert "cursor" in await alice.refusal("LIST", cursor=bad)
    cursor = (await alice.LIST(limit=1)).next_cursor
    assert list((await alice.LIST(key="b", cursor=cursor)).keys) == ["b1"]
    assert list((await alice.LIST(key="a", cursor=encode_cursor(b"b"))).keys) == []
    assert list((await alice.LIST(scope=EXCLUSIVE, cursor=cursor)).keys) == []


def test_cursors_round_trip_and_others_are_refused() -> None:
    for key in (b"k", "é\x00".encode(), b"x" * 256):
        assert decode_cursor(encode_cursor(key)) == key
    with pytest.raises(CursorError):
        decode_cursor("Mg==")  # another version


async def test_the_snapshot_has_the_exclusive_values_of_its_client_alone(alice: Caller, bob: Caller) -> None:
    await alice.PUT(key="g", value=b"1", scope=EXCLUSIVE)
    await alice.PUT(key="w", value=b"2", scope=WS_EXCLUSIVE)
    await alice.PUT(key="elsewhere", value=b"3", scope=WS_EXCLUSIVE, workspace="w2")
    await alice.PUT(key="u", value=b"4", scope=pb.KVOperation.USER, user_id="u")
    await bob.PUT(key="b", value=b"5", scope=EXCLUSIVE)
    await bob.PUT(key="shared", value=b"6")
    assert await alice.service.exclusive_snapshot(ALICE) == ({"w": b"2"}, {"g": b"1"})
    assert await alice.service.exclusive_snapshot(BOB) == ({}, {"b": b"5"})


@pytest.mark.parametrize(
    "identity", [Identity.task("w1", "t", "u"), Identity.user("u", "w"), Identity.workflow_engine()], ids=str
)
async def test_identities_without_exclusive_keys_have_an_empty_snapshot(alice: Caller, identity: Identity) -> None:
    assert await alice.service.exclusive_snapshot(identity) == ({}, {})


async def test_the_snapshot_is_bounded_in_count_and_bytes(alice: Caller, clock: ManualClock) -> None:
    await fill(alice, [f"{number:03}" for number in range(120)], scope=EXCLUSIVE)
    for number in range(5):
        await alice.PUT(key=f"{number}", value=bytes(MIB // 2), scope=WS_EXCLUSIVE)
    clock.advance(1)
    workspace, everywhere = await alice.service.exclusive_snapshot(ALICE)
    assert list(everywhere) == [f"{number:03}" for number in range(100)]
    assert list(workspace) == ["0", "1", "2"]


async def test_a_purge_takes_what_is_exclusive_to_its_target_and_nothing_else(
    alice: Caller, bob: Caller, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "PURGE_PAGE", 3)
    await fill(alice, [str(number) for number in range(7)], scope=EXCLUSIVE)
    await fill(alice, ["w"], scope=WS_EXCLUSIVE, workspace="w9")
    await fill(alice, ["u"], scope=pb.KVOperation.USER, user_id="u")
    await alice.SET_ADD(key="s", value=b"m", scope=EXCLUSIVE)
    await fill(alice, ["gone"], scope=EXCLUSIVE, ttl=1)
    await fill(alice, ["shared"])
    for number, spec in enumerate(("10", "1/", "")):
        other = alice.as_(Identity.agent("w1", "alice" if spec else "alice2", spec or "1"))
        await fill(other, [f"o{number}"], scope=EXCLUSIVE)
    clock.advance(1_000)

    response = await bob.PURGE_IDENTITY(target_identity=str(ALICE), scope=0)
    assert response == pb.KVResponse(success=True, counter_value=10, request_id="r1")
    assert await alice.service.exclusive_snapshot(ALICE) == ({}, {})
    assert (await alice.GET(key="shared")).value == b"shared"
    for spec in ("10", "1/"):
        assert len((await alice.service.exclusive_snapshot(Identity.agent("w1", "alice", spec)))[1]) == 1
    assert (await bob.PURGE_IDENTITY(target_identity=str(ALICE), scope=0)).counter_value == 0


async def test_a_purge_can_be_narrowed_to_one_space_and_prefix(alice: Caller) -> None:
    for workspace in ("a", "ab"):
        await fill(alice, ["x1", "x2", "y"], scope=WS_EXCLUSIVE, workspace=workspace)
    target = {"target_identity": str(ALICE), "scope": WS_EXCLUSIVE, "workspace": "a"}
    assert (await alice.PURGE_IDENTITY(key="x", **target)).counter_value == 2
    assert list((await alice.LIST(scope=WS_EXCLUSIVE, workspace="a")).keys) == ["y"]
    assert (await alice.PURGE_IDENTITY(**target)).counter_value == 1
    assert len((await alice.LIST(scope=WS_EXCLUSIVE, workspace="ab")).keys) == 3


@pytest.mark.parametrize(
    ("scope", "target", "why"),
    [
        (pb.KVOperation.GLOBAL, str(ALICE), "is a shared scope"),
        (pb.KVOperation.WORKSPACE, str(ALICE), "is a shared scope"),
        (pb.KVOperation.USER_SHARED, str(ALICE), "is a shared scope"),
        (pb.KVOperation.USER, str(ALICE), "needs a user_id"),
        (0, "nonsense", ""),
        (0, "", ""),
        (0, "us::alice::1", "a user has none"),
    ],
)
async def test_a_purge_that_could_hit_others_is_refused(alice: Caller, scope: int, target: str, why: str) -> None:
    await fill(alice, ["k"])
    await fill(alice, ["k"], scope=EXCLUSIVE)
    assert why in await alice.refusal("PURGE_IDENTITY", scope=scope, target_identity=target)
    assert len((await alice.LIST()).keys) == len((await alice.LIST(scope=EXCLUSIVE)).keys) == 1


async def test_a_purge_needs_the_capability(database: Database, clock: ManualClock) -> None:
    caller = Caller(KvService(database, clock, Limits(), authorizer(shared_keys=True)), ALICE)
    assert "capability/kv_purge_identity" in await caller.refusal(
        "PURGE_IDENTITY", "ERR_PERMISSION_DENIED", target_identity=str(ALICE), scope=0
    )
