"""The other nodes: who is alive, and how it is found that one is not.

Nobody watches anybody. A node is found dead by somebody who needs to know: a claim that meets its hold, or the sweep, which looks
every few seconds for what nobody has missed. The finder tries the node's lock and declares the lease dead in that transaction.

A node that stands still keeps its session, and its lock. But a node looks at its own lease every `probe_s`, which PostgreSQL remembers of the
session; one that has not for `silent_s`, and does not between two looks of the sweep, loses its lease, as others may wait for what it
has (the work of a group) without asking for an identity.

A node that stopped in the middle of a write keeps its own row locked (the fence). Its transaction is ended then: its lease is gone,
so what it was writing may not be written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.node.aio import call, open_connection, run_again
from aether_trio.cluster.node.lease import END_HOLDS, END_LEASE_SESSIONS, Lease
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.pool import Pool

logger = structlog.get_logger("aether.cluster")

IN_THE_WAY_S: Final = 0.3
"""How long a declaration waits for the last writes of the dead before it ends them."""
CONNECTIONS: Final = 3
MAX_TRIES: Final = 3
SWEEP_ROWS: Final = 1000
REMEMBERED_DEAD: Final = 10_000
FORGET_NODES_S: Final = 24 * 3600.0

_DECLARE_DEAD: Final = "SELECT aether_declare_dead($1, $2, $3)"
# Only who waits for its client: a transaction that is at work comes to an end by itself, and others who declare the same wait there, too.
_CLEAR_THE_WAY: Final = """
    SELECT pg_terminate_backend(a.pid) FROM unnest(pg_blocking_pids($1)) AS b (pid) JOIN pg_stat_activity a ON a.pid = b.pid
    WHERE a.wait_event = 'ClientRead'
"""
# asyncpg asks for a statement to be prepared and then waits: a client that stops there is "active" for PostgreSQL, not idle in a
# transaction, so that none of its limits on time applies (before version 17), and it keeps its locks.
_END_STUCK: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name IN ('aether-writer', 'aether-cluster') AND state = 'active' AND wait_event = 'ClientRead'
        AND datname = current_database() AND state_change < now() - $1 * interval '1 second'
"""
_UNLOCKED: Final = """
    SELECT node_id, epoch FROM nodes WHERE alive AND node_id <> $2 AND NOT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND objsubid = 2
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid = $1::int::oid AND objid = nodes.node_id::oid
    )
"""
_SILENT: Final = """
    SELECT n.node_id, n.epoch, a.state_change FROM nodes n
    JOIN pg_locks l ON l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted AND l.objsubid = 2
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.classid = $1::int::oid AND l.objid = n.node_id::oid
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE n.alive AND n.node_id <> $2 AND a.state_change < now() - $3 * interval '1 second'
"""
_ALIVE: Final = "SELECT node_id, epoch, name, address, version, started_ms FROM nodes WHERE alive ORDER BY node_id"
_ENDED: Final = "SELECT node_id, epoch FROM nodes WHERE NOT alive"
# A node that was declared dead may come back within its grace and wants its holds then: hence the age.
_END_VOID: Final = """
    UPDATE identity_locks SET ended_ms = n.ended_ms FROM nodes n WHERE identity_locks.identity IN (
        SELECT h.identity FROM identity_locks h JOIN nodes d ON d.node_id = h.node_id
        WHERE h.ended_ms IS NULL AND NOT d.alive AND d.ended_ms < aether_now_ms() - $1::bigint
        ORDER BY h.identity LIMIT $2 FOR UPDATE OF h SKIP LOCKED
    ) AND n.node_id = identity_locks.node_id AND NOT n.alive
"""
_FORGET_HOLDS: Final = """
    DELETE FROM identity_locks WHERE identity IN (
        SELECT identity FROM identity_locks WHERE ended_ms < aether_now_ms() - $1::bigint
        ORDER BY identity LIMIT $2 FOR UPDATE SKIP LOCKED
    )
"""
_FORGET_ASKS: Final = "DELETE FROM lock_requests WHERE asked_ms < aether_now_ms() - $1::bigint"
_FORGET_NODES: Final = """
    DELETE FROM nodes n WHERE NOT alive AND ended_ms < aether_now_ms() - $1::bigint
        AND NOT EXISTS (SELECT FROM identity_locks h WHERE h.node_id = n.node_id)
"""
_END_LEASE: Final = (
    "UPDATE nodes SET alive = false, ended_ms = aether_now_ms() WHERE node_id = $1 AND epoch = $2 AND alive"
)


