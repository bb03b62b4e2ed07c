"""One embedded engine in a cluster, another node's when it ends; each event once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest
import trio

from aether_trio.services.workflows.engine import embedded
from aether_trio.services.workflows.events.intake import move_cursor
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.storage.base import Execute, Program
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import NEVER_S, Fabric, Gateway, Participant, join, open_fabric, until
from tests.cluster.across.leases import declare_dead, without_lease
from tests.helpers.core import agent, barrier, message_to, rest_of, workflow_engine
from tests.helpers.engines import PostgresEngine

ENGINE = "wfe::shard0"


@pytest.fixture
async def fabric(postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fabric]:
    # Notifications alone have to be enough.
    monkeypatch.setattr(embedded, "POLL_S", NEVER_S)
    monkeypatch.setattr(embedded, "RETURN_S", 0.2)
    async with open_fabric(postgres_engine, workflow={"engine": "auto"}) as opened:
        yield opened


def _create() -> Program[None]:
    yield Execute("CREATE TABLE IF NOT EXISTS effects (number BIGINT NOT NULL)", ())


def _write(events: Sequence[TakenEvent]) -> Program[None]:
    yield from move_cursor(events)
    for one in events:
        yield Execute("INSERT INTO effects (number) VALUES ($1)", (round(one.data),))


async def start(fabric: Fabric, count: int) -> list[Gateway]:
    """Gateways whose engines write an event's number, each in the order of its start."""
    for _ in range(count):
        gateway = await fabric.start()
        database = gateway.core.workflows.intake._database
        await database.run(_create)

        async def handle(events: Sequence[TakenEvent], database=database) -> None:  # type: ignore[no-untyped-def]
            await database.run(partial(_write, events))

        gateway.core.workflows.intake._handle = handle
    return fabric.gateways


def has_engine(gateway: Gateway) -> bool:
    return gateway.core.workflows.embedded.connected


async def publish(sender: Participant, *numbers: int) -> None:
    payloads = [json.dumps({"event_names": ["e"], "data": number}).encode() for number in numbers]
    sender.send(*(message_to("event::*", payload, pb.EVENT) for payload in payloads))
    await barrier(sender)


async def handled(gateway: Gateway) -> list[int]:
    """The numbers of events that have acted, as often as they have, when none is left."""
    with trio.fail_after(120):
        while (await gateway.core.workflows.intake.progress()).lag:
            await trio.sleep(0.02)
    rows = await gateway.core.workflows.intake._database.fetch("SELECT number FROM effects ORDER BY number")
    return [row[0] for row in rows]


async def test_one_node_has_the_engine_and_another_when_it_leaves(fabric: Fabric) -> None:
    one, two, three = await start(fabric, 3)
    await until(lambda: has_engine(one))
    sender = await three.join(agent("w", "a", "1"))
    await publish(sender, 1, 2)
    assert await handled(two) == [1, 2]
    assert [has_engine(node) for node in (one, two, three)] == [True, False, False]
    status = await two.core.workflows.embedded.status()
    assert (status.engine, status.node_id) == ("embedded", one.cluster.node_id)
    await fabric.stop(one)
    await until(lambda: has_engine(two) or has_engine(three))
    await publish(sender, 3)
    assert await handled(two) == [1, 2, 3]
    assert has_engine(two) is not has_engine(three)


async def test_another_node_takes_over_from_one_that_is_dead(fabric: Fabric, postgres_engine: PostgresEngine) -> None:
    one, two = await start(fabric, 2)
    await until(lambda: has_engine(one))
    sender = await two.join(agent("w", "a", "1"))
    await publish(sender, 1)
    assert await handled(two) == [1]
    async with without_lease(one, postgres_engine, aware=False):
        await declare_dead(one, by=two)
        await until(lambda: has_engine(two))
        await publish(sender, *range(2, 50))
        assert await handled(two) == list(range(1, 50))
    # The node that was taken for dead goes on, and handles nothing that it had no right to.
    await until(lambda: not has_engine(one))
    await publish(sender, 50)
    assert await handled(two) == list(range(1, 51))


async def test_an_external_engine_takes_over_from_another_node(fabric: Fabric) -> None:
    one, two = await start(fabric, 2)
    await until(lambda: has_engine(one))
    sender = await one.join(agent("w", "a", "1"))
    external: list[int] = []
    numbers = iter(range(1000))
    for _ in range(2):
        await publish(sender, *[next(numbers) for _ in range(20)])
        async with join(two, workflow_engine()) as engine:
            assert not has_engine(one)
            status = await one.core.workflows.embedded.status()
            assert (status.engine, status.node_id) == ("external", two.cluster.node_id)
            await publish(sender, *[next(numbers) for _ in range(20)])
            await handled(two)
            await barrier(engine)
            external += [json.loads(got.msg.payload)["data"] for got in engine.waiting("msg")]
            refused = Participant()
            one.nursery.start_soon(one.core.sessions.serve, refused)
            refused.send(workflow_engine())
            assert (await refused.wait_end()).status.name == "ALREADY_EXISTS"
        await until(lambda: has_engine(one) or has_engine(two))
    await publish(sender, *[next(numbers) for _ in range(20)])
    assert sorted(external + await handled(one)) == list(range(100))


async def test_events_are_taken_while_engines_come_and_go(fabric: Fabric) -> None:
    one, two = await start(fabric, 2)
    sender = await one.join(agent("w", "a", "1"))
    external: list[int] = []

    async def publish_all() -> None:
        for number in range(300):
            await publish(sender, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_all)
        for node in (one, two, two, one):
            async with join(node, workflow_engine()) as engine:
                await trio.sleep(0.3)
                await barrier(engine)
                # What it is sent after this is not its own: it is not acknowledged any more.
                session = node.core.registry.holder(ENGINE)
                assert session is not None
                session.disconnect("enough")
                ended = await rest_of(engine)
                external += [json.loads(got.msg.payload)["data"] for got in ended if got.HasField("msg")]
            await until(lambda: has_engine(one) or has_engine(two))
    assert sorted(external + await handled(one)) == list(range(300))
