"""Notifications are sent together, received, and made up for when lost."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.cluster.node.bus import ALL, MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Bus, BusStatistics, _payloads
from tests.cluster.nodes import LONG_S, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

X = "ag::lab::x::1"


class Ear:
    def __init__(self, node: Node, topic: str) -> None:
        self.heard: list[tuple[int, str]] = []
        node.cluster.bus.handle(topic, self)

    def __call__(self, sender: int, body: str) -> None:
        self.heard.append((sender, body))

    async def hears(self, sender: int, body: str) -> None:
        await until(lambda: (sender, body) in self.heard)


async def test_a_hint_reaches_its_node_and_a_broadcast_every_other(nodes: Nodes) -> None:
    a, b, c = [await nodes.start() for _ in range(3)]
    ears = [Ear(node, "t") for node in (a, b, c)]
    a.cluster.bus.send(b.cluster.node_id, "t", 'für dich "\\')
    await ears[1].hears(a.cluster.node_id, 'für dich "\\')
    a.cluster.bus.broadcast("t", "for all")
    await ears[1].hears(a.cluster.node_id, "for all")
    await ears[2].hears(a.cluster.node_id, "for all")
    assert ears[0].heard == []
    assert len(ears[1].heard) == 2
    assert len(ears[2].heard) == 1


async def test_notifications_that_wait_for_each_other_go_out_together_and_once(nodes: Nodes) -> None:
    a, b, c = [await nodes.start() for _ in range(3)]
    ear, other = Ear(b, "t"), Ear(c, "t")
    before = a.cluster.bus.statistics()
    while before.statements == 0:  # that it has joined
        await trio.sleep(0.01)
        before = a.cluster.bus.statistics()
    for _ in range(3):
        for number in range(1000):
            a.cluster.bus.send(b.cluster.node_id, "t", f"topic-{number}")
            a.cluster.bus.send(c.cluster.node_id, "t", f"topic-{number}")
    await ear.hears(a.cluster.node_id, "topic-999")
    await other.hears(a.cluster.node_id, "topic-999")
    assert sorted(ear.heard) == sorted((a.cluster.node_id, f"topic-{number}") for number in range(1000))
    # The statement is counted when its answer is there, which may be after the notifications.
    await until(lambda: a.cluster.bus.statistics().statements > before.statements)
    statistics = a.cluster.bus.statistics()
    # One for these 6,000 notifications; the node may have notified nodes that have just joined.
    assert 1 <= statistics.statements - before.statements <= 3
    assert statistics.notifies <= before.notifies + 10, "two nodes, about 14 KB for each"
    assert statistics.dropped == 0


async def test_what_is_too_long_or_too_much_becomes_all(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await nodes.start(), await nodes.start()
    ear, flooded = Ear(b, "long"), Ear(b, "flood")
    a.cluster.bus.send(b.cluster.node_id, "long", "x" * MAX_BODY_BYTES)
    await ear.hears(a.cluster.node_id, ALL)
    monkeypatch.setattr("aether_trio.cluster.node.bus.MAX_PENDING", 10)
    for number in range(1000):
        a.cluster.bus.send(b.cluster.node_id, "flood", str(number))
    await flooded.hears(a.cluster.node_id, ALL)
    assert len(flooded.heard) == 1


@given(st.lists(st.tuples(st.sampled_from(["t", "topic"]), st.text(max_size=MAX_BODY_BYTES // 6))))
def test_payloads_fit_and_say_what_was_to_be_said(notifications: list[tuple[str, str]]) -> None:
    class Lease:
        node_id = 2

    heard: list[tuple[str, str]] = []
    bus = Bus.__new__(Bus)
    bus._lease = Lease()  # type: ignore[assignment]
    bus._counts = BusStatistics()
    bus._handlers = {topic: [lambda _, body, topic=topic: heard.append((topic, body))] for topic in ("t", "topic")}
    for payload in _payloads(1, notifications):
        assert len(payload.encode()) <= MAX_PAYLOAD_BYTES + 100
        bus.receive(payload)
    assert heard == notifications


async def test_a_killed_listener_listens_again_and_all_handlers_look(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    ear = Ear(b, "t")
    place.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'aether-listen'")
    await ear.hears(0, ALL)
    a.cluster.bus.send(b.cluster.node_id, "t", "later")
    with trio.fail_after(LONG_S):
        while (a.cluster.node_id, "later") not in ear.heard:
            # What is sent before b listens again is lost: that is what ALL is for.
            a.cluster.bus.send(b.cluster.node_id, "t", "later")
            await trio.sleep(0.05)
    assert b.cluster.bus.statistics().reconnects == 1


async def test_a_foreign_program_on_the_channel_does_no_harm(nodes: Nodes, place: PostgresEngine) -> None:
    a, b = await nodes.start(), await nodes.start()
    ear = Ear(b, "t")
    for payload in ("", "hello", "[]", "[1]", '["a"]', '[1,"t"]', '{"a":1}', "[1,2,3]", '["x",[]]', '[1,[["t"]]]'):
        place.rows("SELECT pg_notify($1, $2)", f"{place.schema}_all", payload)
    a.cluster.bus.broadcast("t", "still here")
    await ear.hears(a.cluster.node_id, "still here")
    assert ear.heard == [(a.cluster.node_id, "still here")]


@pytest.mark.parametrize("share", [0.5, 1.0])
async def test_lost_wakes_cost_time_and_nothing_else(nodes: Nodes, share: float) -> None:
    """Handovers go on though half or all of the notifications never arrive."""
    lots = random.Random(1)
    started = [await nodes.start(), await nodes.start()]
    lost = 0

    def deaf(bus: Bus) -> None:
        hear = bus.receive

        def receive(payload: str) -> None:
            nonlocal lost
            if lots.random() < share:
                lost += 1
            else:
                hear(payload)

        bus.receive = receive  # type: ignore[method-assign]

    for node in started:
        deaf(node.cluster.bus)
    claimed = await started[0].claim(X)
    for number in range(1, 7):
        claimed = await started[number % 2].claim(X, resume=claimed.lock.session_id)
        assert claimed.lock.epoch == number + 1
        assert claimed.history is not None
    assert lost > 0
    assert [node.host.told for node in started] == [[], []], "no node was declared dead"