@dataclass(frozen=True, slots=True)
class AliveNode:
    """A row of `nodes`."""

    node_id: int
    epoch: int
    name: str
    address: str
    version: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class NodesStatistics:
    """`declared` counts leases that this node found dead, `cut_off` those that it ended because their node did not answer."""

    declared: int
    cut_off: int
    swept: int


class Nodes:
    """See the module docstring. `run` is the sweep; `pool` is for whatever else of the cluster needs a statement."""

    def __init__(self, server: PostgresServer, lease: Lease, limits: ClusterLimits, random: Random) -> None:
        self._server = server
        self._lease = lease
        self._limits = limits
        self._random = random
        self._looking: dict[tuple[int, int], trio.Event] = {}
        self._dead: set[tuple[int, int]] = set()
        self._unlocked: set[tuple[int, int]] = set()
        self._silent: set[tuple[int, int, Any]] = set()
        self._declared = self._cut_off = self._swept = 0
        self.on_dead: Callable[[int], None] = lambda _: None
        """Told of each node that this one has found dead, after the commit, in one step."""
        own = server.limits
        # Every statement finds its rows by key, and a plan is made once, when the tables may still be empty.
        factory = partial(open_connection, server, "cluster", "SET enable_seqscan = off")
        self.pool = Pool(
            factory,
            server.spawn,
            server.loop,
            most=CONNECTIONS,
            keep=1,
            idle_s=own.idle_s,
            patience_s=limits.lease_grace_s,
            watch=server.watch,
        )

    def statistics(self) -> NodesStatistics:
        """Counters since start."""
        return NodesStatistics(self._declared, self._cut_off, self._swept)

    @property
    def own_id(self) -> int:
        """This node's number."""
        return self._lease.node_id

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """One statement of its own, on any connection. Raises StorageUnavailable."""
        rows: list[Any] = await call(self._server, self._fetch(sql, *args))
        return rows

    async def alive(self) -> list[AliveNode]:
        """Who has not been declared dead, this node included. Raises StorageUnavailable."""
        return [AliveNode(*row) for row in await self.fetch(_ALIVE)]

    async def ended(self) -> list[tuple[int, int]]:
        """The (node_id, epoch) of each lease that has ended and not begun anew, for FORGET_NODES_S. Raises StorageUnavailable."""
        return [(node_id, epoch) for node_id, epoch in await self.fetch(_ENDED)]

    async def declare_dead(self, node_id: int, epoch: int) -> bool:
        """Whether this lease has ended; from then on its holds are void. Raises StorageUnavailable.

        Many claims may find the same dead node: one of them looks, the others wait for what it finds.
        """
        key = (node_id, epoch)
        while key not in self._dead:
            other = self._looking.get(key)
            if other is not None:
                await other.wait()
                continue
            done = self._looking[key] = trio.Event()
            try:
                if not await call(self._server, self._declare(node_id, epoch)):
                    return False
                if len(self._dead) >= REMEMBERED_DEAD:
                    self._dead.clear()
                self._dead.add(key)
                self._declared += 1
                logger.info("a node's lease has ended", node_id=node_id, epoch=epoch)
                self.on_dead(node_id)
            finally:
                del self._looking[key]
                done.set()
        return True

    async def cut_off(self, node_id: int) -> None:
        """End the lease session of a node that does not answer. Raises StorageUnavailable."""
        logger.warning("a node does not answer and loses its lease", node_id=node_id)
        self._cut_off += 1
        await self.fetch(END_LEASE_SESSIONS, self._lease.lock_class, node_id)

    async def find_dead(self) -> bool:
        """Look at every node now; whether one was found dead. Raises StorageUnavailable."""
        found = await self.fetch(_UNLOCKED, self._lease.lock_class, self._lease.node_id)
        dead = [await self.declare_dead(node_id, epoch) for node_id, epoch in found]
        return any(dead)

    async def leave(self) -> None:
        """This node ends: its holds are free, in one transaction. Raises StorageUnavailable."""
        node_id, epoch = self._lease.node_id, self._lease.epoch

        async def work(connection: Any) -> None:
            async with connection.transaction():
                await connection.execute(END_HOLDS, node_id)
                await connection.execute(_END_LEASE, node_id, epoch)

        await call(self._server, self._with_connection(work))

    async def run(self) -> None:
        """The sweep, until cancelled. Every node does it; what they do twice does no harm."""
        while True:
            await trio.sleep(self._limits.sweep_s * self._random.uniform(0.5, 1.2))
            if not self._lease.held:
                continue
            try:
                if await self.sweep():
                    await trio.sleep(self._limits.look_again_s)
                    await self.look()
                    await self.look_for_silent()
            except StorageUnavailable as exc:
                logger.info("the sweep was put off", reason=str(exc))

    async def look(self) -> bool:
        """Declare dead who was without a lease at two looks in a row; whether somebody was at this one. Raises StorageUnavailable."""
        found = {tuple(row) for row in await self.fetch(_UNLOCKED, self._lease.lock_class, self._lease.node_id)}
        before, self._unlocked = self._unlocked, found
        for node_id, epoch in found & before:
            await self.declare_dead(node_id, epoch)
        return bool(found)

    async def look_for_silent(self) -> bool:
        """End the leases of nodes that have not looked at them for long, and not since the last call; whether some had not for long.

        Between two calls there is to be more than `probe_s`. Raises StorageUnavailable.
        """
        rows = await self.fetch(_SILENT, self._lease.lock_class, self._lease.node_id, self._limits.silent_s)
        found = {(row[0], row[1], row[2]) for row in rows}
        before, self._silent = self._silent, found
        for node_id, epoch, _ in found & before:
            await self.cut_off(node_id)
            await self.declare_dead(node_id, epoch)
        return bool(found)

    async def sweep(self) -> bool:
        """Look who is dead or stands still, and forget what is old; whether somebody may be. Raises StorageUnavailable."""
        somebody = await self.look()
        somebody |= await self.look_for_silent()
        limits = self._limits
        await self.fetch(_END_STUCK, self._server.limits.idle_in_transaction_s)
        old_ms = int(10 * limits.lease_grace_s * 1000)
        await self.fetch(_FORGET_ASKS, old_ms)
        await self.fetch(f"{_END_VOID} RETURNING identity_locks.identity", old_ms, SWEEP_ROWS)
        tombstone_ms = int(limits.tombstone_s * 1000)
        self._swept += len(await self.fetch(f"{_FORGET_HOLDS} RETURNING identity", tombstone_ms, SWEEP_ROWS))
        await self.fetch(_FORGET_NODES, int(FORGET_NODES_S * 1000))
        return somebody

    async def close(self) -> None:
        """Close the connections."""
        await call(self._server, self.pool.close())

    # -- on the asyncio side --------------------------------------------------------------------------------------

    async def _fetch(self, sql: str, *args: Any) -> list[Any]:
        rows: list[Any] = await self._with_connection(lambda connection: connection.fetch(sql, *args))
        return rows

    async def _with_connection(self, work: Any) -> Any:
        """Run `work` on a connection, on another one when that is lost: all that is done here may be done twice.

        Raises StorageUnavailable.
        """
        return await run_again(self.pool, self._limits.statement_s, MAX_TRIES, work)

    async def _declare(self, node_id: int, epoch: int) -> bool:
        pid: int | None = None

        async def work(connection: Any) -> bool:
            nonlocal pid
            pid = connection.get_server_pid()
            dead: bool = await connection.fetchval(_DECLARE_DEAD, self._lease.lock_class, node_id, epoch)
            return dead

        declaring = asyncio.ensure_future(self._with_connection(work))
        while not (await asyncio.wait({declaring}, timeout=IN_THE_WAY_S))[0]:
            if pid is not None:
                try:
                    await self._fetch(_CLEAR_THE_WAY, pid)
                except StorageUnavailable:
                    break  # then the declaration fails as well, or its lock timeout ends it
        found: bool = await declaring
        return found
