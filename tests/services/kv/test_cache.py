"""What is remembered of keys: never an entry that the database does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.model.limits import Limits
from aether_trio.services.access import Capability, GatewayActor
from aether_trio.services.kv import KvService
from aether_trio.services.kv.cache import CACHED_VALUE_BYTES, RECORD_BYTES, EntryCache
from aether_trio.services.kv.entries import UNKNOWN, Entry
from aether_trio.storage.base import CommitUnknown, Fetch, Program, StorageUnavailable, single
from aether_trio.storage.sqlite.database import open_sqlite
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock
from tests.services.kv.conftest import ALICE, Caller
from tests.storage.programs import LONG_S

NAME = (b"space", b"key")
OLD = Entry(b"old", None, None, 1)
NEW = Entry(b"new", None, None, 1)
Op = pb.KVOperation


@pytest.fixture
def cache() -> EntryCache:
    return EntryCache()


def known(cache: EntryCache, entry: Entry | None = OLD) -> EntryCache:
    change = cache.begin_write(NAME)
    cache.committed(change, cache.stamp(), entry)
    return cache


# -- the cache -------------------------------------------------------------------------------------


def test_a_read_and_a_committed_write_are_remembered(cache: EntryCache) -> None:
    assert cache.entry(NAME) is UNKNOWN
    cache.end_read(cache.begin_read(NAME), None)
    assert cache.entry(NAME) is None
    change = cache.begin_write(NAME)
    assert cache.entry(NAME) is UNKNOWN  # the database may have NEW already
    cache.committed(change, cache.stamp(), NEW)
    assert cache.entry(NAME) == NEW


def test_the_write_that_ran_last_counts(cache: EntryCache) -> None:
    first, second = cache.begin_write(NAME), cache.begin_write(NAME)
    stamps = {first: cache.stamp(), second: cache.stamp()}
    cache.committed(second, stamps[second], NEW)
    cache.committed(first, stamps[first], OLD)
    assert cache.entry(NAME) == NEW


def test_a_program_knows_its_entry_if_no_other_write_can_come_between(cache: EntryCache) -> None:
    known(cache)
    first = cache.begin_write(NAME)
    assert first.known() == OLD
    second = cache.begin_write(NAME)
    assert first.known() is second.known() is UNKNOWN
    cache.committed(first, cache.stamp(), NEW)
    assert second.known() is UNKNOWN
    cache.committed(second, cache.stamp(), OLD)
    assert cache.begin_write(NAME).known() == OLD


def test_a_read_that_a_write_overtook_is_not_remembered(cache: EntryCache) -> None:
    reading = cache.begin_read(NAME)
    change = cache.begin_write(NAME)
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) is UNKNOWN
    cache.committed(change, cache.stamp(), NEW)
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) == NEW


def test_a_read_during_a_write_that_fails_is_not_remembered(cache: EntryCache) -> None:
    change = cache.begin_write(NAME)
    reading = cache.begin_read(NAME)
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) is UNKNOWN
    cache.abandoned(change)
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) is UNKNOWN


def test_a_read_that_saw_another_write_fail_is_not_remembered(cache: EntryCache) -> None:
    reading = cache.begin_read(NAME)
    cache.lost(cache.begin_write((b"space", b"other")))
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) is UNKNOWN


def test_a_write_without_a_trace_leaves_what_was_known(cache: EntryCache) -> None:
    known(cache)
    cache.abandoned(cache.begin_write(NAME))
    assert cache.entry(NAME) == OLD
    assert cache.begin_write(NAME).known() == OLD


def test_after_a_lost_write_nothing_is_remembered_until_a_later_one_has_ended(cache: EntryCache) -> None:
    known(cache)
    before = cache.begin_write((b"space", b"before"))
    cache.lost(cache.begin_write(NAME))
    assert cache.entry(NAME) is UNKNOWN
    cache.committed(before, cache.stamp(), OLD)  # it may have run before the lost one
    reading = cache.begin_read(NAME)
    cache.end_read(reading, OLD)
    assert cache.entry(NAME) is UNKNOWN
    later = cache.begin_write((b"space", b"other"))
    cache.committed(later, cache.stamp(), OLD)
    cache.end_read(reading, OLD)  # it began when the lost one could still take effect
    assert cache.entry(NAME) is UNKNOWN
    cache.end_read(cache.begin_read(NAME), NEW)
    assert cache.entry(NAME) == NEW


def test_a_deletion_of_many_keys_makes_what_it_met_unknown(cache: EntryCache) -> None:
    known(cache)
    other = (b"space", b"other")
    cache.end_read(cache.begin_read(other), OLD)
    given_before = cache.begin_write(NAME)
    cache.begin_deletion()
    assert given_before.known() is UNKNOWN
    assert cache.begin_write((b"space", b"third")).known() is UNKNOWN
    reading = cache.begin_read(other)
    ran_before, deletion = cache.stamp(), cache.stamp()
    cache.deleted(deletion, [NAME])
    cache.committed(given_before, ran_before, NEW)
    assert cache.entry(NAME) is UNKNOWN
    assert cache.entry(other) == OLD
    cache.end_read(reading, NEW)
    assert cache.entry(other) == OLD


def test_a_deletion_that_is_lost_makes_all_unknown(cache: EntryCache) -> None:
    known(cache)
    cache.begin_deletion()
    cache.deletion_lost()
    assert cache.entry(NAME) is UNKNOWN
    cache.end_read(cache.begin_read(NAME), OLD)
    assert cache.entry(NAME) is UNKNOWN


def test_what_is_remembered_is_bounded_and_the_unused_goes_first() -> None:
    room = 10 * (RECORD_BYTES + 200)
    cache = EntryCache(room)
    writing = cache.begin_write(NAME)
    for number in range(1_000):
        name = (b"s", b"%d" % number)
        cache.end_read(cache.begin_read(name), Entry(bytes(100), None, None, 1))
        cache.entry((b"s", b"0"))
        assert cache.size <= room
    assert cache.entry((b"s", b"0")) is not UNKNOWN
    assert cache.entry((b"s", b"999")) is not UNKNOWN
    assert cache.entry((b"s", b"500")) is UNKNOWN
    cache.committed(writing, cache.stamp(), NEW)
    assert cache.entry(NAME) == NEW


def test_a_long_value_is_not_remembered(cache: EntryCache) -> None:
    known(cache, Entry(bytes(CACHED_VALUE_BYTES), None, None, 17))
    assert cache.entry(NAME) is not UNKNOWN
    known(cache, Entry(bytes(CACHED_VALUE_BYTES + 1), None, None, 17))
    assert cache.entry(NAME) is UNKNOWN


# -- the service -----------------------------------------------------------------------------------


class CountedDatabase:
    """Counts the programs that reach a database, and fails the next writes on demand."""

    shared = False
    heard: trio.Event | None = None
    """When the callers of writes hear of them."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.reads = self.writes = 0
        self.failures: list[tuple[bool, Exception]] = []
        """(whether the write takes effect, what its caller gets instead of its result)"""

    async def read_small(self, program: Callable[[], Program[Any]]) -> Any:
        self.reads += 1
        return await self._database.read_small(program)

    read = read_small

    async def run(self, program: Callable[[], Program[Any]]) -> Any:
        self.writes += 1
        if self.failures:
            takes_effect, error = self.failures.pop(0)
            if takes_effect:
                await self._database.run(program)
            raise error
        result = await self._database.run(program)
        if self.heard is not None:
            await self.heard.wait()
        return result

    run_small = run


