"""Finds cluster nodes that are dead or stand still, and ends their leases.

A dead node is found by a claim of an identity that the node has locked, or by the sweep, which
looks every few seconds. The finder tries the node's advisory lock and declares the lease dead in
that transaction.

A node that stands still keeps its session, and its advisory lock. But a node probes its own lease
every `probe_s`, and PostgreSQL knows when the session last did. A node that has not for `silent_s`,
and does not between two looks of the sweep, loses its lease: others may wait for what it has (the
messages of a work queue) without requesting an identity.

A node that stopped in the middle of a write keeps its own row locked (the fence). Its transaction
is ended then: its lease is gone, so the write must not be committed. So is a connection on which a
node listens and does not read.
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

from aether_trio.cluster.node.lease import END_LEASE_SESSIONS, END_LOCKS, Lease
from aether_trio.cluster.node.postgres_calls import run_in_asyncio
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer

logger = structlog.get_logger("aether.cluster")

IN_THE_WAY_S: Final = 0.3  # for the last writes of a dead node, which are ended then
CONNECTIONS: Final = 3
SWEEP_ROWS: Final = 1000
REMEMBERED_DEAD: Final = 10_000
FORGET_NODES_S: Final = 24 * 3600.0

_DECLARE_DEAD: Final = "SELECT aether_declare_dead($1, $2, $3), (SELECT name FROM nodes WHERE node_id = $2)"
_NAME: Final = "SELECT name FROM nodes WHERE node_id = $1"
# Only backends that wait for their client: a transaction that runs a statement ends without help,
# and so do other nodes' declarations of the same death.
_CLEAR_THE_WAY: Final = """
    SELECT pg_terminate_backend(a.pid) FROM unnest(pg_blocking_pids($1)) AS b (pid) JOIN pg_stat_activity a ON a.pid = b.pid
    WHERE a.wait_event = 'ClientRead'
"""
# Of this role, as it may end no others. A role that may see them all would fail at them.
# asyncpg asks for a statement to be prepared and then waits: a client that stops there is "active"
# for PostgreSQL, not idle in a transaction, so that none of its limits on time applies (before
# version 17), and it keeps its locks.
_END_STUCK: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name IN ('aether-writer', 'aether-cluster') AND state = 'active' AND wait_event = 'ClientRead'
        AND datname = current_database() AND usename = current_user AND state_change < now() - $1 * interval '1 second'
"""
# A node that stands still does not read what its listening connection brings, and PostgreSQL keeps
# all notifications of the server from there on. Over TCP the kernel ends such a connection.
_END_DEAF: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'aether-listen' AND wait_event = 'ClientWrite' AND datname = current_database()
        AND usename = current_user AND state_change < now() - $1 * interval '1 second'
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
# A node that was declared dead may come back within its grace and needs its locks then: hence the
# age.
_END_VOID: Final = """
    UPDATE identity_locks SET ended_ms = n.ended_ms FROM nodes n WHERE identity_locks.identity IN (
        SELECT h.identity FROM identity_locks h JOIN nodes d ON d.node_id = h.node_id
        WHERE h.ended_ms IS NULL AND NOT d.alive AND d.ended_ms < aether_now_ms() - $1::bigint
        ORDER BY h.identity LIMIT $2 FOR UPDATE OF h SKIP LOCKED
    ) AND n.node_id = identity_locks.node_id AND NOT n.alive
"""
_FORGET_LOCKS: Final = """
    DELETE FROM identity_locks WHERE identity IN (
        SELECT identity FROM identity_locks WHERE ended_ms < aether_now_ms() - $1::bigint
        ORDER BY identity LIMIT $2 FOR UPDATE SKIP LOCKED
    )
"""
_FORGET_REQUESTS: Final = "DELETE FROM lock_requests WHERE asked_ms < aether_now_ms() - $1::bigint"
_FORGET_NODES: Final = """
    DELETE FROM nodes n WHERE NOT alive AND ended_ms < aether_now_ms() - $1::bigint
        AND NOT EXISTS (SELECT FROM identity_locks h WHERE h.node_id = n.node_id)
"""
_END_LEASE: Final = (
    "UPDATE nodes SET alive = false, ended_ms = aether_now_ms() WHERE node_id = $1 AND epoch = $2 AND alive"
)


