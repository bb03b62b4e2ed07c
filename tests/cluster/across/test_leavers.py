"""A session that ends during its write keeps its place in its workspace only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aether_trio.session.session import Session
from aether_trio.storage.session_writes import SessionWrites
from aether_trio.testing.memory import MemoryLink, StreamEnded
from tests.cluster.across.fabric import Fabric, Gateway, join, until
from tests.helpers.core import agent, barrier

ONE_EACH = {"connections_per_workspace": 1}
TWO_EACH = {"connections_per_workspace": 2}


@contextmanager
def writing(gateway: Gateway, identity: str) -> Iterator[Session]:
    """Keep a request of this session in the database until the block ends."""
    session = gateway.core.registry.holder(identity)
    assert isinstance(session, Session)
    session.pending = session.pending or SessionWrites()
    pending = session.pending
    pending.began()
    try:
        yield session
    finally:
        pending.over()


async def leave(gateway: Gateway, peer: MemoryLink, identity: str) -> None:
    peer.cut()
    await until(lambda: gateway.core.registry.holder(identity) is None)


async def test_a_full_workspace_refuses_while_a_client_leaves_another_one(fabric: Fabric) -> None:
    one = await fabric.start(limits=ONE_EACH)
    leaver = await one.join(agent("v", "z", "1"))
    await one.join(agent("w", "a", "1"))
    with writing(one, "ag::v::z::1"):
        await leave(one, leaver, "ag::v::z::1")
        with pytest.RaisesGroup(pytest.RaisesExc(StreamEnded, match="RESOURCE_EXHAUSTED")):
            async with join(one, agent("w", "b", "1")):
                pass


async def test_the_place_of_one_is_free_while_another_one_still_leaves(fabric: Fabric) -> None:
    one = await fabric.start(limits=TWO_EACH)
    stuck, gone = await one.join(agent("w", "z", "1")), await one.join(agent("w", "a", "1"))
    with writing(one, "ag::w::z::1"):
        await leave(one, stuck, "ag::w::z::1")
        await leave(one, gone, "ag::w::a::1")
        async with join(one, agent("w", "b", "1")) as b:
            await barrier(b)
