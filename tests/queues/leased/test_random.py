"""Leased queues of several nodes under random events: stalls, deaths, losses."""

from __future__ import annotations

import random

import pytest
import trio

from aether_trio.queues.leased_queue import WINDOW
from tests.queues.leased.work_nodes import ScriptedWorker, WorkNode, WorkNodes, numbers

pytestmark = pytest.mark.usefixtures("short_polls")


class Weather:
    """Disturbs nodes and workers at random; `deaths`: nodes are killed, too."""

    def __init__(self, nodes: WorkNodes, seed: int, *, deaths: bool) -> None:
        self.nodes = nodes
        self.chance = random.Random(seed)
        self.deaths = deaths
        self.workers: list[ScriptedWorker] = []
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
            self.workers.append(await self.nodes.join(node, **options))
        elif roll < 0.7 and self.workers:
            self.workers.pop(chance.randrange(len(self.workers))).leave()
        elif roll < 0.85 and self.workers:
            worker = chance.choice(self.workers)
            worker.acknowledge(chance.randint(1, WINDOW))
            chance.choice((worker.pause, worker.resume))()
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
            self.workers = [worker for worker in self.workers if worker.node is not node]
        else:
            node = self.alive()
            nodes.end_lease(node)
            await trio.sleep(chance.random() * 0.3)
            nodes.renew_lease(node)

    def watch(self, node: WorkNode) -> None:
        node.lose_answers(lambda: self.chance.random() < 0.05)

    def leave_all(self, node: WorkNode) -> None:
        for worker in [one for one in self.workers if one.node is node]:
            self.workers.remove(worker)
            worker.leave()

    async def calm(self) -> None:
        """Have every worker go on until all messages are done."""
        self.workers.append(await self.nodes.join(self.nodes.all[0]))
        while self.nodes.leased() or len({frame for frame, _ in self.nodes.history}) < self.sent:
            for worker in self.workers:
                worker.resume()
                worker.acknowledge(WINDOW)
            await trio.sleep(0.01)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("deaths", [False, True], ids=["no node dies", "nodes die and lose their leases"])
async def test_workers_come_and_go_and_answers_and_wakes_get_lost(nodes: WorkNodes, seed: int, deaths: bool) -> None:
    """A second worker gets a message only if the first left it or lost its lease."""
    weather = Weather(nodes, seed, deaths=deaths)
    for _ in range(3 if deaths else 2):
        weather.watch(await nodes.start())
    nodes.lose_wake = lambda: weather.chance.random() < 0.2
    for _ in range(120):
        await weather.step()
    await weather.calm()
    living = {node.lease for node in nodes.all}
    had: dict[bytes, ScriptedWorker] = {}
    for frame, worker in nodes.history:
        if frame in had:
            first = had[frame]
            # One that has lost its lease may not know it yet, and send what it has in its outbox.
            ended = deaths and (first.lease not in living or worker.lease not in living)
            left = first not in weather.workers and bool(first.unacknowledged)
            assert ended or left, (frame, first.lease, worker.lease)
        had[frame] = worker
    assert set(had) == set(numbers(0, weather.sent))
