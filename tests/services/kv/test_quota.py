"""A scope's space is bounded by number and by bytes, for every operation."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.model.limits import Limits
from aether_trio.services.kv import KvService
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
from tests.services.kv.conftest import ALICE, BOB, Caller


@pytest.fixture
def narrow(database: Database, clock: ManualClock) -> Caller:
    limits = Limits(kv_keys_per_scope=4, kv_bytes_per_scope=10 * 1024)
    return Caller(KvService(database, clock, limits, authorizer(shared_keys=True)), ALICE)


async def full(caller: Caller, op: str, **fields: Any) -> None:
    """It is refused as a value that is too large is."""
    (message,) = await caller.messages(op, **fields)
    error = message.error
    assert (error.code, error.retryable, error.request_id) == ("ERR_QUOTA_001", False, "r1"), message
    assert "4 keys and members of sets and 10 KiB" in error.message


WRITES: dict[str, dict[str, Any]] = {
    "PUT": {"value": b"x"},
    "SET_NX": {"value": b"x"},
    "INCREMENT": {},
    "DECREMENT": {},
    "INCREMENT_IF": {"guard_value": 5},
    "DECREMENT_IF": {"guard_value": -5},
    "SET_ADD": {"value": b"x"},
}


@pytest.mark.parametrize(("op", "fields"), WRITES.items())
async def test_nothing_makes_one_more_key_than_there_may_be(narrow: Caller, op: str, fields: dict[str, Any]) -> None:
    for key in "abcd":
        await getattr(narrow, op)(key=key, **fields)
    await full(narrow, op, key="e", **fields)
    assert list((await narrow.LIST(key="")).keys) == ["a", "b", "c", "d"]
    await getattr(narrow, op)(key="a", **fields)  # which adds nothing
    await narrow.DELETE(key="b")
    await getattr(narrow, op)(key="e", **fields)
    await full(narrow, op, key="f", **fields)


async def test_bytes_are_bounded_and_what_gets_smaller_is_never_refused(narrow: Caller) -> None:
    await narrow.PUT(key="a", value=bytes(6000))
    await narrow.PUT(key="b", value=bytes(4000))
    await full(narrow, "PUT", key="c", value=b"x")
    await full(narrow, "COMPARE_AND_SET", key="b", expected_value=bytes(4000), value=bytes(5000))
    assert (await narrow.GET(key="b")).value == bytes(4000)
    await narrow.PUT(key="a", value=bytes(100))
    await narrow.PUT(key="c", value=bytes(5000))


async def test_members_of_sets_count_and_are_not_counted_twice(narrow: Caller) -> None:
    for member in (b"1", b"2", b"3", b"4"):
        await narrow.SET_ADD(key="s", value=member)
    response = await narrow.SET_ADD(key="s", value=b"2")
    assert (response.applied, response.counter_value) == (False, 4)
    await full(narrow, "SET_ADD", key="s", value=b"5")
    await full(narrow, "PUT", key="k", value=b"x")
    assert (await narrow.SET_CARD(key="s")).counter_value == 4
    await narrow.PUT(key="s", value=b"in its place")
    await narrow.PUT(key="k", value=b"x")


async def test_what_has_expired_counts_until_it_is_swept(narrow: Caller, clock: ManualClock) -> None:
    for key in "abcd":
        await narrow.PUT(key=key, value=b"x", ttl=10)
    clock.advance(10_000)
    await full(narrow, "PUT", key="e", value=b"x")
    await narrow.PUT(key="a", value=b"x")  # in the place of an expired one
    assert await narrow.service.sweep() == 3
    await narrow.PUT(key="e", value=b"x")


@pytest.mark.parametrize(("op", "fields"), WRITES.items())
async def test_what_has_expired_makes_room_for_what_takes_its_place(
    narrow: Caller, clock: ManualClock, op: str, fields: dict[str, Any]
) -> None:
    for member in (b"1", b"2", b"3", b"4"):
        await narrow.SET_ADD(key="s", value=member, ttl=10)
    clock.advance(10_000)
    assert (await getattr(narrow, op)(key="s", **fields)).success
    for key in "abc":
        await narrow.PUT(key=key, value=b"x")
    await full(narrow, "PUT", key="d", value=b"x")


async def test_a_set_in_an_expired_place_may_exceed_a_lowered_quota(database: Database, clock: ManualClock) -> None:
    wide = Caller(KvService(database, clock, Limits(), authorizer(shared_keys=True)), ALICE)
    narrow = Caller(KvService(database, clock, Limits(kv_keys_per_scope=1), authorizer(shared_keys=True)), ALICE)
    await wide.PUT(key="k", value=b"x")
    await wide.PUT(key="l", value=b"x")
    await wide.PUT(key="s", value=b"x", ttl=10)
    clock.advance(10_000)
    assert (await narrow.SET_ADD(key="s", value=b"y")).applied


async def test_namespaces_do_not_share_their_quota(narrow: Caller) -> None:
    scopes = pb.KVOperation
    for scope in (scopes.GLOBAL, scopes.WORKSPACE, scopes.GLOBAL_EXCLUSIVE, scopes.WORKSPACE_EXCLUSIVE):
        for key in "abcd":
            await narrow.PUT(key=key, value=b"x", scope=scope)
    for key in "abcd":
        await narrow.as_(BOB).PUT(key=key, value=b"x", scope=scopes.GLOBAL_EXCLUSIVE)
    await full(narrow.as_(BOB), "PUT", key="e", value=b"x", scope=scopes.WORKSPACE)


async def test_what_comes_at_once_is_counted_one_after_another(narrow: Caller) -> None:
    refused = []

    async def put(number: int) -> None:
        (message,) = await narrow.messages("PUT", key=f"{number}", value=b"x")
        refused.append(message.WhichOneof("payload") == "error")

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(put, number)
    assert (len(refused), sum(refused)) == (40, 36)
    assert len((await narrow.LIST(key="")).keys) == 4