@asynccontextmanager
async def counted(path: Path, clock: ManualClock) -> AsyncIterator[tuple[CountedDatabase, Caller]]:
    async with open_sqlite(path / "state.db", name="state") as opened:
        database = CountedDatabase(opened)
        rules = authorizer("open", Capability.KV_PURGE_IDENTITY, shared_keys=True)
        service = KvService(database, clock, Limits(), rules)  # type: ignore[arg-type]
        yield database, Caller(service, ALICE)


async def test_what_writes_nothing_and_is_known_needs_no_database(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (database, alice):
        await alice.PUT(key="k", value=b"1", ttl=5)
        await alice.SET_ADD(key="s", value=b"m")
        assert (await alice.GET(key="absent")).value == b""
        database.reads = database.writes = 0
        assert (await alice.GET(key="k")).value == b"1"
        assert (await alice.GET(key="absent")).value == b""
        assert (await alice.SET_CARD(key="s")).counter_value == 1
        assert not (await alice.SET_NX(key="k", value=b"2")).applied
        assert (await alice.COMPARE_AND_SET(key="k", expected_value=b"2", value=b"3")).value == b"1"
        assert not (await alice.INCREMENT_IF(key="k", guard_value=1)).applied
        await alice.DELETE(key="absent")
        clock.advance(5_000)
        assert (await alice.GET(key="k")).value == b""
        assert (database.reads, database.writes) == (0, 0)
        assert (await alice.SET_NX(key="k", value=b"2")).applied
        assert (await alice.GET(key="k")).value == b"2"
        assert (database.reads, database.writes) == (0, 1)


async def test_a_key_without_a_value_here_is_read_once(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (_, alice):
        await alice.PUT(key="k", value=b"1")
    async with counted(tmp_path, clock) as (database, alice):
        for _ in range(3):
            assert (await alice.GET(key="k")).value == b"1"
        assert database.reads == 1


@pytest.mark.parametrize("takes_effect", [True, False])
async def test_a_write_in_doubt_is_read_again(tmp_path: Path, clock: ManualClock, takes_effect: bool) -> None:
    async with counted(tmp_path, clock) as (database, alice):
        await alice.PUT(key="n", value=b"1")
        database.failures.append((takes_effect, CommitUnknown("the disk may have it")))
        assert [message.error.code for message in await alice.messages("INCREMENT", key="n")][
            1
        ] == "ERR_OUTCOME_UNKNOWN"
        value = 2 if takes_effect else 1
        assert (await alice.GET(key="n")).value == b"%d" % value
        assert (await alice.INCREMENT(key="n")).counter_value == value + 1
        assert (await alice.GET(key="n")).value == b"%d" % (value + 1)


async def test_a_failed_write_of_many_fails_each_and_reads_behind_it_are_answered(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with counted(tmp_path, clock) as (database, alice):
        await alice.PUT(key="k", value=b"old")
        await alice.PUT(key="l", value=b"old")
        database.failures.append((False, StorageUnavailable("full")))
        ops = [
            Op(op=op, scope=Op.GLOBAL, key=key, value=b"new", request_id=key)
            for op, key in ((Op.PUT, "k"), (Op.PUT, "l"), (Op.GET, "k"))
        ]
        answers = await alice.service.handle_some(GatewayActor(ALICE), ops)
        assert [[message.WhichOneof("payload") for message in answer] for answer in answers] == [["kv", "error"]] * 2
        (answer,) = await alice.service.handle_some(GatewayActor(ALICE), ops[2:])
        assert answer[0].kv.value == b"old"


async def test_a_cancelled_write_takes_effect_behind_the_back_of_nothing(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (_, alice):
        await alice.PUT(key="k", value=b"1")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def put() -> None:
                    await alice.PUT(key="k", value=b"2")

                nursery.start_soon(put)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        seen = []
        while not seen or seen[-1] != b"2":
            seen.append((await alice.GET(key="k")).value)
            await trio.lowlevel.checkpoint()
        assert (await alice.INCREMENT(key="k")).counter_value == 3
        assert (await alice.GET(key="k")).value == b"3"


async def test_operations_that_come_together_share_a_transaction_in_order(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (database, alice):
        await alice.PUT(key="k", value=b"0")
        database.writes = 0
        ops = [
            Op(op=op, scope=Op.GLOBAL, key="k", value=value, request_id=f"{number}")
            for number, (op, value) in enumerate(
                [(Op.PUT, b"1"), (Op.GET, b""), (Op.INCREMENT, b""), (Op.GET, b""), (Op.DELETE, b""), (Op.GET, b"")]
            )
        ]
        answers = await alice.service.handle_some(GatewayActor(ALICE), ops)
        assert [answer[0].kv.value for answer in answers] == [b"", b"1", b"", b"2", b"", b""]
        assert [answer[0].kv.request_id for answer in answers] == [op.request_id for op in ops]
        assert database.writes == 1


async def test_reads_do_not_wait_for_a_write_behind_them(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (database, alice):
        await alice.PUT(key="k", value=b"0")
        database.writes = 0
        ops = [Op(op=op, scope=Op.GLOBAL, key="k", value=b"1") for op in (Op.GET, Op.GET, Op.PUT)]
        assert [answer[0].kv.value for answer in await alice.service.handle_some(GatewayActor(ALICE), ops)] == [
            b"0",
            b"0",
        ]
        assert database.writes == 0


async def test_what_a_list_has_shown_is_not_older_for_a_get(tmp_path: Path, clock: ManualClock) -> None:
    """The reader may hear of a commit before the writer does."""
    async with counted(tmp_path, clock) as (database, kv):
        await kv.PUT(key="k", value=b"old")
        database.heard = trio.Event()

        async def put() -> None:
            await kv.PUT(key="k", value=b"new")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            with trio.fail_after(LONG_S):
                while (await kv.LIST()).kv_map["k"] != b"new":
                    await trio.sleep(0.001)
            assert (await kv.GET(key="k")).value == b"new"
            database.heard.set()


async def test_purged_and_swept_keys_are_forgotten(tmp_path: Path, clock: ManualClock) -> None:
    async with counted(tmp_path, clock) as (_, alice):
        own = {"scope": Op.GLOBAL_EXCLUSIVE}
        await alice.PUT(key="k", value=b"1", **own)
        await alice.PURGE_IDENTITY(target_identity=ALICE.text, **own)
        assert (await alice.GET(key="k", **own)).value == b""
        await alice.PUT(key="t", value=b"1", ttl=1)
        clock.advance(1_000)
        assert await alice.service.sweep() == 1
        clock.set_wall(clock.now_ms() - 60_000)
        assert (await alice.GET(key="t")).value == b""
        await alice.PUT(key="t", value=b"2")
        assert (await alice.GET(key="t")).value == b"2"


@pytest.mark.parametrize("seed", range(3))
async def test_many_writers_of_few_keys_lose_no_count(tmp_path: Path, clock: ManualClock, seed: int) -> None:
    """Counters are exact, and no reader sees one go back."""
    random = Random(seed)
    counted_up = dict.fromkeys("abc", 0)
    async with counted(tmp_path, clock) as (_, alice):

        async def work() -> None:
            for _ in range(40):
                key = random.choice("abc")
                kind = random.random()
                if kind < 0.4:
                    await alice.INCREMENT(key=key)
                    counted_up[key] += 1
                elif kind < 0.6:
                    before = counted_up[key]
                    ops = [Op(op=op, scope=Op.GLOBAL, key=key) for op in (Op.INCREMENT, Op.GET, Op.INCREMENT)]
                    answers: list[Any] = []
                    while len(answers) < 3:
                        answers += await alice.service.handle_some(GatewayActor(ALICE), ops[len(answers) :])
                    one, seen, other = answers
                    counted_up[key] += 2
                    assert before < one[0].kv.counter_value <= int(seen[0].kv.value) < other[0].kv.counter_value
                elif kind < 0.7:
                    await alice.PUT(key="large", value=bytes(20_000))
                elif kind < 0.75:
                    await alice.service.sweep()
                else:
                    before = counted_up[key]
                    assert int((await alice.GET(key=key)).value or b"0") >= before

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(work)
        for key, count in counted_up.items():
            assert int((await alice.GET(key=key)).value or b"0") == count


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_remembered_is_what_is_stored_after_cancelled_and_failed_writes(
    tmp_path: Path, clock: ManualClock, seed: int
) -> None:
    """Whatever becomes of writes, an answer from memory is what the database has."""
    random = Random(seed)
    async with counted(tmp_path, clock) as (database, alice):

        async def write(value: bytes) -> None:
            key = random.choice("abcd")
            op = random.choice(["PUT", "PUT", "DELETE", "SET_NX", "INCREMENT"])
            size = 20_000 if random.random() < 0.1 else 1
            await alice.messages(op, key=key, value=value * size, ttl=random.choice([0, 0, 1]))

        async def cancelled(value: bytes) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, value)
                for _ in range(random.randrange(4)):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

        async def work(number: int) -> None:
            for _ in range(15):
                kind = random.random()
                if kind < 0.2:
                    database.failures.append((random.random() < 0.5, CommitUnknown("in doubt")))
                elif kind < 0.3:
                    database.failures.append((False, StorageUnavailable("full")))
                elif kind < 0.5:
                    await cancelled(b"%d" % number)
                elif kind < 0.6:
                    clock.advance(500)
                    await alice.service.sweep()
                elif kind < 0.8:
                    await alice.messages("GET", key=random.choice("abcd"))
                else:
                    await write(b"%d" % number)

        async def read() -> None:
            for key in "abcd":
                await alice.messages("GET", key=key)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(work, number)
            for _ in range(10):
                nursery.start_soon(read)
        database.failures.clear()
        await database.run(lambda: single(Fetch("SELECT 1")))  # behind what was cancelled
        rows = await database.read(lambda: single(Fetch("SELECT key, value, expires_ms FROM kv_entries")))
        stored = {key.decode(): value for key, value, end in rows if end is None or end > clock.now_ms()}
        for key in "abcd":
            assert (await alice.GET(key=key)).value == stored.get(key, b"")
        items = await database.read(lambda: single(Fetch("SELECT items, units FROM kv_spaces")))
        units = await database.read(lambda: single(Fetch("SELECT count(*), sum(units) FROM kv_entries")))
        assert items == (units if rows else [])
