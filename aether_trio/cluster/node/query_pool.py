"""Separate PostgreSQL connections for one part of a cluster node.

Its statements do not delay claims of identities. Each statement is a transaction that runs again
when its connection is lost, so it has to have the same effect when it is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from aether_trio.cluster.node.postgres_calls import open_connection, run_in_asyncio, run_repeatable
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.storage.postgres.connections import PLANNED_ONCE
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.pool import Pool

T = TypeVar("T")

MAX_TRIES: Final = 3


class QueryPool:
    """A few PostgreSQL connections, named "aether-<role>" in pg_stat_activity."""

    def __init__(
        self,
        server: PostgresServer,
        limits: ClusterLimits,
        role: str,
        connections: int,
        *settings: str,
        planned_once: bool = True,
    ) -> None:
        self._server = server
        self._statement_s = limits.statement_s
        by_key = [f"SET {name} = {value}" for name, value in PLANNED_ONCE.items()] if planned_once else []
        self.pool = Pool(
            partial(open_connection, server, role, *by_key, *settings),
            server.spawn,
            server.loop,
            most=connections,
            keep=1,
            idle_s=server.limits.idle_s,
            patience_s=limits.lease_grace_s,
            watch=server.watch,
        )

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Run one repeatable SQL statement; return its rows. Raises StorageUnavailable."""
        rows: list[Any] = await run_in_asyncio(self._server, self.run(lambda connection: connection.fetch(sql, *args)))
        return rows

    async def run(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run a repeatable function of a connection. An asyncio function."""
        return await run_repeatable(self.pool, self._statement_s, MAX_TRIES, work)

    async def close(self) -> None:
        """Close the PostgreSQL connections."""
        await run_in_asyncio(self._server, self.pool.close())
