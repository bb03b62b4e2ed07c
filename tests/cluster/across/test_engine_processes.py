"""The embedded engine goes on when its node is killed, or PostgreSQL restarts."""

from __future__ import annotations

import json

import pytest
import trio

from aether_trio.client import AgentClient
from aether_trio.client.message import MessageType
from aether_trio.devtools.process_cluster import ClusterNode, ProcessCluster, open_process_cluster

pytestmark = pytest.mark.crash

LIMIT_S = 300.0
_HOLDER = (
    "SELECT n.name FROM identity_locks h JOIN nodes n ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive "
    "WHERE h.identity = 'wfe::shard0' AND h.ended_ms IS NULL"
)
_CURSOR = "SELECT coalesce(max(position), 0) FROM workflow_cursors WHERE name = 'event::receiver0'"


async def engine_of(cluster: ProcessCluster) -> ClusterNode:
    """The node whose engine holds the identity, as soon as one does."""
    with trio.fail_after(LIMIT_S):
        while True:
            rows = await cluster.sql(_HOLDER)
            for node in cluster.alive:
                if rows and rows[0][0] == node.name:
                    return node
            await trio.sleep(0.1)


async def taken(cluster: ProcessCluster, events: int) -> None:
    with trio.fail_after(LIMIT_S):
        while await cluster.sql(_CURSOR) != [[str(events)]]:
            await trio.sleep(0.1)


async def test_events_are_taken_whatever_ends() -> None:
    async with open_process_cluster(2) as cluster:
        first = await engine_of(cluster)
        [second] = [node for node in cluster.nodes if node is not first]
        agent = AgentClient(
            f"aether://{second.address}",
            workspace="lab",
            implementation="probe",
            specifier="1",
            connect_timeout_s=LIMIT_S,
            ping_interval_s=None,
        )
        async with agent:

            async def publish(count: int) -> None:
                for number in range(count):
                    payload = json.dumps({"event_names": ["e"], "data": number}).encode()
                    await agent.send("event::*", payload, type=MessageType.EVENT)

            await publish(20)
            await taken(cluster, 20)
            await publish(20)
            await first.kill()
            await publish(20)
            await taken(cluster, 60)
            assert await engine_of(cluster) is second
            await cluster.restart_postgres()
            await publish(20)
            await taken(cluster, 80)
