"""Several nodes hand out the work of one group: each message goes to one worker, whichever node it is on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.log.programs import OFFSET_BITS
from aether_trio.queues import leased_queues
from aether_trio.queues.leased_queue import KNOWN_BYTES, WINDOW
from aether_trio.storage.schema import work
from tests.helpers.engines import PostgresEngine
from tests.queues.leased.work_nodes import TOPIC, WorkNodes, numbers, open_work_nodes, until


@pytest.fixture
async def nodes(postgres_engine: PostgresEngine) -> AsyncIterator[WorkNodes]:
    async with open_work_nodes(postgres_engine) as opened:
        yield opened


def each_once(nodes: WorkNodes, count: int) -> None:
    assert Counter(frame for frame, _ in nodes.history) == Counter(numbers(0, count))


def test_the_schema_knows_the_keys_of_messages() -> None:
    assert work.OFFSET_BITS == OFFSET_BITS


async def test_each_message_goes_to_one_worker_of_all_nodes(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    hands = [await nodes.join(node) for node in (one, one, two, two)]
    for start in range(0, 2000, 100):
        await one.publish(*numbers(start, start + 50))
        await two.publish(*numbers(start + 50, start + 100))
    await nodes.wait_for(2000)
    await until(lambda: nodes.in_hands() == [])
    each_once(nodes, 2000)
    assert all(hand.frames for hand in hands)
    assert nodes.rows("position, done_upto", "work_groups") == [(2000, 2000)]
    assert nodes.rows("consumer, msg_offset", "cursors") == [("*", 2000)]


async def test_workers_far_from_the_sender_get_their_share(nodes: WorkNodes) -> None:
    """Each holds on to what it has, so what comes to whom does not depend on who is faster."""
    one, two = await nodes.start(), await nodes.start()
    near = [await nodes.join(one, acknowledges=True) for _ in range(2)]
    far = [await nodes.join(two, acknowledges=True) for _ in range(2)]
    await one.publish(*numbers(0, 1000))
    await nodes.wait_for(4 * WINDOW)
    await trio.sleep(0.1)
    assert [len(hand.frames) for hand in near + far] == [WINDOW] * 4
    while len(nodes.history) < 1000:
        for hand in near + far:
            hand.acknowledge(len(hand.unacknowledged))
        await until(
            lambda: len(nodes.history) == 1000 or all(len(hand.unacknowledged) == WINDOW for hand in near + far)
        )
    each_once(nodes, 1000)
    assert min(len(hand.frames) for hand in near + far) > 100


async def test_a_worker_that_does_nothing_keeps_no_more_than_its_window(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    stuck = await nodes.join(one, paused=True)
    await nodes.join(two)
    await one.publish(*numbers(0, 300))
    await nodes.wait_for(300 - WINDOW)
    stuck.resume()
    await nodes.wait_for(300)
    each_once(nodes, 300)


async def test_work_waits_for_the_first_worker_of_any_node(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await one.publish(*numbers(0, 700))
    hand = await nodes.join(two)
    await nodes.wait_for(700)
    assert hand.frames == numbers(0, 700)


async def test_a_node_that_has_never_heard_of_the_topic_is_woken_for_it(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await nodes.join(two)
    await one.publish(*numbers(0, 5))
    await nodes.wait_for(5)
    each_once(nodes, 5)


async def test_what_a_worker_leaves_goes_to_the_others_of_its_node_first(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.join(one, paused=True)
    await one.publish(*numbers(0, WINDOW))
    await until(lambda: len(nodes.in_hands()) == WINDOW)
    heir, stranger = await nodes.join(one), await nodes.join(two)
    leaver.leave()
    await nodes.wait_for(WINDOW)
    assert heir.frames == numbers(0, WINDOW)
    assert stranger.frames == []


async def test_what_the_last_worker_of_a_node_leaves_goes_to_another_node_at_once(nodes: WorkNodes) -> None:
    """By a wake: nobody looks by himself within the time of a test."""
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.join(one, acknowledges=True)
    await one.publish(*numbers(0, WINDOW))
    await nodes.wait_for(WINDOW)
    stranger = await nodes.join(two)
    for origin, offset in leaver.unacknowledged[1::2]:
        leaver.outbox.acknowledged(origin, offset)
    leaver.leave()
    await until(lambda: len(stranger.frames) == WINDOW // 2)
    assert stranger.frames == numbers(0, WINDOW)[::2]
    await until(lambda: nodes.in_hands() == [])
    await until(lambda: one.groups.statistics().groups == 0)


async def test_what_is_given_back_is_older_than_what_is_new_and_goes_first(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.join(one, paused=True)
    await one.publish(*numbers(0, 100))
    await until(lambda: len(nodes.in_hands()) == WINDOW)
    leaver.leave()
    await until(lambda: one.groups.statistics().groups == 0)
    hand = await nodes.join(two)
    await nodes.wait_for(100)
    assert hand.frames == numbers(0, 100)


async def test_messages_too_large_for_an_outbox_that_is_not_empty_come_all_the_same(nodes: WorkNodes) -> None:
    one = await nodes.start()
    small = OutboxLimits(delivery_bytes=1024)
    hand = await nodes.join(one, paused=True, limits=small)
    large = [b"%d" % number + b"x" * 5000 for number in range(5)]
    frames = [frame for pair in zip(large, numbers(5, 10), strict=True) for frame in pair]
    await one.publish(*frames)
    await until(lambda: len(nodes.in_hands()) > 0)
    hand.resume()
    await nodes.wait_for(10)
    assert hand.frames == frames


async def test_a_message_that_no_worker_here_has_room_for_goes_to_another_node(
    nodes: WorkNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_queues, "LOOK_S", 0.1)
    one, two = await nodes.start(), await nodes.start()
    small = OutboxLimits(delivery_bytes=1024)
    await nodes.join(one, paused=True, limits=small)
    await one.publish(b"small")
    await until(lambda: nodes.in_hands() == [1])
    await one.publish(b"x" * 5000)
    await until(lambda: nodes.in_hands() == [1, 2])
    other = await nodes.join(two)
    await nodes.wait_for(1)
    assert other.frames == [b"x" * 5000]


async def test_more_than_is_kept_in_memory_is_read_from_the_log(nodes: WorkNodes) -> None:
    one = await nodes.start()
    hand = await nodes.join(one, paused=True)
    frames = [b"%d" % number + b"x" * 1000 for number in range(3 * KNOWN_BYTES // 1000)]
    await one.publish(*frames)
    hand.resume()
    await nodes.wait_for(len(frames))
    assert hand.frames == frames


async def test_what_retention_has_taken_holds_up_nobody(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.join(one, paused=True)
    await one.publish(*numbers(0, 40))
    await until(lambda: len(nodes.in_hands()) == WINDOW)
    leaver.leave()
    await until(lambda: one.groups.statistics().groups == 0)
    nodes.engine.outside(f"DELETE FROM messages WHERE message_key & {2**OFFSET_BITS - 1} NOT IN (4, 38)")
    hand = await nodes.join(two)
    await nodes.wait_for(2)
    await two.publish(b"new")
    await nodes.wait_for(3)
    assert hand.frames == [b"3", b"37", b"new"]
    await until(lambda: nodes.rows("position, done_upto", "work_groups") == [(41, 41)])
    assert nodes.in_hands() == []


async def test_a_node_that_ends_gives_back_what_its_workers_have(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    first = await nodes.join(one, acknowledges=True)
    await one.publish(*numbers(0, WINDOW))
    await nodes.wait_for(WINDOW)
    first.acknowledge(10)
    await nodes.stop(one)
    assert nodes.in_hands() == list(range(11, WINDOW + 1))
    second = await nodes.join(two)
    await until(lambda: len(second.frames) == WINDOW - 10)
    assert second.frames == numbers(10, WINDOW)


async def test_groups_of_many_topics_share_statements(nodes: WorkNodes) -> None:
    one = await nodes.start()
    topics = [f"tb::w::{number}" for number in range(100)]
    hands = []
    for topic in topics:
        hand = nodes.hand(one)
        await hand.join(topic)
        hands.append(hand)
    await until(lambda: not one.groups._urgent)
    before = one.groups.statistics().exchanges
    last = 0
    for topic in topics:
        last = one.append(*numbers(0, 5), topic=topic)
    await one.log.wait_settled(last)
    await nodes.wait_for(500)
    assert all(hand.frames == numbers(0, 5) for hand in hands)
    assert one.groups.statistics().exchanges - before < 50


async def test_a_look_in_vain_writes_nothing(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await nodes.join(one)
    await one.publish(b"0")
    await nodes.wait_for(1)
    await until(lambda: nodes.in_hands() == [])
    before = nodes.rows("xmin::text, xmax::text", "work_groups"), nodes.rows("xmin::text", "work_hands")
    await nodes.join(two)
    await until(lambda: two.groups.statistics().exchanges > 0)
    assert (nodes.rows("xmin::text, xmax::text", "work_groups"), nodes.rows("xmin::text", "work_hands")) == before


async def test_a_gateway_that_was_alone_before_has_its_position(nodes: WorkNodes) -> None:
    """A database from before there were several nodes: it has a cursor of the group, and nothing else."""
    one = await nodes.start()
    await one.publish(*numbers(0, 10))
    state = one.log.topic(TOPIC)
    nodes.engine.outside(f"INSERT INTO cursors VALUES ({state.topic_id}, '*', 7, 0)")
    hand = await nodes.join(one)
    await nodes.wait_for(3)
    await trio.sleep(0.05)
    assert hand.frames == numbers(7, 10)


async def test_what_others_commit_is_read_by_the_node_that_takes_it_and_by_no_other(nodes: WorkNodes) -> None:
    sender, *others = [await nodes.start() for _ in range(4)]
    hands = [await nodes.join(node) for node in others]
    for start in range(0, 100, 10):
        await sender.publish(*numbers(start, start + 10))
    await nodes.wait_for(100)
    assert Counter(frame for frame, _ in nodes.history) == Counter(numbers(0, 100))
    assert [node.log.statistics().followed_rows for node in others] == [0, 0, 0]
    # Whoever reads the topic besides has all of it.
    reader = await others[0].log.warm([(TOPIC, None)])
    rows = await others[0].log.read(reader[0][0], 0, rows=1000, max_bytes=1 << 20)
    assert [frame for _, _, frame in rows] == numbers(0, 100)
    others[0].log.unpin([reader[0][0]])
    assert len(hands) == 3
