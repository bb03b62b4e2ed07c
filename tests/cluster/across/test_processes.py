"""Nodes end while clients talk: the clients go on elsewhere, and lose nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest
import trio

from aether_trio.client import AgentClient
from aether_trio.devtools.process_cluster import open_process_cluster
from tests.cluster.across.fabric import until

pytestmark = pytest.mark.crash

LIMIT_S = 300.0
TALKERS = 6
MORE = 30


@dataclass(eq=False)
class Talker:
    """An agent that sends numbers to its neighbour, and records what it gets."""

    address: str
    number: int
    sent: int = 0
    got: list[bytes] = field(default_factory=list)
    client: AgentClient | None = None
    silent: bool = False

    @property
    def connections(self) -> int:
        return self.client.connections if self.client is not None else 0

    async def run(self, quiet: trio.Event, over: trio.Event) -> None:
        neighbour = f"ag::lab::talker::{(self.number + 1) % TALKERS}"
        async with (
            AgentClient(
                f"aether://{self.address}",
                workspace="lab",
                implementation="talker",
                specifier=str(self.number),
                connect_timeout_s=LIMIT_S,
            ) as client,
            trio.open_nursery() as nursery,
        ):
            self.client = client
            nursery.start_soon(self._read, client)
            for number in count():
                if quiet.is_set():
                    break
                await client.send(neighbour, b"%d" % number)
                self.sent += 1
            self.silent = True
            await over.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, client: AgentClient) -> None:
        async for message in client:
            self.got.append(message.payload)


# The gateway's own engine stays.
_LOCKS = "SELECT count(*) FROM identity_locks WHERE ended_ms IS NULL AND identity <> 'wfe::shard0'"


async def test_clients_of_a_node_that_is_drained_or_killed_go_on_elsewhere() -> None:
    quiet, over = trio.Event(), trio.Event()
    async with open_process_cluster(3) as cluster:
        talkers = [Talker(cluster.front.address, number) for number in range(TALKERS)]

        async def go_on() -> None:
            before = [(talker.sent, len(talker.got)) for talker in talkers]
            await until(
                lambda: all(
                    talker.sent >= sent + MORE and len(talker.got) >= got + MORE
                    for talker, (sent, got) in zip(talkers, before, strict=True)
                )
            )

        async with trio.open_nursery() as nursery:
            for talker in talkers:
                nursery.start_soon(talker.run, quiet, over)
            await go_on()
            connections = sum(talker.connections for talker in talkers)
            assert await cluster.nodes[0].terminate() == 0
            await go_on()
            # The balancer gave each node its share, so its clients had to move; no other did.
            moved = sum(talker.connections for talker in talkers) - connections
            assert 1 <= moved <= TALKERS - 2
            await cluster.nodes[1].kill()
            await go_on()
            assert sum(talker.connections for talker in talkers) > connections + moved
            quiet.set()
            await until(lambda: all(talker.silent for talker in talkers))
            await until(
                lambda: all(len(talkers[(talker.number + 1) % TALKERS].got) >= talker.sent for talker in talkers)
            )
            over.set()
        for talker in talkers:
            assert talkers[(talker.number + 1) % TALKERS].got == [b"%d" % number for number in range(talker.sent)]
        # Who has left is answered before its hold is written off.
        with trio.fail_after(LIMIT_S):
            while await cluster.sql(_LOCKS) != [["0"]]:
                await trio.sleep(0.05)
