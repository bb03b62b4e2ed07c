"""Promises that local and leased work queues both keep: the suite runs with each."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.queues import open_work_queues
from aether_trio.queues.dispatcher import QueueWorker, ignore_loss
from aether_trio.queues.local_queue import CONSUMER, WINDOW
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, payloads, pump, task
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import SMALL, Bench, Reader, open_bench

TOPIC = "tb::w::resize"
CURSOR = "SELECT msg_offset FROM cursors WHERE consumer = $1"


class Queues:
    """Work queues on a log, as sessions use them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.queues = open_work_queues(bench.log, bench.nursery)
        self._joined: dict[Reader, tuple[QueueWorker, CachedTopic]] = {}

    async def join(self, *, paused: bool = False) -> Reader:
        """A worker, which reads nothing if it is paused."""
        reader = Reader(paused=paused)
        found = await self.queues.find(TOPIC)
        self._joined[reader] = self.queues.join(found, reader.outbox, ignore_loss), found[0]
        await trio.testing.wait_all_tasks_blocked()
        return reader

    def leave(self, reader: Reader) -> None:
        member, state = self._joined.pop(reader)
        member.leave()
        self.bench.log.unpin([state])
        reader.outbox.detach()

    async def publish(self, *frames: bytes) -> None:
        await self.bench.publish(TOPIC, *frames)


@pytest.fixture
async def queues(database: InlineDatabase) -> AsyncIterator[Queues]:
    async with deadlock_is_an_error(), open_bench(database) as bench:
        yield Queues(bench)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


async def test_workers_take_turns(queues: Queues) -> None:
    readers = [await queues.join() for _ in range(3)]
    await queues.publish(*numbers(0, 30))
    assert sorted(frame for reader in readers for frame in reader.frames) == sorted(numbers(0, 30))
    assert [len(reader.frames) for reader in readers] == [10, 10, 10]


async def test_work_waits_for_the_first_worker(queues: Queues) -> None:
    await queues.publish(*numbers(0, 300))
    reader = await queues.join()
    assert reader.frames == numbers(0, 300)


async def test_a_worker_that_leaves_gives_back_what_it_was_not_sent(queues: Queues) -> None:
    stuck, other = await queues.join(paused=True), await queues.join()
    await queues.publish(*numbers(0, 20))
    assert len(other.frames) == 10
    queues.leave(stuck)
    await trio.testing.wait_all_tasks_blocked()
    assert stuck.frames == []
    assert Counter(other.frames) == Counter(numbers(0, 20))


async def test_one_stuck_worker_does_not_hold_up_the_work(queues: Queues) -> None:
    stuck, other = await queues.join(paused=True), await queues.join()
    await queues.publish(*numbers(0, 1000))
    assert len(other.frames) >= 1000 - WINDOW
    stuck.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert Counter(stuck.frames + other.frames) == Counter(numbers(0, 1000))


async def test_work_done_out_of_order_is_not_done_again_when_all_leave(queues: Queues) -> None:
    stuck, other = await queues.join(paused=True), await queues.join()
    await queues.publish(*numbers(0, 20))
    queues.leave(other)
    queues.leave(stuck)
    third = await queues.join()
    assert len(third.frames) == 10
    assert Counter(other.frames + third.frames) == Counter(numbers(0, 20))


async def test_after_a_restart_nothing_is_missing(queues: Queues, database: InlineDatabase) -> None:
    _, other = await queues.join(paused=True), await queues.join()
    await queues.publish(*numbers(0, 20))
    async with open_bench(database) as bench:  # as if the first had been killed
        third = await Queues(bench).join()
    assert set(other.frames + third.frames) == set(numbers(0, 20))


async def test_an_empty_queue_is_forgotten(queues: Queues) -> None:
    reader = await queues.join()
    await queues.publish(*numbers(0, 5))
    queues.leave(reader)
    await trio.sleep(1)
    state = queues.bench.log.topics.ensure(TOPIC)
    assert state.forgettable
    statistics = queues.queues.statistics()
    assert (statistics.queues, statistics.idle, statistics.workers) == (0, 0, 0)
    await queues.publish(*numbers(5, 8))
    later = await queues.join()
    assert later.frames == numbers(5, 8)


async def test_no_task_is_left_behind_when_the_stuck_workers_of_a_queue_leave(queues: Queues) -> None:
    reader = await queues.join(paused=True)
    before = len(queues.bench.nursery.child_tasks)
    await queues.publish(*[b"x" * 100] * 200)
    if not queues.bench.database.shared:  # there one task serves all queues, and stays
        assert len(queues.bench.nursery.child_tasks) > before
    queues.leave(reader)
    await trio.testing.wait_all_tasks_blocked()
    assert len(queues.bench.nursery.child_tasks) == before


async def test_a_large_message_waits_for_an_empty_worker_without_spinning(queues: Queues) -> None:
    readers = [await queues.join(paused=True) for _ in range(2)]
    large = b"x" * SMALL.delivery_bytes
    bench = queues.bench
    await bench.log.wait_settled(bench.append(TOPIC, b"a", b"b", large, b"c"))
    await pump(50)
    before = bench.database.reads + bench.database.side.writes
    await pump(1000)
    assert bench.database.reads + bench.database.side.writes <= before + 1
    readers[1].resume()
    await trio.testing.wait_all_tasks_blocked()
    assert large in readers[1].frames
    readers[0].resume()
    assert Counter(readers[0].frames + readers[1].frames) == Counter([b"a", b"b", large, b"c"])


