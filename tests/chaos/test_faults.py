"""Faults are done to what is there; what the moment does not allow is counted as missed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from chaos.faults import Weather
from chaos.history import History
from chaos.plan import Kind, Step


class Node:
    """Notes what is done to it. It serves when it has been started."""

    def __init__(self, *, serving: bool) -> None:
        self.name = "node-1"
        self.serving = serving
        self.done: list[str] = []

    async def kill(self) -> None:
        self.done.append("kill")

    async def terminate(self) -> None:
        self.done.append("terminate")

    async def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")

    def cont(self) -> None:
        self.done.append("cont")


def weather(node: Node, said: list[str]) -> Weather:
    cluster: Any = SimpleNamespace(nodes=[node])
    return Weather(cluster, History(), trio.current_time, said.append)


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        (Kind.KILL_NODE, ["kill", "start"]),
        (Kind.STOP_NODE, ["stop", "cont"]),
        (Kind.DRAIN_NODE, ["terminate", "start"]),
    ],
)
async def test_a_node_that_has_not_come_back_from_its_last_fault_is_left_alone(kind: Kind, done: list[str]) -> None:
    step = Step(0.0, kind, "node-1", 0.01, 0.5)
    for serving in (True, False):
        node, said = Node(serving=serving), list[str]()
        with trio.fail_after(60):
            there = weather(node, said)
            await there.run([step])
        assert node.done == (done if serving else [])
        assert there.missed == (0 if serving else 1)
        assert any("not done" in line for line in said) is not serving
