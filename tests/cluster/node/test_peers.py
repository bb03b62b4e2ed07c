"""Whether there are other nodes, and that all hear of the end of one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from tests.cluster.children import open_children
from tests.cluster.nodes import LONG_S, STEADY, Node, Nodes
from tests.helpers.engines import PostgresEngine

POLLS = replace(STEADY, poll_s=0.3)


async def comes_true(what: object) -> None:
    assert callable(what)
    with trio.fail_after(LONG_S):
        while not what():
            await trio.sleep(0.01)


def deaths(node: Node) -> list[int]:
    """A list that grows when the node is told of a death."""
    told: list[int] = []
    node.cluster.peers.on_death.append(lambda: told.append(1))
    return told


async def test_a_node_has_no_peers_until_another_joins_and_after_that_has_gone(nodes: Nodes) -> None:
    one = await nodes.start(limits=POLLS)
    assert one.cluster.peers.empty
    two = await nodes.start(limits=POLLS)
    assert not two.cluster.peers.empty
    await comes_true(lambda: not one.cluster.peers.empty)
    await nodes.stop(two)
    await comes_true(lambda: one.cluster.peers.empty)


async def test_a_node_that_hears_nothing_finds_the_others_by_looking(nodes: Nodes) -> None:
    one = await nodes.start(limits=POLLS)
    one.cluster.bus.receive = lambda _payload: None  # type: ignore[method-assign]
    await nodes.start(limits=POLLS)
    await comes_true(lambda: not one.cluster.peers.empty)


@pytest.mark.crash
async def test_who_finds_a_node_dead_tells_all(nodes: Nodes, place: PostgresEngine) -> None:
    one, two, three = [await nodes.start() for _ in range(3)]
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        told = [deaths(node) for node in (one, two, three)]
        assert not await two.cluster.nodes.find_dead()
        await child.kill()
        with trio.fail_after(LONG_S):
            while not await two.cluster.nodes.find_dead():
                await trio.sleep(0.01)
        for heard in told:
            await comes_true(lambda heard=heard: bool(heard))


@pytest.mark.crash
async def test_a_sweep_that_finds_a_node_without_a_lease_looks_again_soon(nodes: Nodes, place: PostgresEngine) -> None:
    limits = replace(STEADY, sweep_s=0.2, look_again_s=0.1)
    one = await nodes.start(limits=limits)
    told = deaths(one)
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child]:
        await child.kill()
        await comes_true(lambda: bool(told))
    assert one.cluster.nodes.statistics().declared == 1
