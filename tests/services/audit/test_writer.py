"""Batches of audit rows: on time, bounded, once, and with every loss in the log."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.model.audit import RECORD_BYTES, EventType
from aether_trio.services.audit.trees import AUDIT_LOG, append, begin_tree
from aether_trio.services.audit.writer import BATCH_ROWS, BATCH_S, MAX_BATCH_ROWS, AuditPolicy, AuditWriter
from tests.helpers.clocks import VirtualClock
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase
from tests.services.audit.conftest import event

ROWS = "SELECT operation, resource_id, metadata FROM audit_log ORDER BY audit_id"


class Place:
    """A database that outlives the writers on it."""

    def __init__(self, store: Store) -> None:
        self.place = store.place()
        self.database = InlineDatabase(self.place.direct("tasks"))

    @property
    def queue(self) -> InlineDatabase:
        """Where batches are written."""
        return self.database.separate_queue(locking=True)

    @asynccontextmanager
    async def writer(self, **options: Any) -> AsyncIterator[AuditWriter]:
        self.database.renew()
        clock = VirtualClock(trio.current_time)
        tree = await self.database.run(lambda: begin_tree("n", "audit/n", b"key", 1))
        policy = options.pop("policy", AuditPolicy())
        first_batch = options.pop("first_batch", 1000)
        writer = AuditWriter(self.database, clock, tree, policy, first_batch=first_batch, **options)
        await writer.prepare()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield writer
            nursery.cancel_scope.cancel()

    async def rows(self) -> list[tuple[str, str]]:
        return [(operation, name) for operation, name, _ in await self.database.fetch(ROWS)]


@pytest.fixture
def place(store: Store) -> Iterator[Place]:
    made = Place(store)
    yield made
    made.place.close()


def names(count: int, first: int = 0) -> list[tuple[str, str]]:
    return [("kv_put", f"key-{number}") for number in range(first, first + count)]


async def test_a_lone_row_is_written_within_a_second(place: Place) -> None:
    async with place.writer() as writer:
        writer.put(event(0))
        await trio.sleep(BATCH_S / 2)
        assert (await place.rows(), writer.waiting) == ([], 1)
        await trio.sleep(BATCH_S)
        assert (await place.rows(), writer.waiting) == (names(1), 0)


async def test_a_full_batch_is_written_at_once_and_in_order(place: Place) -> None:
    async with place.writer() as writer:
        started = trio.current_time()
        for number in range(BATCH_ROWS):
            writer.put(event(number))
        while writer.waiting:
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == started
        assert await place.rows() == names(BATCH_ROWS)
        assert place.queue.writes < 10


async def test_flush_waits_for_what_was_put_before_it(place: Place) -> None:
    async with place.writer() as writer:
        started = trio.current_time()
        for number in range(3):
            writer.put(event(number))
        await writer.flush()
        assert await place.rows() == names(3)
        await writer.flush()
        assert trio.current_time() - started < BATCH_S
        place.queue.failing = True
        writer.put(event(3))
        assert not await writer.flush_within(2)


async def test_only_enabled_types_are_written(place: Place) -> None:
    async with place.writer(policy=AuditPolicy(frozenset({EventType.TASK}))) as writer:
        assert (writer.writes(EventType.TASK), writer.writes(EventType.KV)) == (True, False)
        writer.put(event(0))
        writer.put(event(1, event_type=EventType.TASK, operation="task_create"))
        await writer.flush()
        assert await place.rows() == [("task_create", "key-1")]


async def test_rows_wait_while_the_database_fails_and_logins_can_be_refused(place: Place) -> None:
    async with place.writer() as writer:
        place.queue.failing = True
        writer.put(event(0))
        await trio.sleep(3)
        assert writer.failing
        for number in range(1, 250):
            writer.put(event(number))
        await trio.sleep(3)
        place.queue.failing = False
        await writer.flush()
        assert not writer.failing
        assert await place.rows() == names(250)
        assert writer.lost == 0


async def test_what_does_not_fit_is_one_row_with_its_count_in_its_place(place: Place) -> None:
    async with place.writer(queue_bytes=5 * (RECORD_BYTES + 200)) as writer:
        place.queue.failing = True
        for number in range(20):
            writer.put(event(number, at_ms=number))
        await trio.sleep(2)
        kept = writer.waiting
        assert 0 < kept < 20
        assert writer.lost == 20 - kept
        place.queue.failing = False
        await trio.sleep(2)
        writer.put(event(100))
        await writer.flush()
        rows = await place.database.fetch(ROWS)
        assert [row[:2] for row in rows[:kept]] == names(kept)
        gap = next(row for row in rows if row[0] == "audit_gap")
        assert json.loads(gap[2]) == {"count": 20 - kept, "from_ms": kept, "to_ms": 19}
        assert rows[-1][:2] == ("kv_put", "key-100")
        assert len(rows) == kept + 2


@pytest.mark.parametrize("fault", ["denied_writes", "unanswered_writes"])
async def test_a_batch_whose_commit_was_not_confirmed_is_written_once(place: Place, fault: str) -> None:
    async with place.writer() as writer:
        setattr(place.queue, fault, 1)
        for number in range(3):
            writer.put(event(number))
        await writer.flush()
        assert await place.rows() == names(3)
        writer.put(event(3))
        await writer.flush()
        assert await place.rows() == names(4)


async def test_a_restart_does_not_take_a_batch_for_an_old_one(place: Place) -> None:
    for life in range(3):
        async with place.writer(first_batch=1000 + life) as writer:
            writer.put(event(life))
            await writer.flush()
    assert await place.rows() == names(3)


async def test_rows_of_changes_come_between_batches(place: Place) -> None:
    async with place.writer() as writer:
        writer.put(event(0))
        await writer.flush()
        await place.database.run(lambda: append(writer.tree.origin, [event(1)], 7))
        writer.put(event(2))
        await writer.flush()
    assert await place.rows() == names(3)


async def test_a_lost_tree_loses_rows_counts_them_and_refuses(place: Place) -> None:
    async with place.writer() as writer:
        await place.database.execute("UPDATE audit_trees SET origin = 'hidden'")
        for number in range(3):
            writer.put(event(number))
        await trio.sleep(5)
        assert writer.failing
        assert writer.lost == 3
        await place.database.execute("UPDATE audit_trees SET origin = 'audit/n'")
        await trio.sleep(5)
        assert not writer.failing
        [(operation, _, metadata)] = await place.database.fetch(ROWS)
        assert operation == "audit_gap"
        assert json.loads(metadata)["count"] == 3


@pytest.mark.parametrize("seed", range(5))
async def test_every_event_is_a_row_or_counted(place: Place, seed: int) -> None:
    """The database fails, or does not confirm a commit, and the queue is small."""
    chance = random.Random(seed)
    put = 0
    async with place.writer(queue_bytes=30 * (RECORD_BYTES + 200)) as writer:
        for _ in range(60):
            match chance.randrange(6):
                case 0:
                    place.queue.failing = True
                case 1:
                    place.queue.failing = False
                case 2:
                    place.queue.denied_writes = 1
                case 3:
                    place.queue.unanswered_writes = 1
                case _:
                    pass
            for _ in range(chance.randrange(30)):
                writer.put(event(put))
                put += 1
            await trio.sleep(chance.random())
        place.queue.renew()
        place.queue.failing = False
        await trio.sleep(30)
        assert writer.waiting == 0
    rows = await place.database.fetch(ROWS)
    numbers = [int(name.removeprefix("key-")) for operation, name, _ in rows if operation == "kv_put"]
    lost = sum(json.loads(metadata)["count"] for operation, _, metadata in rows if operation == "audit_gap")
    assert numbers == sorted(set(numbers))
    assert len(numbers) + lost == put


async def test_a_long_backlog_goes_in_large_batches(place: Place) -> None:
    async with place.writer() as writer:
        place.queue.failing = True
        for number in range(2 * MAX_BATCH_ROWS):
            writer.put(event(number))
        await trio.sleep(2)
        place.queue.failing = False
        before = place.queue.writes
        await writer.flush()
        assert place.queue.writes - before < 10
        assert len(await place.rows()) == 2 * MAX_BATCH_ROWS


async def test_partitions_are_made_before_they_are_needed(place: Place) -> None:
    if not place.database.shared:
        pytest.skip("SQLite has no partitions")
    async with place.writer(partition_ms=60_000) as writer:
        started = trio.current_time()
        for minute in range(5):
            parts = await place.database.read(AUDIT_LOG.partitions)
            now_ms = 1_700_000_000_000 + int(1000 * (trio.current_time() - started))
            assert any(one.lower_ms <= now_ms < one.upper_ms for one in parts)
            writer.put(event(minute))
            await writer.flush()
            await trio.sleep(60)
    assert len(await place.rows()) == 5
