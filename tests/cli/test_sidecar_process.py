"""Test that a sidecar ends before its gateway drains, or at a second signal."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
import trio.testing

from aether_trio.cli.node_supervisor import NodeSupervisor
from aether_trio.cli.running import _Stop
from aether_trio.cli.service_manager import ServiceManager
from aether_trio.cli.sidecar_process import Served, Sidecar
from aether_trio.devtools.node_process import NodeProcess, Ready

LIMIT_S = 300.0


class Node:
    """A gateway's process that writes down what it is told."""

    ready = cast("Ready", object())

    def __init__(self, story: list[str]) -> None:
        self.story = story

    def send(self, number: int) -> None:
        self.story.append(signal.Signals(number).name)

    async def drain(self) -> None:
        self.story.append("drains")


@asynccontextmanager
async def slow_sidecar(story: list[str]) -> AsyncIterator[Sidecar]:
    killed = trio.Event()

    async def main(_: Served) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                story.append("is to end")
                await killed.wait()
                story.append("has ended")

    def kill() -> None:
        story.append("is killed")
        killed.set()

    sidecar = Sidecar(main, kill)
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.run, cast("Served", object()))
            await trio.testing.wait_all_tasks_blocked()
            yield sidecar


async def two_signals(obey: Callable[[Any], Awaitable[None]], story: list[str]) -> list[str]:
    say, heard = trio.open_memory_channel[int](2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, heard)
        say.send_nowait(signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()
        after_one = story.copy()
        say.send_nowait(signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()
        say.close()
    return after_one


async def test_beside_one_gateway() -> None:
    story: list[str] = []
    async with slow_sidecar(story) as sidecar:
        with trio.CancelScope() as scope:
            stop = _Stop(scope, ServiceManager({}), quiet=True)
            stop.gateway = cast("Any", Node(story))
            stop.sidecar = sidecar
            assert await two_signals(stop.watch, story) == ["is to end"]
    assert story == ["is to end", "is killed", "has ended"]


async def test_beside_several() -> None:
    story: list[str] = []
    async with slow_sidecar(story) as sidecar:
        supervisor = NodeSupervisor([cast("NodeProcess", Node(story))])
        with trio.CancelScope() as scope:
            after_one = await two_signals(lambda heard: supervisor.obey(heard, scope, sidecar), story)
        assert after_one == ["is to end"]
    assert story == ["is to end", "is killed", "SIGTERM", "has ended", "SIGTERM"]