async def test_a_large_message_goes_to_the_worker_that_has_room(queues: Queues) -> None:
    _, free = await queues.join(paused=True), await queues.join()
    bench = queues.bench
    large = b"x" * SMALL.delivery_bytes
    for _ in range(2):  # whichever worker's turn it is
        bench.append(TOPIC, b"small", large)
    await bench.log.drain()
    await pump(200)
    assert free.frames.count(large) == 2


async def test_work_committed_while_a_page_is_read_is_not_skipped(queues: Queues, database: InlineDatabase) -> None:
    await queues.publish(*numbers(0, 5))
    await database.execute("DELETE FROM messages")
    reader = Reader()
    found = await queues.queues.find(TOPIC)
    # Where several nodes worker out work, what is read comes with the answer to a write.
    gate = database.side.after_write if database.shared else database.after_read
    gate.close()
    queues.queues.join(found, reader.outbox, ignore_loss)
    await gate.arrival()
    await queues.publish(*numbers(5, 8))
    gate.open()
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == numbers(5, 8)


async def test_the_cursor_covers_what_is_done_and_nothing_else(queues: Queues, database: InlineDatabase) -> None:
    stuck, _ = await queues.join(paused=True), await queues.join()
    await queues.publish(*numbers(0, 4))
    await trio.sleep(1)
    # The first message is with the worker that does not read.
    assert database.query(CURSOR, CONSUMER) == [(0,)]
    stuck.resume()
    await trio.sleep(1)
    assert database.query(CURSOR, CONSUMER) == [(4,)]


async def test_a_cursor_that_is_written_while_it_is_read_counts(queues: Queues, database: InlineDatabase) -> None:
    """The last worker's cursor is written while the next worker reads older rows."""
    reader = await queues.join()
    await queues.publish(*numbers(0, 3))
    await queues.publish(*numbers(3, 6))
    assert database.query(CURSOR, CONSUMER) != [(6,)]
    database.after_read.close()
    heirs: list[Reader] = []

    async def inherit() -> None:
        heirs.append(await queues.join())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inherit)
        await database.after_read.arrival()
        queues.leave(reader)
        await trio.sleep(1)
        assert database.query(CURSOR, CONSUMER) == [(6,)]
        database.after_read.open()
    await queues.publish(*numbers(6, 9))
    assert heirs[0].frames == numbers(6, 9)


async def test_a_database_that_cannot_be_read_is_tried_again(queues: Queues, database: InlineDatabase) -> None:
    await queues.publish(*numbers(0, 5))
    reader = Reader()
    found = await queues.queues.find(TOPIC)
    database.failing = True
    queues.queues.join(found, reader.outbox, ignore_loss)
    await trio.sleep(3)
    assert reader.frames == []
    database.failing = False
    await trio.sleep(3)
    assert reader.frames == numbers(0, 5)


# -- through sessions ------------------------------------------------------------------------------


async def test_each_message_reaches_one_task_and_tasks_come_and_go(core: Core) -> None:
    done: list[bytes] = []

    async def work(seed: int) -> None:
        for visit in range(5):
            await pump(seed * 7 % 11)
            async with connect(core, task("w", "resize")) as worker:
                await pump(20 + seed)
                if visit % 2:
                    worker.cut()
            done.extend(payloads(worker))

    async with connect(core, agent("w", "boss", "1")) as boss:
        async with trio.open_nursery() as nursery:
            for seed in range(6):
                nursery.start_soon(work, seed)
            for start in range(0, 600, 10):
                boss.send(*(message_to(TOPIC, number) for number in numbers(start, start + 10)))
                await pump(3)
        await barrier(boss)
        async with connect(core, task("w", "resize")) as last:
            await barrier(last)
        done.extend(payloads(last))
    assert Counter(done) == Counter(numbers(0, 600))


async def test_work_survives_a_restart(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "boss", "1")) as boss:
            boss.send(*(message_to(TOPIC, number) for number in numbers(0, 10)))
            await barrier(boss)
        async with world.open() as core, connect(core, task("w", "resize")) as worker:
            await barrier(worker)
            assert payloads(worker) == numbers(0, 10)
        async with world.open() as core, connect(core, task("w", "resize")) as worker:
            await barrier(worker)
            assert payloads(worker) == []


async def test_workers_that_leave_during_a_read_leave_no_task(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    if queues.bench.database.shared:
        pytest.skip("there one task serves all queues, and stays")
    await queues.publish(*numbers(0, 10))
    before = len(queues.bench.nursery.child_tasks)
    reading, go_on = trio.Event(), trio.Event()
    read = queues.bench.log.read

    async def slow(*args: Any, **options: Any) -> Any:
        reading.set()
        await go_on.wait()
        return await read(*args, **options)

    monkeypatch.setattr(queues.bench.log, "read", slow)
    reader = await queues.join()
    await reading.wait()
    queues.leave(reader)
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(queues.bench.nursery.child_tasks) == before
    again = await queues.join()
    assert again.frames == numbers(0, 10)
