"""Faults hit what is there; those that the moment rules out count as missed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from chaos.faults import Weather
from chaos.history import History
from chaos.plan import Kind, Step


class Node:
    """Notes what is done to it. Its end and its start take as long as the test says."""

    def __init__(self, ends: trio.Event) -> None:
        self.name = "node-1"
        self._ends = ends
        self.done: list[str] = []

    async def kill(self) -> None:
        self.done.append("kill")

    async def terminate(self) -> None:
        self.done.append("terminate")
        await self._ends.wait()

    async def start(self) -> None:
        self.done.append("start")
        await self._ends.wait()

    def stop(self) -> None:
        self.done.append("stop")

    def cont(self) -> None:
        self.done.append("cont")


def weather(node: Node, said: list[str]) -> Weather:
    cluster: Any = SimpleNamespace(nodes=[node])
    return Weather(cluster, History(), trio.current_time, said.append)


@pytest.mark.parametrize("first", [Kind.DRAIN_NODE, Kind.KILL_NODE])
@pytest.mark.parametrize("second", [Kind.DRAIN_NODE, Kind.KILL_NODE, Kind.STOP_NODE])
async def test_a_node_that_has_not_come_back_from_its_last_fault_is_left_alone(first: Kind, second: Kind) -> None:
    ends, said = trio.Event(), list[str]()
    node = Node(ends)
    there = weather(node, said)
    alone = {
        Kind.DRAIN_NODE: ["terminate", "start"],
        Kind.KILL_NODE: ["kill", "start"],
        Kind.STOP_NODE: ["stop", "cont"],
    }
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.run, [Step(0.0, first, "node-1", 0.0, 0.5)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(there.run, [Step(0.0, second, "node-1", 0.0, 0.5)])
            await trio.testing.wait_all_tasks_blocked()
            ends.set()
        assert node.done == alone[first]
        assert there.missed == 1
        assert next(line for line in said if "not done" in line).endswith("node-1 is not back yet")
        await there.run([Step(0.0, second, "node-1", 0.0, 0.5)])
        assert node.done == [*alone[first], *alone[second]]
