"""The work of a group goes to tasks on all gateways, each message to one of them."""

from __future__ import annotations

from collections import Counter

import pytest

from aether_trio.queues import lease_scheduler
from aether_trio.testing.memory import MemoryLink
from tests.cluster.across.fabric import LONG_S, Fabric, until
from tests.helpers.core import agent, barrier, message_to, payloads, task
from tests.helpers.engines import PostgresEngine

TOPIC = "tb::w::resize"


def works(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


async def test_tasks_on_two_gateways_share_the_work_of_senders_on_both(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    workers: list[MemoryLink] = [await gateway.join(task("w", "resize")) for gateway in (one, one, two, two)]
    senders = [await gateway.join(agent("w", "boss", str(number))) for number, gateway in enumerate((one, two))]

    def done() -> list[bytes]:
        return [payload for worker in workers for payload in payloads(worker)]

    for start in range(0, 600, 20):
        senders[start // 20 % 2].send(*(message_to(TOPIC, work) for work in works(start, start + 20)))
        await barrier(senders[start // 20 % 2])
    await until(lambda: len(done()) >= 600)
    assert Counter(done()) == Counter(works(0, 600))
    assert all(payloads(worker) for worker in workers)


async def test_a_gateway_that_stops_leaves_nothing_undone_and_nothing_twice(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    boss, first = await two.join(agent("w", "boss", "1")), await one.join(task("w", "resize"))
    boss.send(*(message_to(TOPIC, work) for work in works(0, 100)))
    await until(lambda: len(payloads(first)) == 100)
    first.pause()
    boss.send(*(message_to(TOPIC, work) for work in works(100, 200)))
    await barrier(boss)
    had = list(payloads(first))
    first.cut()
    await fabric.stop(one)
    second = await two.join(task("w", "resize"))
    await until(lambda: len(had) + len(payloads(second)) >= 200)
    await barrier(second)
    assert Counter(had + payloads(second)) == Counter(works(0, 200))


async def test_the_work_of_a_dead_gateway_is_taken_when_a_node_finds_it_dead(
    fabric: Fabric, postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the one who finds it only, and without waiting for the next look."""
    monkeypatch.setattr(lease_scheduler, "POLL_S", 10 * LONG_S)
    schema = postgres_engine.schema
    one, two = await fabric.start_many(2)
    boss, worker = await one.join(agent("w", "boss", "1")), await two.join(task("w", "resize"))
    boss.send(*(message_to(TOPIC, work) for work in works(0, 3)))
    await until(lambda: len(payloads(worker)) == 3)
    # A gateway that no node has missed yet, and what it has not done.
    [(dead,)] = postgres_engine.rows(
        f"INSERT INTO {schema}.nodes (token, name, address, version, started_ms) "
        "VALUES ('x', 'x', '', '', 0) RETURNING node_id"
    )
    postgres_engine.outside(
        f"INSERT INTO {schema}.work_leases SELECT id, {dead}, 1, 1, ARRAY[2], ARRAY[2] FROM {schema}.topics "
        f"WHERE name = '{TOPIC}'"
    )
    await one.cluster.nodes.find_dead()
    await until(lambda: payloads(worker) == [*works(0, 3), b"1"])
