"""Several nodes dispatch the messages of one queue: each goes to one worker."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.log.message_keys import OFFSET_BITS
from aether_trio.queues import lease_scheduler
from aether_trio.queues.leased_queue import KNOWN_BYTES, WINDOW
from aether_trio.storage.schema import work_queues
from tests.queues.leased.work_nodes import TOPIC, WorkNodes, numbers, until


def test_the_schema_knows_the_keys_of_messages() -> None:
    assert work_queues.OFFSET_BITS == OFFSET_BITS


async def test_each_message_goes_to_one_worker_of_all_nodes(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    workers = [await nodes.join(node) for node in (one, one, two, two)]
    for start in range(0, 2000, 100):
        await one.publish(*numbers(start, start + 50))
        await two.publish(*numbers(start + 50, start + 100))
    await nodes.each_once(2000, done=True)
    assert all(worker.frames for worker in workers)
    assert nodes.rows("position, done_upto", "work_queues") == [(2000, 2000)]
    assert nodes.rows("consumer, msg_offset", "cursors") == [("*", 2000)]


async def test_workers_far_from_the_sender_get_their_share(nodes: WorkNodes) -> None:
    """No worker acknowledges, so the shares do not depend on which one is faster."""
    one, two = await nodes.start(), await nodes.start()
    near = [await nodes.join(one, acknowledges=True) for _ in range(2)]
    far = [await nodes.join(two, acknowledges=True) for _ in range(2)]
    await one.publish(*numbers(0, 1000))
    await nodes.wait_for(4 * WINDOW)
    await trio.sleep(0.1)
    assert [len(worker.frames) for worker in near + far] == [WINDOW] * 4
    while len(nodes.history) < 1000:
        for worker in near + far:
            worker.acknowledge(len(worker.unacknowledged))
        await until(lambda: len(nodes.history) == 1000 or all(len(w.unacknowledged) == WINDOW for w in near + far))
    await nodes.each_once(1000)
    assert min(len(worker.frames) for worker in near + far) > 100


async def test_a_node_that_has_never_heard_of_the_topic_is_woken_for_it(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await nodes.join(two)
    await one.publish(*numbers(0, 5))
    await nodes.each_once(5)


async def test_work_waits_for_the_first_worker_of_any_node(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await one.publish(*numbers(0, 700))
    worker = await nodes.join(two)
    await nodes.wait_for(700)
    assert worker.frames == numbers(0, 700)


async def test_what_a_worker_leaves_goes_to_the_others_of_its_node_first(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.stuck(one, WINDOW)
    heir, other = await nodes.join(one), await nodes.join(two)
    leaver.leave()
    await nodes.wait_for(WINDOW)
    assert heir.frames == numbers(0, WINDOW)
    assert other.frames == []


async def test_what_the_last_worker_of_a_node_leaves_goes_to_another_node_at_once(nodes: WorkNodes) -> None:
    """A notification causes it: no node polls within the time of a test."""
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.at_work(one, WINDOW)
    other = await nodes.join(two)
    for origin, offset in leaver.unacknowledged[1::2]:
        leaver.outbox.acknowledged(origin, offset)
    leaver.leave()
    await until(lambda: len(other.frames) == WINDOW // 2)
    assert other.frames == numbers(0, WINDOW)[::2]
    await until(lambda: nodes.leased() == [])
    await until(lambda: one.queues.statistics().queues == 0)


async def test_what_is_given_back_is_older_than_what_is_new_and_goes_first(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.stuck(one, 100)
    leaver.leave()
    await until(lambda: one.queues.statistics().queues == 0)
    worker = await nodes.join(two)
    await nodes.wait_for(100)
    assert worker.frames == numbers(0, 100)


async def test_a_message_that_no_worker_here_has_room_for_goes_to_another_node(
    nodes: WorkNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_scheduler, "POLL_S", 0.1)
    one, two = await nodes.start(), await nodes.start()
    small = OutboxLimits(delivery_bytes=1024)
    await nodes.join(one, paused=True, limits=small)
    await one.publish(b"small")
    await until(lambda: nodes.leased() == [1])
    await one.publish(b"x" * 5000)
    await until(lambda: nodes.leased() == [1, 2])
    other = await nodes.join(two)
    await nodes.wait_for(1)
    assert other.frames == [b"x" * 5000]


async def test_more_than_is_kept_in_memory_is_read_from_the_log(nodes: WorkNodes) -> None:
    one = await nodes.start()
    worker = await nodes.join(one, paused=True)
    frames = [b"%d" % number + b"x" * 1000 for number in range(3 * KNOWN_BYTES // 1000)]
    await one.publish(*frames)
    worker.resume()
    await nodes.wait_for(len(frames))
    assert worker.frames == frames


async def test_messages_that_retention_deleted_hold_up_no_other(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.stuck(one, 40)
    leaver.leave()
    await until(lambda: one.queues.statistics().queues == 0)
    nodes.engine.outside(f"DELETE FROM messages WHERE message_key & {2**OFFSET_BITS - 1} NOT IN (4, 38)")
    worker = await nodes.join(two)
    await nodes.wait_for(2)
    await two.publish(b"new")
    await nodes.wait_for(3)
    assert worker.frames == [b"3", b"37", b"new"]
    await until(lambda: nodes.rows("position, done_upto", "work_queues") == [(41, 41)])
    assert nodes.leased() == []


async def test_a_node_that_ends_gives_back_what_its_workers_have(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    first = await nodes.at_work(one, WINDOW)
    first.acknowledge(10)
    await nodes.stop(one)
    assert nodes.leased() == list(range(11, WINDOW + 1))
    second = await nodes.join(two)
    await until(lambda: len(second.frames) == WINDOW - 10)
    assert second.frames == numbers(10, WINDOW)


async def test_groups_of_many_topics_share_statements(nodes: WorkNodes) -> None:
    one = await nodes.start()
    topics = [f"tb::w::{number}" for number in range(100)]
    workers = []
    for topic in topics:
        worker = nodes.worker(one)
        await worker.join(topic)
        workers.append(worker)
    await until(lambda: not one.queues._scheduled)
    before = one.queues.statistics().exchanges
    last = 0
    for topic in topics:
        last = one.append(*numbers(0, 5), topic=topic)
    await one.log.wait_settled(last)
    await nodes.wait_for(500)
    assert all(worker.frames == numbers(0, 5) for worker in workers)
    assert one.queues.statistics().exchanges - before < 50


async def test_a_peek_at_an_empty_queue_writes_nothing(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await nodes.join(one)
    await one.publish(b"0")
    await nodes.wait_for(1)
    await until(lambda: nodes.leased() == [])
    before = nodes.rows("xmin::text, xmax::text", "work_queues"), nodes.rows("xmin::text", "work_leases")
    await nodes.join(two)
    await until(lambda: two.queues.statistics().exchanges > 0)
    assert (nodes.rows("xmin::text, xmax::text", "work_queues"), nodes.rows("xmin::text", "work_leases")) == before


async def test_a_gateway_that_was_alone_before_has_its_position(nodes: WorkNodes) -> None:
    """The database has a cursor of the queue, and no row of leases."""
    one = await nodes.start()
    await one.publish(*numbers(0, 10))
    state = one.log.topics.ensure(TOPIC)
    nodes.engine.outside(f"INSERT INTO cursors VALUES ({state.topic_id}, '*', 7, 0)")
    worker = await nodes.join(one)
    await nodes.wait_for(3)
    await trio.sleep(0.05)
    assert worker.frames == numbers(7, 10)


async def test_what_others_commit_is_read_by_the_node_that_takes_it_and_by_no_other(nodes: WorkNodes) -> None:
    sender, *others = [await nodes.start() for _ in range(4)]
    workers = [await nodes.join(node) for node in others]
    for start in range(0, 100, 10):
        await sender.publish(*numbers(start, start + 10))
    await nodes.wait_for(100)
    assert Counter(frame for frame, _ in nodes.history) == Counter(numbers(0, 100))
    assert [node.log.statistics().remote_messages for node in others] == [0, 0, 0]
    # A node that reads the topic for a subscriber has all of it.
    reader = await others[0].log.load([(TOPIC, None)])
    rows = await others[0].log.read(reader[0][0], 0, rows=1000, max_bytes=1 << 20)
    assert [frame for _, _, frame in rows] == numbers(0, 100)
    others[0].log.unpin([reader[0][0]])
    assert len(workers) == 3
