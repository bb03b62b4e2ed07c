"""Leased queues when nodes die or lose their lease, and when responses get lost."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import trio

from aether_trio.queues import lease_scheduler
from aether_trio.queues.lease_exchange import WorkRequest, exchange, responses
from aether_trio.queues.leased_queue import WINDOW
from aether_trio.storage.base import StorageUnavailable
from tests.queues.leased.work_nodes import LONG_S, WorkNodes, numbers, until

pytestmark = pytest.mark.usefixtures("short_polls")


async def test_what_a_dead_node_had_goes_to_another_one(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    dying = await nodes.at_work(one, WINDOW)
    survivor = await nodes.join(two)
    dying.acknowledge(6)
    await until(lambda: len(nodes.leased()) == WINDOW - 6)
    await nodes.kill(one)
    await until(lambda: len(survivor.frames) == WINDOW - 6)
    assert survivor.frames == numbers(6, WINDOW)
    await until(lambda: nodes.rows("node_id", "work_leases") == [two.lease[:1]])


async def test_a_node_that_is_notified_of_a_death_does_not_wait_for_the_next_poll(
    nodes: WorkNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_scheduler, "POLL_S", 10 * LONG_S)
    one, two = await nodes.start(), await nodes.start()
    await nodes.at_work(one, WINDOW)
    survivor = await nodes.join(two)
    await until(lambda: two.queues.statistics().exchanges > 0)
    await nodes.kill(one)
    assert survivor.frames == []
    two.queues.node_left()
    await until(lambda: len(survivor.frames) == WINDOW)


async def test_a_live_node_keeps_what_it_has(nodes: WorkNodes) -> None:
    """A leased message does not expire, however long its worker takes."""
    one, two = await nodes.start(), await nodes.start()
    slow = await nodes.at_work(one, WINDOW)
    eager = await nodes.join(two)
    await trio.sleep(1.0)  # some looks
    assert eager.frames == []
    slow.acknowledge(WINDOW)
    await until(lambda: nodes.leased() == [])


async def test_a_lost_wake_costs_a_look(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    leaver = await nodes.stuck(one, 5)
    other = await nodes.join(two)
    await until(lambda: two.queues.statistics().exchanges > 0)
    nodes.lose_wake = lambda: True
    leaver.leave()
    await until(lambda: len(other.frames) == 5)
    await nodes.each_once(5)


async def test_what_was_committed_and_not_told_is_found_by_a_look(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    await nodes.join(two)
    await two.publish(b"0")
    await nodes.wait_for(1)
    nodes.lose_wake = lambda: True
    await one.publish(*numbers(1, 5))
    await nodes.each_once(5)


async def test_a_node_whose_lease_has_ended_takes_nothing(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    paused = await nodes.join(one)
    await nodes.join(two)
    nodes.end_lease(one)  # and it does not notice
    await two.publish(*numbers(0, 200))
    await nodes.wait_for(200)
    await until(lambda: one.queues.statistics().failed > 0)
    assert paused.frames == []
    await nodes.each_once(200)


async def test_a_new_lease_renounces_what_was_taken_under_the_old_one(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    returner = await nodes.at_work(one, WINDOW)
    old = list(returner.unacknowledged)
    nodes.end_lease(one)
    other = await nodes.join(two, acknowledges=True)
    await until(lambda: other.frames == numbers(0, WINDOW))
    nodes.renew_lease(one)
    await one.publish(*numbers(WINDOW, 2 * WINDOW))
    await until(lambda: returner.frames[WINDOW:] == numbers(WINDOW, 2 * WINDOW))
    # Its acknowledgements of messages leased before are too late.
    for origin, offset in old:
        returner.outbox.acknowledged(origin, offset)
    assert not any(origin.is_open for origin, _ in old)
    await trio.sleep(0.5)
    assert nodes.leased() == list(range(1, 2 * WINDOW + 1))
    assert nodes.rows("done_upto", "work_queues") == [(0,)]
    other.acknowledge(WINDOW)
    returner.acknowledge(2 * WINDOW)
    await until(lambda: nodes.leased() == [])
    assert len(nodes.history) == 3 * WINDOW


@pytest.mark.parametrize("is_done", [False, True])
async def test_only_a_worker_with_messages_of_an_old_lease_is_told_of_the_loss(nodes: WorkNodes, is_done: bool) -> None:
    one, two = await nodes.start(), await nodes.start()
    at_work = await nodes.at_work(one, 2)
    nodes.end_lease(one)
    if is_done:
        at_work.acknowledge(2)  # which is not written any more
    idle = await nodes.join(one)
    elsewhere = await nodes.join(two)
    await until(lambda: elsewhere.frames == numbers(0, 2))
    assert at_work.lost == 0
    nodes.renew_lease(one)
    await until(lambda: at_work.lost > 0)
    await nodes.join(one)
    await two.publish(*numbers(2, 9))
    await nodes.wait_for(11)
    assert at_work.lost == 1
    assert idle.lost == 0
    assert elsewhere.lost == 0


async def test_what_was_taken_before_a_stop_is_handed_out_when_the_lease_is_sure_not_before(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    goes_on = trio.Event()

    async def stop() -> None:  # the process, while the answer is in the kernel
        one.node_lease.wait = goes_on.wait

    go_on_writing = one.delay_answers(stop)
    worker = await nodes.join(one)
    await two.publish(*numbers(0, 4))
    await until(lambda: nodes.leased() == [1, 2, 3, 4])
    nodes.end_lease(one)
    other = await nodes.join(two)
    await nodes.wait_for(4)
    other.leave()
    nodes.renew_lease(one)
    go_on_writing()
    goes_on.set()
    await one.publish(*numbers(4, 40))
    await nodes.wait_for(40)
    assert worker.frames == numbers(4, 40)
    await nodes.each_once(40)


async def test_a_late_answer_shows_nothing_about_the_lease(nodes: WorkNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link stood still meanwhile, and the lease may have ended."""
    monkeypatch.setattr(lease_scheduler, "LATE_S", math.inf)
    one = await nodes.start()
    await nodes.join(one)
    await one.publish(*numbers(0, 4))
    await nodes.each_once(4, done=True)
    assert one.node_lease.asked_s == []
    monkeypatch.setattr(lease_scheduler, "LATE_S", 0.05)
    begun_s = trio.current_time()
    go_on = one.delay_answers(partial(trio.sleep, 0.1))
    await one.publish(*numbers(4, 8))
    await nodes.each_once(8, done=True)
    go_on()
    assert one.node_lease.asked_s[0] >= begun_s + 0.1


