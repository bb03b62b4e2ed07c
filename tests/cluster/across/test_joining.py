"""Nodes that join: a single node notifies none, and learns soon of another."""

from __future__ import annotations

from typing import Any

import trio

from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, join, until
from tests.helpers.core import agent, message_to, payloads


async def talk(one: Gateway, two: Gateway) -> None:
    """A message and a report of progress get from one to the other."""
    async with join(one, agent("w", "a", "1")) as a, join(two, agent("w", "b", "1")) as b:
        report = pb.ProgressReport(task_id="t", state="running")
        a.send(message_to("ag::w::b::1", b"hello"), pb.UpstreamMessage(progress=report))
        await until(lambda: payloads(b) == [b"hello"] and len(b.waiting("progress_update")) == 1)


async def test_a_node_that_joins_while_another_looks_whether_it_is_alone(fabric: Fabric) -> None:
    """The answer is older than the hint that overtakes it."""
    one = await fabric.start()
    gate = trio.Event()
    looking = False
    nodes: Any = one.cluster.nodes
    fetch = nodes.fetch

    async def late(sql: str, *args: Any) -> Any:
        nonlocal looking
        rows = await fetch(sql, *args)
        if "FROM nodes WHERE alive AND node_id <> $1)" in sql:
            looking = True
            await gate.wait()
        return rows

    nodes.fetch = late
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.cluster.peers.look)
        await until(lambda: looking)
        two = await fabric.start()
        gate.set()
    await talk(one, two)
    await talk(two, one)


async def test_nodes_that_begin_together_know_of_each_other(fabric: Fabric) -> None:
    gateways = await fabric.start_many(3)
    for one in gateways:
        for two in gateways:
            if one is not two:
                await talk(one, two)


async def test_the_last_one_that_is_left_goes_on(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    a = await one.join(agent("w", "a", "1"))
    await fabric.stop(two)
    a.send(message_to("ga::w", b"still"), message_to("ag::w::gone::1", b"later"))
    assert await a.take(1) == [b"still"]
    three = await fabric.start()
    back = await three.join(agent("w", "gone", "1"))
    assert await back.take(1) == [b"later"]
