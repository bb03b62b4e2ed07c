"""Whether there are other nodes, and that all hear of the end of one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import structlog.testing
import trio

from tests.cluster.children import open_children
from tests.cluster.nodes import LONG_S, STEADY, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

POLLS = replace(STEADY, poll_s=0.3)


def deaths(node: Node) -> list[int]:
    """A list that grows when the node is told of a death."""
    told: list[int] = []
    node.cluster.peers.when_dead(lambda: told.append(1))
    return told


async def test_a_node_has_no_peers_until_another_joins_and_after_that_has_gone(nodes: Nodes) -> None:
    one = await nodes.start(limits=POLLS)
    assert one.cluster.peers.empty
    two = await nodes.start(limits=POLLS)
    assert not two.cluster.peers.empty
    await until(lambda: not one.cluster.peers.empty)
    await nodes.stop(two)
    await until(lambda: one.cluster.peers.empty)


@pytest.mark.crash
async def test_who_finds_a_node_dead_tells_all(nodes: Nodes, place: PostgresEngine) -> None:
    one, two, three = [await nodes.start() for _ in range(3)]
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        told = [deaths(node) for node in (one, two, three)]
        assert not await two.cluster.nodes.find_dead()
        await child.kill()
        await until(two.cluster.nodes.find_dead)
        for heard in told:
            await until(lambda heard=heard: bool(heard))


async def test_all_hear_of_a_death_though_the_claim_that_found_it_is_cancelled(
    nodes: Nodes, place: PostgresEngine
) -> None:
    one, two = [await nodes.start(limits=replace(STEADY, sweep_s=10 * LONG_S)) for _ in range(2)]
    told = [deaths(node) for node in (one, two)]
    [(dead,)] = place.rows(
        "INSERT INTO nodes (token, name, address, version, started_ms) VALUES ('', 'pod-9', '', '', 0) RETURNING node_id"
    )
    with structlog.testing.capture_logs() as logs:
        with trio.CancelScope() as claim:
            claim.cancel()
            await two.cluster.nodes.declare_dead(dead, 1)
        assert claim.cancelled_caught
        await until(lambda: place.rows("SELECT alive FROM nodes WHERE node_id = $1", dead) == [(False,)])
        for heard in told:
            await until(lambda heard=heard: bool(heard))
        await two.cluster.nodes.cut_off(dead)
    # The number of a node is not in its name.
    assert [one["other_node"] for one in logs if one.get("node_id") == dead] == ["pod-9", "pod-9"]
    assert await two.cluster.nodes.declare_dead(dead, 1)
    assert two.cluster.nodes.statistics().declared == 1


@pytest.mark.crash
async def test_a_sweep_that_finds_a_node_without_a_lease_looks_again_soon(nodes: Nodes, place: PostgresEngine) -> None:
    limits = replace(STEADY, sweep_s=0.2, look_again_s=0.1)
    one = await nodes.start(limits=limits)
    told = deaths(one)
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        await child.kill()
        await until(lambda: bool(told))
    assert one.cluster.nodes.statistics().declared == 1
