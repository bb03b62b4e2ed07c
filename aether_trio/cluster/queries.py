"""Statements of the cluster on connections of their own, so that what may wait does not wait in front of a claim.

Each statement is a transaction of its own, and runs again on another connection when its own is lost: it may be done twice, and has
to be written so that this makes no difference.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from aether_trio.cluster.aio import call, open_connection
from aether_trio.cluster.records import ClusterLimits
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres import PostgresServer
from aether_trio.storage.postgres_errors import Fault, describe, fault
from aether_trio.storage.postgres_pool import Pool
from aether_trio.storage.postgres_statements import within

MAX_TRIES: Final = 3


class Queries:
    """At most `connections` connections, which pg_stat_activity shows as "aether-<role>". Statements are in line for them."""

    def __init__(
        self, server: PostgresServer, limits: ClusterLimits, role: str, connections: int, *settings: str
    ) -> None:
        self._server = server
        self._statement_s = limits.statement_s
        # Every statement finds its rows by key, and a plan is made once, when the tables may still be empty.
        self.pool = Pool(
            partial(open_connection, server, role, "SET enable_seqscan = off", *settings),
            server.spawn,
            server.loop,
            most=connections,
            keep=1,
            idle_s=server.limits.idle_s,
            patience_s=limits.lease_grace_s,
        )

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """The rows of one statement. Raises StorageUnavailable."""
        rows: list[Any] = await call(self._server, self._fetch(sql, args))
        return rows

    async def close(self) -> None:
        """Close the connections."""
        await call(self._server, self.pool.close())

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> list[Any]:
        tries = 0
        while True:
            connection = await self.pool.acquire()
            try:
                rows: list[Any] = await within(connection, self._statement_s, partial(connection.fetch, sql, *args))
            except Exception as exc:
                kind = fault(exc, connection)
                self.pool.release(connection, healthy=kind is not Fault.CONNECTION)
                tries += 1
                if kind not in {Fault.CONNECTION, Fault.CONFLICT} or tries >= MAX_TRIES:
                    raise StorageUnavailable(f"cluster: {describe(exc)}") from exc
                if kind is Fault.CONNECTION:
                    self.pool.discard_idle()
            else:
                self.pool.release(connection)
                return rows
