"""Instances of services on all nodes take turns, and changes are soon known."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.cluster.locks.service_instances import ServiceInstances
from tests.cluster.children import open_children
from tests.cluster.nodes import STEADY, Nodes, until
from tests.cluster.seats import LATE, Seat, lose_notifications, seat, seats
from tests.helpers.engines import PostgresEngine


def known(one: Seat, implementation: str = "search") -> list[str]:
    """What `one` would send to, as a list without its turn."""
    own = one.registry.instances(implementation)
    return sorted({one.directory._instances.pick(implementation, own) or "" for _ in range(50)} - {""})


@given(st.integers(0, 5), st.lists(st.integers(0, 5), max_size=3), st.integers())
def test_every_instance_is_as_often_its_turn(own: int, others: list[int], seed: int) -> None:
    instances = ServiceInstances(Random(seed))
    here = [f"sv::s::own{number}" for number in range(own)]
    there = [f"sv::s::{node}-{number}" for node, count in enumerate(others) for number in range(count)]
    instances.replace(("s", identity) for identity in there)
    instances_of_all = [*here, *there]
    picked = [instances.pick("s", here) for _ in range(3 * len(instances_of_all) or 1)]
    assert picked == ([None] if not instances_of_all else picked)
    assert Counter(picked) == (Counter(instances_of_all * 3) if instances_of_all else Counter([None]))
    assert instances.pick("t", []) is None


def test_nodes_do_not_all_begin_with_the_same_instance() -> None:
    rows = [("s", f"sv::s::{number}") for number in range(10)]
    first = set()
    for seed in range(50):
        instances = ServiceInstances(Random(seed))
        instances.replace(rows)
        first.add(instances.pick("s", []))
    assert len(first) > 5


async def test_notifications_tell_of_instances_that_come_and_go(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), limits=LATE) as (a, b):
        for number in range(5):
            guest = await b.connect(f"sv::search::{number}")
            await until(lambda number=number: known(a) == [f"sv::search::{number}"])
            b.leave(guest)
            assert known(b) == [], "its own node knows at once"
            await until(lambda: known(a) == [])
        guest = await a.connect("sv::search::1")
        await until(lambda: known(b) == ["sv::search::1"])
        moved = b.connect("sv::search::1", resume=guest.session_id)
        a.registry.release(guest)  # type: ignore[arg-type]
        await moved
        await until(lambda: known(a) == known(b) == ["sv::search::1"])


async def test_a_hundred_that_come_at_once_are_a_few_looks(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), limits=LATE) as (a, b):
        looks = a.directory.statistics().service_looks
        for number in range(100):
            await b.connect(f"sv::search::{number:02}")
        await until(lambda: len({a.directory.pick_service("search") for _ in range(100)}) == 100)
        assert a.directory.statistics().service_looks - looks < 60
        # And agents are none of its business.
        looks = a.directory.statistics().service_looks
        for number in range(20):
            await b.connect(f"ag::lab::x::{number}")
        marker = await b.connect("sv::marker::1")
        await until(lambda: a.directory.pick_service("marker") == marker.identity.text)
        assert a.directory.statistics().service_looks - looks <= 2


async def test_lost_notifications_are_made_up_for_by_looking(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start()) as (a, b):
        lose_notifications(a.node)
        guest = await b.connect("sv::search::1")
        await until(lambda: known(a) == ["sv::search::1"])
        b.leave(guest)
        await until(lambda: known(a) == [])


async def test_who_misses_a_service_looks_before_the_sender_tries_again(nodes: Nodes) -> None:
    async with seats(await nodes.start(), await nodes.start(), limits=LATE) as (a, b):
        lose_notifications(a.node)
        await b.connect("sv::search::1")
        # Nothing tells it, and it would not look for minutes.
        await until(lambda: a.directory.pick_service("search") == "sv::search::1")
        assert a.directory.statistics().service_looks == 2


async def test_the_services_of_a_node_that_leaves_are_gone(nodes: Nodes) -> None:
    leaving = await nodes.start()
    async with seats(await nodes.start(), limits=LATE) as (a,):
        async with seat(leaving) as b:
            await b.connect("sv::search::1")
            await until(lambda: known(a) == ["sv::search::1"])
        await nodes.stop(leaving)
        await until(lambda: known(a) == [])


@pytest.mark.crash
async def test_services_of_a_killed_node_are_gone_when_it_is_found_dead(nodes: Nodes, place: PostgresEngine) -> None:
    a_node, b_node = await nodes.start(), await nodes.start()
    async with (
        open_children(place.server.dsn(), place.schema, STEADY) as [child],
        seats(a_node, b_node, limits=LATE) as (a, b),
    ):
        await child.claim("sv::search::1", "s1")
        place.outside("UPDATE identity_locks SET kind = 'service', implementation = 'search'")
        a.directory._services.trigger()
        b.directory._services.trigger()
        await until(lambda: known(a) == known(b) == ["sv::search::1"])
        await child.kill()
        # The claim finds the node dead; both nodes are told of it, and that the service is
        # elsewhere.
        await a.connect("sv::search::1")
        await until(lambda: a.directory._instances.of("search") == ())
        assert known(a) == ["sv::search::1"]
        b.directory._services.trigger()
        await until(lambda: b.directory._instances.of("search") == ["sv::search::1"])
        assert a.node.cluster.nodes.statistics().declared == 1
