"""Work over several nodes, at random from a seed: nodes and workers come, stall, leave and die, answers and wakes get lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.queues import leased_queues
from aether_trio.queues.leased_queue import WINDOW
from tests.helpers.engines import PostgresEngine
from tests.queues.leased.work_nodes import Hand, WorkNode, WorkNodes, numbers, open_work_nodes


@pytest.fixture
async def nodes(postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkNodes]:
    monkeypatch.setattr(leased_queues, "LOOK_S", 0.2)
    async with open_work_nodes(postgres_engine) as opened:
        yield opened


class Weather:
    """Nodes and workers that come, stall and go at random, from a seed, while messages are sent. `deaths`: nodes are killed, too."""

    def __init__(self, nodes: WorkNodes, seed: int, *, deaths: bool) -> None:
        self.nodes = nodes
        self.chance = random.Random(seed)
        self.deaths = deaths
        self.hands: list[Hand] = []
        self.sent = 0

    def alive(self) -> WorkNode:
        return self.chance.choice(self.nodes.all)

    async def step(self) -> None:
        chance = self.chance
        roll = chance.random()
        if roll < 0.35:
            count = chance.randint(1, 60)
            await self.alive().publish(*numbers(self.sent, self.sent + count))
            self.sent += count
        elif roll < 0.55:
            node = self.alive()
            options = {"paused": chance.random() < 0.2, "acknowledges": chance.random() < 0.4}
            self.hands.append(await self.nodes.join(node, **options))
        elif roll < 0.7 and self.hands:
            self.hands.pop(chance.randrange(len(self.hands))).leave()
        elif roll < 0.85 and self.hands:
            hand = chance.choice(self.hands)
            hand.acknowledge(chance.randint(1, WINDOW))
            chance.choice((hand.pause, hand.resume))()
        elif roll < 0.9:
            await self.change_a_node()
        else:
            await trio.sleep(chance.random() * 0.02)

    async def change_a_node(self) -> None:
        nodes, chance = self.nodes, self.chance
        if len(nodes.all) < 3:
            self.watch(await nodes.start())
        elif not self.deaths or chance.random() < 0.3:
            node = self.alive()
            self.leave_all(node)
            await nodes.stop(node)
        elif chance.random() < 0.5:
            node = self.alive()
            await nodes.kill(node)
            self.hands = [hand for hand in self.hands if hand.node is not node]
        else:
            node = self.alive()
            nodes.end_lease(node)
            await trio.sleep(chance.random() * 0.3)
            nodes.renew_lease(node)

    def watch(self, node: WorkNode) -> None:
        node.lose_answers(lambda: self.chance.random() < 0.05)

    def leave_all(self, node: WorkNode) -> None:
        for hand in [one for one in self.hands if one.node is node]:
            self.hands.remove(hand)
            hand.leave()

    async def calm(self) -> None:
        """Everybody goes on, and is done with everything."""
        self.hands.append(await self.nodes.join(self.nodes.all[0]))
        while self.nodes.in_hands() or len({frame for frame, _ in self.nodes.history}) < self.sent:
            for hand in self.hands:
                hand.resume()
                hand.acknowledge(WINDOW)
            await trio.sleep(0.01)


@pytest.mark.parametrize("seed", range(6))
async def test_workers_come_and_go_and_answers_and_wakes_get_lost(nodes: WorkNodes, seed: int) -> None:
    """Nobody dies, so each message is given to one worker, or to another one if the first has left without a word of it."""
    weather = Weather(nodes, seed, deaths=False)
    for _ in range(2):
        weather.watch(await nodes.start())
    nodes.lose_wake = lambda: weather.chance.random() < 0.2
    for _ in range(120):
        await weather.step()
    await weather.calm()
    had: dict[bytes, Hand] = {}
    for frame, hand in nodes.history:
        if frame in had:
            first = had[frame]
            assert first not in weather.hands, "its worker is still there"
            assert first.unacknowledged, "its worker was done with it"
        had[frame] = hand
    assert set(had) == set(numbers(0, weather.sent))


@pytest.mark.parametrize("seed", range(6))
async def test_nodes_die_and_lose_their_leases(nodes: WorkNodes, seed: int) -> None:
    """One of two nodes that give somebody the same message has lost its lease; or the first worker has left without a word of it."""
    weather = Weather(nodes, seed, deaths=True)
    for _ in range(3):
        weather.watch(await nodes.start())
    nodes.lose_wake = lambda: weather.chance.random() < 0.2
    for _ in range(120):
        await weather.step()
    await weather.calm()
    living = {node.lease for node in nodes.all}
    had: dict[bytes, Hand] = {}
    for frame, hand in nodes.history:
        if frame in had:
            first = had[frame]
            # One that has lost its lease may not know it yet, and send what it has in its outbox.
            ended = first.lease not in living or hand.lease not in living
            left = first not in weather.hands and bool(first.unacknowledged)
            assert ended or left, (frame, first.lease, hand.lease)
        had[frame] = hand
    assert set(had) == set(numbers(0, weather.sent))
