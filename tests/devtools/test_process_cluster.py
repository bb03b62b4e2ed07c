"""Each fault of the process cluster does what it says, and all is gone at the end."""

from __future__ import annotations

import gc
import signal
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
import trio

from aether_trio.client import AetherError, AgentClient
from aether_trio.devtools.node_process import NodeFailed, NodeProcess
from aether_trio.devtools.process_cluster import open_process_cluster

pytestmark = pytest.mark.crash
LIMIT_S = 300.0


def agent(address: str, specifier: str = "1") -> AgentClient:
    return AgentClient(
        f"aether://{address}", workspace="lab", implementation="tester", specifier=specifier, connect_timeout_s=LIMIT_S
    )


async def echo(address: str, text: bytes, specifier: str = "1") -> None:
    """Connect an agent that sends a message to itself."""
    with trio.fail_after(LIMIT_S):
        async with agent(address, specifier) as client:
            await client.send(client.topic, text)
            async for message in client:
                if message.payload == text:
                    return


async def test_a_node_is_killed_stopped_and_drained_and_serves_again_where_it_was() -> None:
    async with open_process_cluster(1) as cluster:
        (node,) = cluster.nodes
        address = node.address
        for way in (cluster.front.address, node.link.address, address):
            await echo(way, b"before")
        await node.kill()
        assert not node.running
        assert cluster.alive == []
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2]))
        await node.start()
        assert node.address == address
        await echo(node.link.address, b"after a kill")
        node.stop()
        assert cluster.alive == []
        with trio.fail_after(LIMIT_S):
            while state_of(node.pid) != "T":
                await trio.sleep(0.01)
        node.cont()
        await echo(cluster.front.address, b"after a stop")
        pid = node.pid
        await node.restart()
        assert node.pid != pid
        await echo(cluster.front.address, b"after a restart")


async def test_nodes_start_together_and_the_front_leaves_out_who_does_not_serve_yet(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    async with open_process_cluster(2, keep=kept) as cluster:
        first, second = cluster.nodes
        assert sorted(cluster.turns.addresses) == sorted([first.address, second.address])
        await first.kill()
        assert cluster.turns.addresses == [second.address]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.start)
            while not first.running:
                await trio.sleep(0)
            second.stop()  # whatever happens to one while the other starts
            assert cluster.turns.out == {second.address}
            assert cluster.turns.addresses == [second.address]
            second.cont()
        assert not cluster.turns.out
        for node in cluster.nodes:
            await echo(node.address, b"from each")
    assert {file.name for file in kept.iterdir()} >= {"node-1.log", "node-2.log", "postgres-log"}


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
async def test_a_database_that_ends_comes_back_with_its_data_on_its_port(signum: signal.Signals) -> None:
    async with open_process_cluster(1) as cluster:
        await echo(cluster.front.address, b"before")
        await cluster.sql("CREATE TABLE kept AS SELECT 7 AS n")
        await cluster.restart_postgres(signum=signum)
        assert await cluster.sql("SELECT n FROM kept") == [["7"]]
        await cluster.nodes[0].kill()
        await cluster.nodes[0].start()
        await echo(cluster.front.address, b"after")


async def test_the_way_to_the_database_is_cut_and_single_backends_are_ended() -> None:
    async with open_process_cluster(1) as cluster:
        (node,) = cluster.nodes
        await echo(node.address, b"before")
        before = await cluster.backends()
        assert before
        assert len(node.database_link.open) >= len(before)
        node.database_link.cut_all()

        async def replaced(old: set[int]) -> bool:
            left = {backend.pid for backend in await cluster.backends()}
            return bool(left) and not left & old

        await _until(lambda: replaced({backend.pid for backend in before}), node.address)
        victims = {backend.pid for backend in await cluster.backends()}
        await cluster.end_backends(victims)
        await _until(lambda: replaced(victims), node.address)
        await echo(node.address, b"after")


async def _until(condition: Callable[[], Awaitable[bool]], address: str) -> None:
    with trio.fail_after(LIMIT_S):
        for number in count(2):
            if await condition():
                return
            with trio.move_on_after(1.0):
                # A connection that was lost is noticed when it is used. Who was cut off here may
                # still hold its name.
                await echo(address, b"something to write", str(number))


async def test_the_primary_ends_for_good_and_the_node_follows_the_standby() -> None:
    async with open_process_cluster(1, standby=True) as cluster:
        with trio.fail_after(LIMIT_S):
            async with agent(cluster.front.address) as client:
                await client.send(client.topic, b"accepted before")
                first = cluster.postgres
                await cluster.fail_over()
                assert cluster.postgres is not first
                assert not first.running
                while True:
                    try:
                        await client.send(client.topic, b"accepted after")
                    except AetherError as error:
                        if not error.retryable:
                            raise
                        await trio.sleep(0.1)
                    else:
                        break
                got = [(await client.receive()).payload for _ in range(2)]
        assert got == [b"accepted before", b"accepted after"]
        assert await cluster.sql("SELECT pg_is_in_recovery()") == [["f"]]


async def test_what_a_node_says_that_does_not_start_is_told() -> None:
    with pytest.raises(NodeFailed, match=r"unknown key no\.such\.key"):
        async with open_process_cluster(1, settings=["no.such.key=1"]):
            raise AssertionError("it has started")


async def test_a_start_that_failed_leaves_nothing_open(tmp_path: Path) -> None:
    process = NodeProcess("n", ["dev", "--set", "no.such.key=1"], tmp_path)
    for _ in range(2):
        with pytest.raises(NodeFailed):
            await process.start()
    gc.collect()  # which tells of a pipe that was forgotten


async def test_nothing_is_left_behind_even_of_a_stopped_node() -> None:
    async with open_process_cluster(1) as cluster:
        home = cluster.postgres.home.parent
        pids = [cluster.nodes[0].pid, cluster.postgres.pid]
        cluster.nodes[0].stop()
    assert not home.exists()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
