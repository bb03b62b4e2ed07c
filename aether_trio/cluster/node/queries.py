"""Statements of the cluster on connections of their own, so that what may wait does not wait in front of a claim.

Each statement is a transaction of its own, and runs again on another connection when its own is lost: it may be done twice, and has
to be written so that this makes no difference.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.node.aio import call, open_connection, run_again
from aether_trio.storage.postgres.connections import PLANNED_ONCE
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.pool import Pool

MAX_TRIES: Final = 3


class Queries:
    """At most `connections` connections, which pg_stat_activity shows as "aether-<role>". Statements are in line for them."""

    def __init__(
        self, server: PostgresServer, limits: ClusterLimits, role: str, connections: int, *settings: str
    ) -> None:
        self._server = server
        self._statement_s = limits.statement_s
        by_key = [f"SET {name} = {value}" for name, value in PLANNED_ONCE.items()]
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
        """The rows of one statement. Raises StorageUnavailable."""
        work = run_again(self.pool, self._statement_s, MAX_TRIES, lambda connection: connection.fetch(sql, *args))
        rows: list[Any] = await call(self._server, work)
        return rows

    async def close(self) -> None:
        """Close the connections."""
        await call(self._server, self.pool.close())
