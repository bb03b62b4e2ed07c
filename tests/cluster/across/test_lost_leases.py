"""A node that loses its lease, or stands still for so long that others take it for dead, and then goes on.

What it did meanwhile has no effect on those who hold its identities now; and whoever is still connected to it, and was not told to
leave, is all that it was before.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from aether_trio.model.errors import Status
from tests.cluster.across.fabric import Gateway, join, open_fabric, until
from tests.cluster.across.leases import without_lease
from tests.helpers.core import agent, barrier, message_to, payloads
from tests.helpers.engines import PostgresEngine

X = "ag::w::x::1"
FIVE = [b"%d" % number for number in range(5)]


async def follow(gateway: Gateway, topic: str, upto: int) -> None:
    """Wait until this node has handed everything up to that offset to who listens there."""
    await until(lambda: gateway.core.log.topic(topic).tail >= upto)


# -- positions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aware", [True, False])
async def test_what_was_delivered_to_a_former_holder_comes_to_the_holder(
    postgres_engine: PostgresEngine, aware: bool
) -> None:
    async with open_fabric(postgres_engine) as fabric, AsyncExitStack() as stack:
        one, two = await fabric.start_many(2)
        former = await stack.enter_async_context(join(one, agent("w", "x", "1")))
        other = await stack.enter_async_context(join(one, agent("w", "other", "1")))
        sender = await stack.enter_async_context(join(two, agent("w", "s", "1")))
        async with without_lease(one, postgres_engine, aware=aware), join(two, agent("w", "x", "1")) as holder:
            holder.pause()
            sender.send(*(message_to(X, payload) for payload in FIVE), message_to("ag::w::other::1", b"kept"))
            await barrier(sender)
            await follow(one, X, 5)
            await follow(one, "ag::w::other::1", 1)
            assert payloads(former) == ([] if aware else FIVE)
            assert payloads(other) == ([] if aware else [b"kept"])
            holder.cut()
        assert (await former.wait_end()).status is Status.CANCELLED
        await until(lambda: payloads(other) == [b"kept"])
        await one.core.log.cursors.save()
        async with join(two, agent("w", "x", "1")) as holder:
            assert await holder.take(5) == FIVE
        # Who was not taken over has a position.
        assert other.ended is None
