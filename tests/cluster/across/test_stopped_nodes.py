"""A node stopped with SIGSTOP counts as dead and goes on: clients do not notice."""

from __future__ import annotations

import pytest
import trio

from aether_trio.client import AgentClient
from aether_trio.devtools.process_cluster import ProcessCluster, open_process_cluster

pytestmark = pytest.mark.crash

LIMIT_S = 300.0


def client(address: str, implementation: str) -> AgentClient:
    return AgentClient(
        f"aether://{address}",
        workspace="lab",
        implementation=implementation,
        specifier="1",
        connect_timeout_s=LIMIT_S,
        ping_interval_s=None,
    )


async def comes_true(cluster: ProcessCluster, sql: str) -> None:
    with trio.fail_after(LIMIT_S):
        while await cluster.sql(sql) != [["t"]]:
            await trio.sleep(0.1)


async def test_tasks_reach_workers_whose_node_was_taken_for_dead() -> None:
    async with open_process_cluster(2) as cluster:
        stopped, other = cluster.nodes
        async with client(stopped.address, "mill") as worker, client(other.address, "boss") as boss:
            await comes_true(cluster, "SELECT count(*) = 2 FROM task_workers")
            stopped.stop()
            await comes_true(cluster, "SELECT count(*) = 1 FROM nodes WHERE NOT alive")
            await comes_true(cluster, "SELECT count(*) = 1 FROM task_workers")
            stopped.cont()
            await comes_true(cluster, "SELECT bool_and(alive) FROM nodes")
            await boss.tasks.create("grind", pool="mill", payload=b"pooled")
            await boss.tasks.create("grind", target=worker.topic, payload=b"targeted")
            done = []
            with trio.fail_after(LIMIT_S):
                async for job in worker.work(concurrency=1):
                    async with job:
                        done.append(job.payload)
                    if len(done) == 2:
                        break
            assert sorted(done) == [b"pooled", b"targeted"]
            assert worker.connections == 1