@dataclass(frozen=True, slots=True)
class AliveNode:
    """The row of a cluster node that is not declared dead."""

    node_id: int
    epoch: int
    name: str
    address: str
    version: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class NodesStatistics:
    """Nodes declared dead, silent nodes cut off and old locks deleted by this node."""

    declared: int
    cut_off: int
    swept: int


class Nodes:
    """The cluster's nodes in the database; `async` methods raise StorageUnavailable."""

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
        self._on_dead: list[Callable[[int], None]] = []
        self._at_leaving: list[str] = []
        # Statements find their rows by key, but a plan is made once, when tables may be empty.
        self._queries = QueryPool(
            server, limits, "cluster", CONNECTIONS, "SET enable_seqscan = off", planned_once=False
        )
        self.pool = self._queries.pool

    def when_declared_dead(self, call: Callable[[int], None]) -> None:
        """Have `call` called with the number of each node that this node declares dead."""
        self._on_dead.append(call)

    def when_leaving(self, sql: str) -> None:
        """Have a statement run with this node's number and epoch as it gives its lease up."""
        self._at_leaving.append(sql)

    def statistics(self) -> NodesStatistics:
        """Return counters of nodes declared dead or cut off since start."""
        return NodesStatistics(self._declared, self._cut_off, self._swept)

    @property
    def own_id(self) -> int:
        """This node's number in the cluster."""
        return self._lease.node_id

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Run one SQL statement as a transaction; return its rows."""
        return await self._queries.fetch(sql, *args)

    async def alive(self) -> list[AliveNode]:
        """Return the rows of the nodes that are not declared dead, this one included."""
        return [AliveNode(*row) for row in await self.fetch(_ALIVE)]

    async def ended(self) -> list[tuple[int, int]]:
        """Return (node_id, epoch) of the leases that ended in the last FORGET_NODES_S."""
        return [(node_id, epoch) for node_id, epoch in await self.fetch(_ENDED)]

    async def declare_dead(self, node_id: int, epoch: int) -> bool:
        """Declare a node's lease dead unless the node has it; return whether it is dead."""
        key = (node_id, epoch)
        while key not in self._dead:
            other = self._looking.get(key)
            if other is not None:
                await other.wait()
                continue
            done = self._looking[key] = trio.Event()
            try:
                # The declaration takes effect though the claim that has asked for it is cancelled.
                note = partial(self._note, node_id, epoch)
                declared = await run_in_asyncio(self._server, self._declare(node_id, epoch), note)
                note(declared)
                if not declared[0]:
                    return False
            finally:
                del self._looking[key]
                done.set()
        return True

    def _note(self, node_id: int, epoch: int, declared: tuple[bool, str | None]) -> None:
        """Note the outcome of a declaration; report a node's death once."""
        key = (node_id, epoch)
        dead, name = declared
        if not dead or key in self._dead:
            return
        if len(self._dead) >= REMEMBERED_DEAD:
            self._dead.clear()
        self._dead.add(key)
        self._declared += 1
        logger.info(
            "the lease of another node has ended; its identities are free",
            other_node=name,
            node_id=node_id,
            epoch=epoch,
        )
        for notify in self._on_dead:
            notify(node_id)

    async def cut_off(self, node_id: int) -> None:
        """End the PostgreSQL session, and so the lease, of a node that does not answer."""
        names = [name for (name,) in await self.fetch(_NAME, node_id)]
        logger.warning(
            "another node does not answer; this node ends its lease", other_node="".join(names), node_id=node_id
        )
        self._cut_off += 1
        await self.fetch(END_LEASE_SESSIONS, self._lease.lock_class, node_id)

    async def find_dead(self) -> bool:
        """Try the locks of all nodes now; return whether one was found dead."""
        found = await self.fetch(_UNLOCKED, self._lease.lock_class, self._lease.node_id)
        dead = [await self.declare_dead(node_id, epoch) for node_id, epoch in found]
        return any(dead)

    async def leave(self) -> None:
        """Release this node's identity locks and its lease in one transaction."""
        node_id, epoch = self._lease.node_id, self._lease.epoch

        async def work(connection: Any) -> None:
            async with connection.transaction():
                await connection.execute(END_LOCKS, node_id)
                await connection.execute(_END_LEASE, node_id, epoch)
                for sql in self._at_leaving:
                    await connection.execute(sql, node_id, epoch)

        await run_in_asyncio(self._server, self._queries.run(work))

    async def run(self) -> None:
        """Look for dead and silent nodes every few seconds until cancelled.

        A sweep that failed is not repeated soon, as a PeriodicTask would: the next look decides, so
        a node needs time before it to get its lease back.
        """
        while True:
            await trio.sleep(self._limits.sweep_s * self._random.uniform(0.5, 1.2))
            try:
                if self._lease.held and await self.sweep():
                    await trio.sleep(self._limits.look_again_s)
                    await self.look()
                    await self.look_for_silent()
            except StorageUnavailable as exc:
                logger.info("the look for dead nodes failed; the next one is in a few seconds", reason=str(exc))

    async def look(self) -> bool:
        """Declare nodes dead that twice had no lease; return whether a node has none now."""
        found = {tuple(row) for row in await self.fetch(_UNLOCKED, self._lease.lock_class, self._lease.node_id)}
        before, self._unlocked = self._unlocked, found
        for node_id, epoch in found & before:
            await self.declare_dead(node_id, epoch)
        return bool(found)

    async def look_for_silent(self) -> bool:
        """End leases of nodes twice found silent (`silent_s`); return whether one is now."""
        rows = await self.fetch(_SILENT, self._lease.lock_class, self._lease.node_id, self._limits.silent_s)
        found = {(row[0], row[1], row[2]) for row in rows}
        before, self._silent = self._silent, found
        for node_id, epoch, _ in found & before:
            await self.cut_off(node_id)
            await self.declare_dead(node_id, epoch)
        return bool(found)

    async def sweep(self) -> bool:
        """Look for dead and silent nodes, delete old rows; return whether one is suspect."""
        suspects = await self.look()
        suspects |= await self.look_for_silent()
        limits = self._limits
        await self.fetch(_END_STUCK, self._server.limits.idle_in_transaction_s)
        await self.fetch(_END_DEAF, limits.silent_s)
        old_ms = int(10 * limits.lease_grace_s * 1000)
        await self.fetch(_FORGET_REQUESTS, old_ms)
        await self.fetch(f"{_END_VOID} RETURNING identity_locks.identity", old_ms, SWEEP_ROWS)
        tombstone_ms = int(limits.tombstone_s * 1000)
        self._swept += len(await self.fetch(f"{_FORGET_LOCKS} RETURNING identity", tombstone_ms, SWEEP_ROWS))
        await self.fetch(_FORGET_NODES, int(FORGET_NODES_S * 1000))
        return suspects

    async def close(self) -> None:
        """Close the connections to PostgreSQL."""
        await self._queries.close()

    # -- on the asyncio side -----------------------------------------------------------------------

    async def _declare(self, node_id: int, epoch: int) -> tuple[bool, str | None]:
        """Return whether the lease is dead, and the node's name."""
        pid: int | None = None

        async def work(connection: Any) -> tuple[bool, str | None]:
            nonlocal pid
            pid = connection.get_server_pid()
            dead, name = await connection.fetchrow(_DECLARE_DEAD, self._lease.lock_class, node_id, epoch)
            return dead, name

        declaring = asyncio.ensure_future(self._queries.run(work))
        while not (await asyncio.wait({declaring}, timeout=IN_THE_WAY_S))[0]:
            if pid is not None:
                try:
                    await self._queries.run(lambda connection: connection.fetch(_CLEAR_THE_WAY, pid))
                except StorageUnavailable:
                    break  # then the declaration fails as well, or its lock timeout ends it
        found: tuple[bool, str | None] = await declaring
        return found
