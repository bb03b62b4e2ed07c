"""What each operation does. The state machine covers their combinations."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.model.limits import Limits
from aether_trio.services.kv import KvService
from aether_trio.services.kv.service import SWEEP_INTERVAL_S
from aether_trio.storage.base import Database
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
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


async def test_the_sweep_repeats(store: Store, clock: ManualClock, autojump_clock: trio.testing.MockClock) -> None:
    with open_inline(store, "state") as database:
        alice = Caller(KvService(database, clock, Limits(), authorizer(shared_keys=True)), ALICE)
        await alice.PUT(key="k", value=b"v", ttl=1)
        clock.advance(1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.service.sweep_forever)
            while await database.fetch("SELECT key FROM kv_entries"):
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert trio.current_time() >= SWEEP_INTERVAL_S


@pytest.mark.parametrize("bad", [b"", b"x", b"1.0", b" 1", b"1\n", b"+1", b"01", b"-0", b"1_0", b"9" * 19, b"9" * 5000])
async def test_what_is_no_canonical_64_bit_integer_cannot_be_counted(alice: Caller, bad: bytes) -> None:
    await alice.PUT(key="n", value=bad)
    for op in ("INCREMENT", "DECREMENT", "INCREMENT_IF", "DECREMENT_IF"):
        assert "64-bit integer" in await alice.refusal(op, key="n", guard_value=5)
    assert (await alice.GET(key="n")).value == bad


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


async def test_a_decrement_that_yields_one_sets_no_ttl(alice: Caller, clock: ManualClock) -> None:
    await alice.PUT(key="n", value=b"2")
    assert (await alice.DECREMENT(key="n", ttl=10)).counter_value == 1
    clock.advance(20_000)
    assert (await alice.GET(key="n")).value == b"1"


@pytest.mark.parametrize("op", ["INCREMENT_IF", "DECREMENT_IF"])
async def test_a_guarded_counter_takes_no_negative_delta(alice: Caller, op: str) -> None:
    assert "negative" in await alice.refusal(op, key="n", delta_value=-1)


async def test_sets_and_values_are_not_taken_for_each_other(alice: Caller) -> None:
    await alice.SET_ADD(key="s", value=b"m")
    for op in ("GET", "INCREMENT", "DECREMENT", "INCREMENT_IF", "COMPARE_AND_SET", "COMPARE_AND_DELETE"):
        assert "has a set as its value" in await alice.refusal(op, key="s")
    await alice.PUT(key="k", value=b"v")
    for op in ("SET_ADD", "SET_CARD"):
        assert "not a set" in await alice.refusal(op, key="k")
    assert not (await alice.SET_NX(key="s", value=b"v")).applied
    assert (await alice.LIST()).kv_map == {"s": b"", "k": b"v"}


@pytest.mark.parametrize(("op", "most"), [("INCREMENT", 50), ("INCREMENT_IF", 7)])
async def test_concurrent_increments_count_once_within_a_guard(alice: Caller, bob: Caller, op: str, most: int) -> None:
    seen: list[int] = []

    async def increment(caller: Caller) -> None:
        response = await getattr(caller, op)(key="n", guard_value=7)
        if response.applied:
            seen.append(response.counter_value)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(increment, (alice, bob)[number % 2])
    assert sorted(seen) == list(range(1, most + 1))
    assert (await bob.GET(key="n")).value == b"%d" % most


async def test_a_lock_has_one_winner(alice: Caller) -> None:
    winners: list[bytes] = []

    async def claim(name: bytes) -> None:
        if (await alice.SET_NX(key="lock", value=name)).applied:
            winners.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(claim, b"%d" % number)
    assert winners == [(await alice.GET(key="lock")).value]
