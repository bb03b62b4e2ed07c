"""Take a node's lease away while the rest of the node goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from tests.cluster.across.fabric import NEVER_S, Gateway, until
from tests.helpers.engines import PostgresEngine


@asynccontextmanager
async def without_lease(gateway: Gateway, engine: PostgresEngine, *, aware: bool = True) -> AsyncIterator[None]:
    """The lease is free until the block ends.

    Then the node takes it again, and that is done when this returns.

    Not `aware`: the node believes in it all the while, as one does that has stood still.
    """
    lease: Any = gateway.cluster.lease
    gate = trio.Event()
    come_back, limits = lease._try, lease._limits

    async def late(connection: Any, **options: Any) -> Any:
        try:
            await gate.wait()
        except BaseException:  # the lease is given up meanwhile, and with it this attempt
            connection.terminate()
            raise
        return await come_back(connection, **options)

    lease._try = late
    losses = lease.statistics().losses
    if not aware:
        lease._limits = replace(limits, probe_s=NEVER_S)
        lease.suspect()  # the look that is under way is the last one
        seen_held_s = lease._seen_held_s
        await until(lambda: lease._seen_held_s > seen_held_s)
        lease._connection.remove_termination_listener(lease._terminated)
    pid = lease._connection.get_server_pid()
    engine.outside(f"SELECT pg_terminate_backend({pid}, 5000)")
    if aware:
        await until(lambda: not lease.held)
    try:
        yield
    finally:
        lease._limits = limits
        gate.set()
        lease.suspect()
    await until(lambda: lease.statistics().losses > losses and lease.held)


async def declare_dead(gateway: Gateway, by: Gateway) -> None:
    """Have one node find another one dead, which is `without_lease`."""
    lease = gateway.cluster.lease
    assert await by.cluster.nodes.declare_dead(lease.node_id, lease.epoch)