async def test_what_waits_in_an_outbox_is_not_sent_under_a_new_lease(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    stopped = await nodes.join(one, paused=True)
    await one.publish(*numbers(0, WINDOW))
    await until(lambda: stopped.outbox.delivery_bytes > 0)
    nodes.end_lease(one)
    await nodes.join(two)
    await nodes.wait_for(WINDOW)
    nodes.renew_lease(one)
    await until(lambda: stopped.outbox.delivery_bytes == 0)
    stopped.resume()
    await trio.sleep(0.1)
    await nodes.each_once(WINDOW)


async def test_the_same_worker_may_get_a_message_again_and_only_the_second_time_counts(nodes: WorkNodes) -> None:
    one = await nodes.start()
    worker = await nodes.at_work(one, 4)
    old = list(worker.unacknowledged)
    nodes.end_lease(one)
    nodes.renew_lease(one)
    await nodes.wait_for(8)
    for origin, offset in old:
        origin.delivered(offset)
        origin.acknowledged(offset)
    await trio.sleep(0.5)
    assert nodes.leased() == [1, 2, 3, 4]


async def test_an_answer_that_is_lost_is_asked_for_again(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    chance = random.Random(5)
    for node in (one, two):
        node.lose_answers(lambda: chance.random() < 0.3)
        await nodes.join(node)
        await nodes.join(node)
    for start in range(0, 600, 60):
        await one.publish(*numbers(start, start + 60))
    await nodes.each_once(600, done=True)
    assert one.queues.statistics().failed + two.queues.statistics().failed > 0


async def test_a_take_that_runs_after_it_was_given_up_is_found_out(nodes: WorkNodes) -> None:
    """It leases messages that this node does not know of, and no other node can lease."""
    one = await nodes.start()
    worker = await nodes.stuck(one, WINDOW + 5)
    one.queues._requests += 1  # a number that was used, for this one
    order = WorkRequest(one.topic_id, one.queues._requests, want=5, max_bytes=1000)
    await one.log.database.write(exchange(one.lease, 0, [order]))
    assert len(nodes.leased()) == WINDOW + 5
    worker.resume()
    await nodes.each_once(WINDOW + 5, done=True)


async def test_a_statement_that_runs_after_later_ones_does_nothing(nodes: WorkNodes) -> None:
    one = await nodes.start()
    await nodes.at_work(one, 4)
    [(request,)] = nodes.rows("request", "work_leases WHERE node_id > 0")
    for number in (request - 1, request):
        late = WorkRequest(one.topic_id, number, want=5, max_bytes=1000, done=[1], returned=[2])
        for order in (late, replace(late, all_but=True)):
            await one.log.database.write(exchange(one.lease, 0, [order]))
            assert nodes.rows("node_id, offsets", "work_leases") == [(one.lease[0], [1, 2, 3, 4])]


async def test_an_order_that_is_sent_again_is_answered_as_it_was(nodes: WorkNodes) -> None:
    one = await nodes.start()
    await one.publish(*numbers(0, 10))
    for order in (WorkRequest(one.topic_id, 1, 3, 1000), WorkRequest(one.topic_id, 2, 3, 1000, done=[1], returned=[2])):
        answers = [
            responses(await one.log.database.write(exchange(one.lease, 0, [order])))[one.topic_id] for _ in range(2)
        ]
        assert answers[0] == answers[1]
        assert len(answers[0].messages) == 3
    assert nodes.rows("offsets", "work_leases") == [([2, 3, 4, 5],)]


async def test_a_cancelled_take_is_given_back_at_the_end(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    reached = trio.Event()

    async def hold() -> None:
        if not reached.is_set():
            reached.set()
            await trio.sleep_forever()

    await one.publish(*numbers(0, WINDOW))
    one.delay_answers(hold)
    await nodes.join(one)
    await reached.wait()
    assert len(nodes.leased()) == WINDOW
    await nodes.stop(one)
    await nodes.join(two)
    await nodes.each_once(WINDOW)


async def test_done_that_could_not_be_written_is_written_later(nodes: WorkNodes) -> None:
    one = await nodes.start()
    await nodes.join(one)
    await one.publish(b"0")
    await nodes.wait_for(1)
    await until(lambda: nodes.leased() == [])
    worker = await nodes.join(one, acknowledges=True)
    write = one.queues._database.write
    failing = True

    async def refusing(statement: object) -> object:
        if failing:
            raise StorageUnavailable("not now")
        return await write(statement)  # type: ignore[arg-type]

    await one.publish(*numbers(1, 20))
    await nodes.wait_for(20)
    one.queues._database.write = refusing  # type: ignore[method-assign, assignment]
    worker.acknowledge(WINDOW)
    await until(lambda: one.queues.statistics().failed > 1)
    assert nodes.leased() != []
    failing = False
    await nodes.each_once(20, done=True)


async def test_done_while_an_answer_is_awaited_again_is_written_too(nodes: WorkNodes) -> None:
    """Nothing else happens afterwards that could take it along."""
    one = await nodes.start()
    worker = await nodes.at_work(one, 4)
    lost = iter([True, True])
    one.lose_answers(lambda: next(lost, False))
    worker.acknowledge(1)
    await until(lambda: one.queues.statistics().failed == 1)
    worker.acknowledge(3)
    await until(lambda: nodes.leased() == [])


async def test_a_worker_with_room_again_gets_what_was_given_back_for_want_of_it(nodes: WorkNodes) -> None:
    one = await nodes.start()
    workers = [await nodes.join(one, acknowledges=True) for _ in range(2)]
    await one.publish(*numbers(0, 2 * WINDOW))
    await nodes.wait_for(2 * WINDOW)
    workers[1].acknowledge(WINDOW)
    reached, go_on = trio.Event(), trio.Event()

    async def hold() -> None:
        reached.set()
        await go_on.wait()

    one.delay_answers(hold)
    await one.publish(*numbers(2 * WINDOW, 3 * WINDOW))
    await reached.wait()
    workers[1].leave()  # so what was taken for it finds no worker with room
    go_on.set()
    await until(lambda: nodes.rows("node_id", "work_leases WHERE node_id < 0 AND cardinality(offsets) > 0") != [])
    workers[0].acknowledge(WINDOW)
    await nodes.each_once(3 * WINDOW)


async def test_a_database_that_restarts_is_a_pause(nodes: WorkNodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    for node in (one, two):
        await nodes.join(node)
    for start in range(0, 300, 30):
        last = one.append(*numbers(start, start + 30))
        nodes.engine.outside(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aether-appender' "
            "AND query LIKE '%aether_work%'"
        )
        await one.log.wait_settled(last)
        await trio.sleep(0.02)
    assert one.author.reasons == []
    await nodes.each_once(300, done=True)
