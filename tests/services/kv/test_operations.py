"""What each operation does. The state machine covers their combinations."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.model.clock import ManualClock
from aether_trio.model.limits import Limits
from aether_trio.services.access import DevAuthorizer
from aether_trio.services.kv import KvService
from aether_trio.services.kv.service import SWEEP_INTERVAL_S
from aether_trio.storage.base import Database
from tests.helpers.direct import Store
from tests.helpers.inline import open_inline
from tests.services.kv.conftest import ALICE, Caller

BLOB = bytes(range(256))


async def test_a_value_comes_back_byte_for_byte_and_a_missing_key_is_an_empty_success(alice: Caller) -> None:
    assert (await alice.GET(key="k")).value == b""
    await alice.PUT(key="k", value=BLOB)
    assert (await alice.GET(key="k")).value == BLOB
    await alice.DELETE(key="k")
    await alice.DELETE(key="k")
    assert (await alice.GET(key="k")).value == b""


async def test_keys_may_hold_anything_of_1_to_256_bytes(alice: Caller) -> None:
    for key in ("a:b", "a::b", "%", "_", "\x00", "\U0010ffff", "é" * 128, "x" * 256):
        await alice.PUT(key=key, value=key.encode())
        assert (await alice.GET(key=key)).value == key.encode()
    assert "it must have 1 to 256" in await alice.refusal("PUT", key="")
    assert "has 257" in await alice.refusal("GET", key="é" * 128 + "x")


async def test_an_expired_key_is_gone_at_its_moment_without_a_sweep(alice: Caller, clock: ManualClock) -> None:
    await alice.PUT(key="k", value=b"v", ttl=10)
    await alice.PUT(key="kept", value=b"v", ttl=0)
    await alice.PUT(key="also kept", value=b"v", ttl=-5)
    clock.advance(9_999)
    assert (await alice.GET(key="k")).value == b"v"
    clock.advance(1)
    assert (await alice.GET(key="k")).value == b""
    assert sorted((await alice.LIST()).keys) == ["also kept", "kept"]
    assert (await alice.SET_NX(key="k", value=b"new")).applied
    clock.advance(10**12)
    assert (await alice.GET(key="kept")).value == b"v"


async def test_a_put_without_a_ttl_removes_the_old_one(alice: Caller, clock: ManualClock) -> None:
    await alice.PUT(key="k", value=b"v", ttl=10)
    await alice.PUT(key="k", value=b"v")
    clock.advance(20_000)
    assert (await alice.GET(key="k")).value == b"v"


async def test_the_largest_ttl_is_for_ever(alice: Caller, clock: ManualClock) -> None:
    await alice.PUT(key="k", value=b"v", ttl=2**63 - 1)
    clock.advance(10**15)
    assert (await alice.GET(key="k")).value == b"v"


async def test_the_sweep_gives_room_back_in_pages(
    alice: Caller, clock: ManualClock, service: KvService, database: Database
) -> None:
    await database.executemany(
        "INSERT INTO kv_entries (space, key, value, expires_ms) VALUES ($1, $2, $3, $4)",
        [(b"shared/global", b"%d" % n, b"", clock.now_ms() + 5_000) for n in range(1_200)],
    )
    await alice.SET_ADD(key="set", value=b"m", ttl=5)
    await alice.PUT(key="kept", value=b"v", ttl=6)
    clock.advance(5_000)
    before = database.statistics().groups
    assert await service.sweep() == 1_201
    assert database.statistics().groups - before == 3
    assert await database.fetch("SELECT key FROM kv_entries") == [(b"kept",)]
    assert await database.fetch("SELECT member FROM kv_members") == []


async def test_the_sweep_runs_by_itself(
    store: Store, clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> None:
    with open_inline(store, "state") as database:
        alice = Caller(KvService(database, clock, Limits(), DevAuthorizer()), ALICE)
        await alice.PUT(key="k", value=b"v", ttl=1)
        clock.advance(1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.service.sweep_forever)
            while await database.fetch("SELECT key FROM kv_entries"):
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert trio.current_time() >= SWEEP_INTERVAL_S


async def test_counters_are_decimal_text_and_start_from_nothing(alice: Caller) -> None:
    assert (await alice.INCREMENT(key="n", delta_value=50)).counter_value == 1  # always by one
    assert (await alice.INCREMENT(key="n")).counter_value == 2
    assert (await alice.GET(key="n")).value == b"2"
    for expected in (1, 0, -1):
        assert (await alice.DECREMENT(key="n")).counter_value == expected
    assert (await alice.GET(key="n")).value == b"-1"
    await alice.PUT(key="n", value=b"41")
    assert (await alice.INCREMENT(key="n")).counter_value == 42


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.0", b" 1", b"1\n", b"+1", b"01", b"-0", b"1_0", b"9" * 19, b"9" * 5000]
)
async def test_what_is_no_canonical_64_bit_integer_cannot_be_counted(alice: Caller, value: bytes) -> None:
    await alice.PUT(key="n", value=value)
    for op in ("INCREMENT", "DECREMENT", "INCREMENT_IF", "DECREMENT_IF"):
        assert "64-bit integer" in await alice.refusal(op, key="n", guard_value=5)
    assert (await alice.GET(key="n")).value == value


async def test_counters_never_wrap(alice: Caller) -> None:
    for value, op, guarded in (
        (b"9223372036854775807", "INCREMENT", "INCREMENT_IF"),
        (b"-9223372036854775808", "DECREMENT", "DECREMENT_IF"),
    ):
        await alice.PUT(key="n", value=value)
        assert "cannot leave the range" in await alice.refusal(op, key="n")
        response = await getattr(alice, guarded)(key="n", guard_value=int(value), delta_value=2**63 - 1)
        assert (response.applied, response.counter_value) == (False, int(value))
        assert (await alice.GET(key="n")).value == value


async def test_an_increments_ttl_counts_only_when_it_yields_one(alice: Caller, clock: ManualClock) -> None:
    await alice.INCREMENT(key="n", ttl=10)
    clock.advance(6_000)
    await alice.INCREMENT(key="n", ttl=10)  # yields 2: the window is not moved
    clock.advance(4_000)
    assert (await alice.GET(key="n")).value == b""
    await alice.DECREMENT(key="m", ttl=10)
    await alice.INCREMENT(key="m", ttl=10)
    clock.advance(20_000)
    assert (await alice.GET(key="m")).value == b"0"
    await alice.PUT(key="m", value=b"2")
    await alice.DECREMENT(key="m", ttl=10)  # yields 1, but is no increment
    clock.advance(20_000)
    assert (await alice.INCREMENT(key="m")).counter_value == 2


async def test_guarded_counters_at_and_beyond_their_guard(alice: Caller) -> None:
    async def up(**fields: int) -> tuple[bool, int]:
        response = await alice.INCREMENT_IF(key="n", **fields)
        return response.applied, response.counter_value

    async def down(**fields: int) -> tuple[bool, int]:
        response = await alice.DECREMENT_IF(key="n", **fields)
        return response.applied, response.counter_value

    assert await up(guard_value=0) == (False, 0)
    assert (await alice.GET(key="n")).value == b""  # a refused first step creates nothing
    assert await up(guard_value=20, delta_value=20) == (True, 20)
    assert await up(guard_value=22, delta_value=5) == (False, 20)
    assert await up(guard_value=22, delta_value=2) == (True, 22)
    assert await up(guard_value=23, delta_value=0) == (True, 23)  # 0 means 1
    assert await down(guard_value=0, delta_value=24) == (False, 23)
    assert await down(guard_value=0, delta_value=23) == (True, 0)
    assert "negative" in await alice.refusal("INCREMENT_IF", key="n", delta_value=-1)
    assert "negative" in await alice.refusal("DECREMENT_IF", key="n", delta_value=-1)


async def test_a_guarded_counters_ttl_counts_on_its_first_write(alice: Caller, clock: ManualClock) -> None:
    await alice.INCREMENT_IF(key="n", guard_value=10, delta_value=3, ttl=10)
    await alice.INCREMENT_IF(key="n", guard_value=10, ttl=100)
    clock.advance(10_000)
    assert (await alice.GET(key="n")).value == b""


async def test_compare_and_set_answers_a_mismatch_with_the_live_value(alice: Caller, clock: ManualClock) -> None:
    absent = await alice.COMPARE_AND_SET(key="k", expected_value=b"", value=b"v")
    assert (absent.applied, absent.value) == (False, b"")
    assert (await alice.GET(key="k")).value == b""
    assert (await alice.SET_NX(key="k", value=b"one")).applied
    assert not (await alice.SET_NX(key="k", value=b"two")).applied
    mismatch = await alice.COMPARE_AND_SET(key="k", expected_value=b"nope", value=b"two")
    assert (mismatch.applied, mismatch.value) == (False, b"one")
    assert (await alice.COMPARE_AND_SET(key="k", expected_value=b"one", value=b"two", ttl=5)).applied
    mismatch = await alice.COMPARE_AND_DELETE(key="k", expected_value=b"one")
    assert (mismatch.applied, mismatch.value) == (False, b"two")
    clock.advance(5_000)
    assert not (await alice.COMPARE_AND_DELETE(key="k", expected_value=b"two")).applied
    await alice.PUT(key="k", value=b"three")
    assert (await alice.COMPARE_AND_DELETE(key="k", expected_value=b"three")).applied
    assert (await alice.GET(key="k")).value == b""


async def test_sets_count_their_members_and_renew_their_ttl_for_new_ones_only(
    alice: Caller, clock: ManualClock
) -> None:
    async def add(member: bytes, ttl: int = 0) -> tuple[bool, int]:
        response = await alice.SET_ADD(key="s", value=member, ttl=ttl)
        return response.applied, response.counter_value

    assert (await alice.SET_CARD(key="s")).counter_value == 0
    assert await add(b"a", ttl=10) == (True, 1)
    clock.advance(6_000)
    assert await add(b"a", ttl=10) == (False, 1)
    assert await add(b"", ttl=10) == (True, 2)
    clock.advance(6_000)
    assert await add(b"b") == (True, 3)  # no ttl given: the old one stands
    assert (await alice.SET_CARD(key="s")).counter_value == 3
    clock.advance(4_000)
    assert (await alice.SET_CARD(key="s")).counter_value == 0
    assert await add(b"a") == (True, 1)  # and nothing of the expired set comes back
    clock.advance(10**9)
    assert (await alice.SET_CARD(key="s")).counter_value == 1


async def test_sets_and_values_are_not_taken_for_each_other(alice: Caller) -> None:
    await alice.SET_ADD(key="s", value=b"m")
    for op in ("GET", "INCREMENT", "DECREMENT", "INCREMENT_IF", "COMPARE_AND_SET", "COMPARE_AND_DELETE"):
        assert "has a set as its value" in await alice.refusal(op, key="s")
    await alice.PUT(key="k", value=b"v")
    for op in ("SET_ADD", "SET_CARD"):
        assert "not a set" in await alice.refusal(op, key="k")
    assert not (await alice.SET_NX(key="s", value=b"v")).applied
    assert (await alice.LIST()).kv_map == {"s": b"", "k": b"v"}


async def test_put_and_delete_replace_a_set_with_its_members(alice: Caller, database: Database) -> None:
    for end in ("PUT", "DELETE"):
        await alice.SET_ADD(key="s", value=b"m")
        await getattr(alice, end)(key="s", value=b"v")
        assert await database.fetch("SELECT count(*) FROM kv_members") == [(0,)]
        await alice.DELETE(key="s")
    assert (await alice.SET_ADD(key="s", value=b"m")).counter_value == 1


async def test_fifty_concurrent_increments_lose_none_and_repeat_none(alice: Caller, bob: Caller) -> None:
    seen: list[int] = []

    async def increment(caller: Caller) -> None:
        seen.append((await caller.INCREMENT(key="n")).counter_value)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(increment, (alice, bob)[number % 2])
    assert sorted(seen) == list(range(1, 51))
    assert (await bob.GET(key="n")).value == b"50"


async def test_a_guard_holds_under_concurrency(alice: Caller) -> None:
    applied: list[bool] = []

    async def take() -> None:
        applied.append((await alice.INCREMENT_IF(key="seats", guard_value=7)).applied)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(take)
    assert applied.count(True) == 7
    assert (await alice.GET(key="seats")).value == b"7"


async def test_a_lock_has_one_winner(alice: Caller) -> None:
    winners: list[bytes] = []

    async def claim(name: bytes) -> None:
        if (await alice.SET_NX(key="lock", value=name)).applied:
            winners.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(claim, b"%d" % number)
    assert winners == [(await alice.GET(key="lock")).value]
