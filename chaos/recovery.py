"""Measure how soon an identity works again after a node or the database ends.

The node is killed or stopped, and the identity moves to another; the database is restarted.

Each trial is a participant that holds an identity on one node, something that happens to that node,
and another participant that from that moment tries to take the identity on another node, without
knowing the session that held it. It is back when a message that it sends to itself has come.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, Retry
from aether_trio.devtools.process_cluster import ClusterNode, ProcessCluster

WORKSPACE: Final = "recovery"
LIMIT_S: Final = 120.0
AGAIN_S: Final = 0.01


@dataclass
class Times:
    """Seconds of the trials of one kind of end."""

    what: str
    seconds: list[float] = field(default_factory=list)

    @property
    def p50_s(self) -> float:
        """The median, the lower of two."""
        return sorted(self.seconds)[(len(self.seconds) - 1) // 2]

    @property
    def max_s(self) -> float:
        return max(self.seconds)


async def measure(cluster: ProcessCluster, trials: int, say: Callable[[str], None]) -> list[Times]:
    """Measure all kinds of ends in several trials; all nodes serve around each."""
    kill = Times("identity on another node after kill -9 of its node")
    stop = Times("identity on another node after SIGSTOP of its node")
    restart = Times("identity on its node after a database restart, from its end")
    names = (f"identity-{number}" for number in count(1))
    for trial in range(trials):
        victim, other = _two(cluster, trial)
        async with _holder(victim, name := next(names)):
            since_s = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim.kill)
                await _take(other, name)
            kill.seconds.append(trio.current_time() - since_s)
        await victim.start()
    _say(say, kill)
    for trial in range(trials):
        victim, other = _two(cluster, trial)
        async with _holder(victim, name := next(names)):
            since_s = trio.current_time()
            victim.stop()
            await _take(other, name)
            stop.seconds.append(trio.current_time() - since_s)
            victim.cont()
        await _works(victim)
    _say(say, stop)
    for trial in range(trials):
        node, _ = _two(cluster, trial)
        await cluster.stop_postgres(signum=signal.SIGINT if trial % 2 else signal.SIGKILL)
        await cluster.start_postgres()
        since_s = trio.current_time()
        await _take(node, next(names))
        restart.seconds.append(trio.current_time() - since_s)
        for one in cluster.nodes:
            await _works(one)
    _say(say, restart)
    return [kill, stop, restart]


def _say(say: Callable[[str], None], times: Times) -> None:
    say(f"{times.what}: p50 {times.p50_s:.2f} s, max {times.max_s:.2f} s of {len(times.seconds)}")


def _two(cluster: ProcessCluster, trial: int) -> tuple[ClusterNode, ClusterNode]:
    nodes = cluster.nodes
    return nodes[trial % len(nodes)], nodes[(trial + 1) % len(nodes)]


def _client(node: ClusterNode, name: str) -> AgentClient:
    return AgentClient(
        f"aether://{node.address}",
        workspace=WORKSPACE,
        implementation="phoenix",
        specifier=name,
        connect_timeout_s=LIMIT_S,
        handshake_timeout_s=LIMIT_S,
        close_timeout_s=0.2,
        ping_interval_s=None,
        retry=Retry(max_attempts=0),
    )


@asynccontextmanager
async def _holder(node: ClusterNode, name: str) -> AsyncIterator[None]:
    """Hold an identity until the block ends, or its node does."""
    ready, over = trio.Event(), trio.Event()

    async def hold() -> None:
        try:
            async with _client(node, name) as client:
                await client.send(client.topic, b"held")
                ready.set()
                await over.wait()
        except* AetherError:
            pass  # its node has ended

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        with trio.fail_after(LIMIT_S):
            await ready.wait()
        yield
        over.set()
        # A stopped node does not hear a goodbye.
        nursery.cancel_scope.deadline = trio.current_time() + 1.0


async def _take(node: ClusterNode, name: str) -> None:
    """Become the holder of an identity on a node, and use it."""
    with trio.fail_after(LIMIT_S):
        while True:
            try:
                async with _client(node, name) as client:
                    text = f"{client.session_id}".encode()
                    await client.send(client.topic, text)
                    async for message in client:
                        if message.payload == text:
                            return
            except* AetherError:
                pass  # it is held, or the node has no database yet
            await trio.sleep(AGAIN_S)


async def _works(node: ClusterNode) -> None:
    """Wait until a node serves a new client."""
    await _take(node, "works")
