"""Random events: one start for each identity, and every message arrives.

In virtual time, on both engines, with seeds. Orchestrators come and go, say no, start nothing,
start late, or start twice; agents never connect, are cut off, say goodbye at once, read nothing, or
live.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, message_to
from tests.services.agents.ops import register, starter

IDENTITIES = [f"ag::w::echo::{number}" for number in range(5)]
STORM_S = 600
LIVE = "('pending', 'assigned', 'starting', 'running')"


@contextmanager
def until_the_stream_ends() -> Iterator[None]:
    """The end of a stream by the gateway, or its refusal, ends the block."""
    try:
        yield
    except* StreamEnded:
        pass


class Weather:
    """Runs random events; `calm` ends misbehaviour, `read` has agents' messages."""

    def __init__(self, core: Core, seed: int) -> None:
        self.core = core
        self.random = random.Random(seed)
        self.calm = trio.Event()
        self.read: dict[str, set[bytes]] = {identity: set() for identity in IDENTITIES}
        self.numbers = count(1)
        self.started = 0

    def chance(self, of: float) -> bool:
        return not self.calm.is_set() and self.random.random() < of

    async def orchestrator(self, name: str, nursery: trio.Nursery) -> None:
        while True:
            with until_the_stream_ends():
                async with connect(self.core, starter(name, "process")) as peer:
                    with trio.move_on_after(self.random.expovariate(1 / 60)) as life:
                        if self.calm.is_set():
                            life.deadline = float("inf")
                        await self.orchestrate(peer, nursery)
                    if self.chance(0.5):
                        peer.cut()
            await trio.sleep(self.random.expovariate(1 / 5))

    async def orchestrate(self, peer: MemoryLink, nursery: trio.Nursery) -> None:
        while True:
            asked = (await peer.next("task_assignment")).task_assignment
            if self.chance(0.2):
                op = pb.TaskOperation(op=pb.TaskOperation.FAIL, task_id=asked.task_id, reason="no", request_id="f")
                peer.send(pb.UpstreamMessage(task_op=op))
            elif not self.chance(0.2):
                self.started += 1
                nursery.start_soon(self.agent, asked, peer)
                if self.chance(0.1):
                    nursery.start_soon(self.agent, asked, peer)

    async def agent(self, asked: pb.TaskAssignment, orchestrator: MemoryLink) -> None:
        if self.chance(0.3):
            await trio.sleep(self.random.uniform(0, 90))
        credentials = {"token": asked.launch_params["auth_token"]}
        hello = agent(asked.workspace, asked.target_implementation, asked.specifier, credentials=credentials)
        identity = f"ag::{asked.workspace}::{asked.target_implementation}::{asked.specifier}"
        with until_the_stream_ends():
            async with connect(self.core, hello) as peer:
                reads = not self.chance(0.1)
                with trio.move_on_after(self.random.expovariate(1 / 20)) as life:
                    if self.calm.is_set():
                        life.deadline = float("inf")
                    while reads:
                        self.read[identity].add((await peer.next("msg")).msg.payload)
                    peer.pause()
                    await trio.sleep_forever()
                if self.chance(0.6):
                    peer.cut()
        if not orchestrator.ended and self.random.random() < 0.5:
            op = pb.TaskOperation(op=pb.TaskOperation.FAIL, task_id=asked.task_id, reason="ended", request_id="f")
            orchestrator.send(pb.UpstreamMessage(task_op=op))

    async def writer(self) -> None:
        async with connect(self.core, agent("w", "writer", "1")) as peer:
            while not self.calm.is_set():
                await trio.sleep(self.random.expovariate(1 / 5))
                peer.send(message_to(self.random.choice(IDENTITIES), b"%d" % next(self.numbers)))

    async def watch(self) -> None:
        """There is never more than one start of an identity that has not ended."""
        database = self.core.tasks.engine.database
        while True:
            await trio.sleep(self.random.uniform(0, 2))
            found = await database.fetch(
                f"SELECT target, count(*) FROM tasks WHERE task_type = 'agent_startup' AND (status IN {LIVE} "
                "OR status = 'failed' AND next_retry_ms > 0) GROUP BY target HAVING count(*) > 1"
            )
            assert found == []


@pytest.mark.parametrize("seed", range(4))
async def test_after_a_storm_every_message_arrives(world: World, seed: int) -> None:
    async with deadlock_is_an_error(), world.open() as core:
        async with connect(core, starter("admin")) as admin:
            await register(admin, "echo")
        weather = Weather(core, seed)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(weather.orchestrator, str(number), nursery)
            nursery.start_soon(weather.writer)
            nursery.start_soon(weather.watch)
            await trio.sleep(STORM_S)
            weather.calm.set()
            await trio.sleep(400)  # what was begun in the storm has ended, or been given up
            last = {identity: b"last of %s" % identity.encode() for identity in IDENTITIES}
            async with connect(core, agent("w", "writer", "2")) as peer:
                peer.send(*[message_to(identity, payload) for identity, payload in last.items()])
                while any(payload not in weather.read[identity] for identity, payload in last.items()):
                    await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert weather.started > 20
        sent = {b"%d" % number for number in range(1, next(weather.numbers))}
        assert sent <= set().union(*weather.read.values()), "a message was lost"
