"""Checkpoints: private to an identity, small enough to be loaded, gone on expiry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.model.identity import Identity
from aether_trio.model.limits import MIB, Limits
from aether_trio.services import checkpoints
from aether_trio.services.checkpoints import MAX_DATA_BYTES, CheckpointService
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import ManualClock
from tests.helpers.direct import Store
from tests.helpers.engines import Engine
from tests.helpers.inline import open_inline

ALICE = Identity.agent("w1", "alice", "1")
BOB = Identity.agent("w1", "bob", "1")
Ask = Callable[..., Awaitable[pb.CheckpointResponse]]


def asking(service: CheckpointService, identity: Identity = ALICE) -> Ask:
    async def ask(op: str, key: str = "", **fields: Any) -> pb.CheckpointResponse:
        number = pb.CheckpointOperation.OpType.Value(op)
        response = await service.handle(identity, pb.CheckpointOperation(op=number, key=key, request_id="r1", **fields))
        assert response.request_id == "r1"
        assert response.success is not bool(response.error)
        return response

    return ask


@pytest.fixture
def service(database: Database, clock: ManualClock) -> CheckpointService:
    return CheckpointService(database, clock, Limits())


@pytest.fixture
def ask(service: CheckpointService) -> Ask:
    return asking(service)


async def test_what_is_saved_is_loaded_with_its_time_in_seconds(ask: Ask, clock: ManualClock) -> None:
    missing = await ask("LOAD", "k")
    assert (missing.success, missing.data, missing.saved_at) == (True, b"", 0)
    clock.advance(1_999)
    saved_s = clock.now_ms() // 1000
    assert (await ask("SAVE", "k", data=bytes(range(256)))).saved_at == saved_s
    clock.advance(60_000)
    loaded = await ask("LOAD", "k")
    assert (loaded.data, loaded.saved_at) == (bytes(range(256)), saved_s)
    assert (await ask("SAVE", "k", data=b"again")).saved_at == saved_s + 60
    assert (await ask("LOAD", "k")).data == b"again"


async def test_the_empty_key_is_default(ask: Ask) -> None:
    await ask("SAVE", data=b"d")
    assert (await ask("LOAD", "default")).data == b"d"
    assert list((await ask("LIST")).keys) == ["default"]
    await ask("DELETE")
    assert list((await ask("LIST")).keys) == []


async def test_delete_is_idempotent_and_list_is_in_order(ask: Ask) -> None:
    for key in ("b", "é", "a", "\x00"):
        await ask("SAVE", key, data=b"x")
    assert list((await ask("LIST")).keys) == ["\x00", "a", "b", "é"]
    for _ in range(2):
        assert (await ask("DELETE", "a")).success
    assert list((await ask("LIST")).keys) == ["\x00", "b", "é"]


async def test_other_identities_do_not_see_them(service: CheckpointService, ask: Ask) -> None:
    await ask("SAVE", "k", data=b"mine")
    for other in (BOB, Identity.agent("w2", "alice", "1"), Identity.user("alice", "1"), Identity.workflow_engine()):
        theirs = asking(service, other)
        assert (await theirs("LOAD", "k")).data == b""
        assert list((await theirs("LIST")).keys) == []
        await theirs("DELETE", "k")
    assert (await ask("LOAD", "k")).data == b"mine"


async def test_ttl(database: Database, clock: ManualClock) -> None:
    service = CheckpointService(database, clock, Limits(), default_ttl_s=100)
    ask = asking(service)
    for key, ttl in (("default ttl", -1), ("for ever", 0), ("ten", 10), ("longest", 2**63 - 1)):
        await ask("SAVE", key, data=b"x", ttl=ttl)
    clock.advance(9_999)
    assert len((await ask("LIST")).keys) == 4
    clock.advance(1)
    assert (await ask("LOAD", "ten")).data == b""
    assert list((await ask("LIST")).keys) == ["default ttl", "for ever", "longest"]
    clock.advance(90_000)
    assert list((await ask("LIST")).keys) == ["for ever", "longest"]
    assert await service.sweep() == 2
    assert await database.fetch("SELECT count(*) FROM checkpoints") == [(2,)]


async def test_the_sweep_repeats(store: Store, clock: ManualClock, autojump_clock: trio.testing.MockClock) -> None:
    with open_inline(store, "state") as database:
        service = CheckpointService(database, clock, Limits())
        ask = asking(service)
        await ask("SAVE", "k", data=b"x", ttl=1)
        clock.advance(1_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.sweep_forever)
            while await database.fetch("SELECT key FROM checkpoints"):
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert trio.current_time() >= checkpoints.SWEEP_INTERVAL_S


async def test_without_a_server_default_a_negative_ttl_is_for_ever(ask: Ask, clock: ManualClock) -> None:
    await ask("SAVE", "k", data=b"x", ttl=-1)
    clock.advance(10**13)
    assert (await ask("LOAD", "k")).data == b"x"


async def test_the_largest_can_be_loaded_and_a_larger_one_is_refused(database: Database, clock: ManualClock) -> None:
    ask = asking(CheckpointService(database, clock, Limits(checkpoint_bytes=100 * MIB)))
    refused = await ask("SAVE", "k", data=bytes(MAX_DATA_BYTES + 1))
    assert f"; at most {MAX_DATA_BYTES} are allowed" in refused.error
    await ask("SAVE", "k", data=bytes(MAX_DATA_BYTES))
    assert (await ask("LOAD", "k")).ByteSize() < 4 * MIB - 4096
    small = asking(CheckpointService(database, clock, Limits(checkpoint_bytes=10)))
    assert "has 11 bytes; at most 10 are allowed" in (await small("SAVE", "k", data=bytes(11))).error


async def test_keys_are_bounded(ask: Ask) -> None:
    assert (await ask("SAVE", "x" * 256, data=b"x")).success
    assert "has 258 bytes; at most 256 are allowed" in (await ask("SAVE", "é" * 129, data=b"x")).error


async def test_their_number_is_bounded_so_that_a_list_is_always_whole(
    ask: Ask, service: CheckpointService, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_KEYS", 3)
    for key in ("a", "b", "c"):
        await ask("SAVE", key, data=b"x", ttl=10 if key == "c" else 0)
    assert "at most 3 checkpoints" in (await ask("SAVE", "d", data=b"x")).error
    assert (await ask("SAVE", "a", data=b"replaced")).success
    assert (await asking(service, BOB)("SAVE", "d", data=b"x")).success
    clock.advance(10_000)
    assert (await ask("SAVE", "d", data=b"x")).success  # the expired one does not count
    assert list((await ask("LIST")).keys) == ["a", "b", "d"]


async def test_their_bytes_are_bounded_together(database: Database, clock: ManualClock) -> None:
    service = CheckpointService(database, clock, Limits(checkpoint_bytes_per_identity=1000))
    ask = asking(service)
    assert (await ask("SAVE", "a", data=bytes(600))).success
    refused = await ask("SAVE", "b", data=bytes(401))
    assert refused.error.startswith("ERR_QUOTA_001")
    assert (await ask("SAVE", "a", data=bytes(1000))).success  # in the place of what was there
    assert (await asking(service, BOB)("SAVE", "b", data=bytes(401))).success
    assert (await ask("SAVE", "a", data=bytes(599))).success
    assert (await ask("SAVE", "b", data=bytes(401))).success


async def test_they_survive_a_restart(engine: Engine, clock: ManualClock) -> None:
    for data in (b"", b"kept"):
        async with engine.open("state") as database:
            ask = asking(CheckpointService(database, clock, Limits()))
            assert (await ask("LOAD", "k")).data == data
            await ask("SAVE", "k", data=b"kept")


@pytest.mark.parametrize("op", pb.CheckpointOperation.OpType.keys())
async def test_storage_that_does_not_answer_is_said(clock: ManualClock, op: str) -> None:
    class Broken:
        shared = False

        async def run(self, *_: Any) -> Any:
            raise StorageUnavailable("disk full")

        read = fetch = execute = read_small = run_small = run

    service = CheckpointService(Broken(), clock, Limits())  # type: ignore[arg-type]
    assert "disk full" in (await asking(service)(op, "k")).error
    assert await service.sweep() == 0


async def test_an_unknown_operation_is_named(service: CheckpointService) -> None:
    response = await service.handle(ALICE, pb.CheckpointOperation(op=9, request_id="r1"))  # type: ignore[arg-type]
    assert (response.success, response.error, response.request_id) == (False, "unknown checkpoint operation 9", "r1")


async def test_long_data_and_many_checkpoints_are_left_to_the_threads(
    ask: Ask, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers on either side of the bounds of what runs in the loop."""
    monkeypatch.setattr(checkpoints, "FEW_KEYS", 2)
    monkeypatch.setattr(checkpoints, "MAX_KEYS", 4)
    ask = asking(CheckpointService(database, ManualClock(), Limits(checkpoint_bytes_per_identity=50_000)))
    for number in range(4):
        data = bytes(checkpoints.SMALL_DATA_BYTES - 2 + number)
        await ask("SAVE", f"{number}", data=data[:10_000])
        await ask("SAVE", "0", data=data)
        assert (await ask("LOAD", "0")).data == data
    assert "keeps at most 4 checkpoints" in (await ask("SAVE", "4", data=b"x")).error
    assert "keeps at most 50000 bytes" in (await ask("SAVE", "0", data=bytes(20_001))).error
    assert (await ask("SAVE", "0", data=bytes(20_000))).success
    assert (await ask("SAVE", "1", data=b"x")).success
    assert (await ask("DELETE", "0")).success
    assert (await ask("LOAD", "0")).saved_at == 0
