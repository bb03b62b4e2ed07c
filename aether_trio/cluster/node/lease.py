"""A cluster node's lease: a PostgreSQL session that has an advisory lock.

             session lost                        grace over
      HELD ───────────────▶ LOST ──────────────────────────────▶ AWAY
       ▲  ◀──────────────────┘ the lock again, within the grace    │
       └───────────────────────────────────────────────────────────┘ the lock again, a new epoch

There is no heartbeat and nothing expires: the lock is free when its PostgreSQL session has ended
for any reason. A node that has to know whether another one is alive tries that node's lock, and
declares the lease dead in the same transaction when it gets the lock (liveness.py).

What a node finds when it has the lock again:
    its row alive, its epoch    no node declared it dead; the lease and the identity locks go on
    its row dead, or changed    it takes the next epoch and re-stamps, in that transaction, those of
                                its identity locks that no other node has taken meanwhile
    no row                      it registers anew (a standby without the last transactions was
                                promoted)

The lock is taken before the row is read, so no node can declare the lease dead in between. A
session of this node that the server still believes in (its link has stalled) is ended first: only
this node takes its lock exclusively.

Invariants: while `state` is HELD no node has declared (node_id, epoch) dead, as far as this process
can know; the fence refuses writes in the cases that it cannot know. The watcher's `lease_lost` is
called exactly once before each `lease_back` or `lease_gone`. `lease_back` is called before the
epoch changes, so that a session whose lock is lost writes nothing under the new epoch;
`lease_renewed` is called after the change, in the same step.
"""

from __future__ import annotations

import enum
import math
import secrets
import zlib
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, Protocol

import structlog
import trio

from aether_trio.cluster.errors import LeaseLost
from aether_trio.cluster.node.postgres_calls import (
    close_connection,
    open_connection_from_trio,
    retry_at_start,
    run_in_asyncio,
)
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import describe
from aether_trio.storage.postgres.statements import within

logger = structlog.get_logger("aether.cluster")

SURE_S: Final = 1.0  # how late the next probe may be before the lease counts as uncertain
FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5

_REGISTER: Final = """
    INSERT INTO nodes (token, name, address, version, started_ms) VALUES ($1, $2, $3, $4, aether_now_ms()) RETURNING node_id
"""
# OFFSET 0: the plan goes from the few requests to their rows, not from the many rows to their
# requests.
_PROBE: Final = """
    SELECT EXISTS (SELECT FROM nodes WHERE node_id = $1 AND epoch = $2 AND alive),
        EXISTS (SELECT FROM lock_requests a CROSS JOIN LATERAL (SELECT * FROM identity_locks x WHERE x.identity = a.identity OFFSET 0) AS h
                WHERE h.node_id = $1 AND h.ended_ms IS NULL AND a.answer <> 'alive')
"""
END_LEASE_SESSIONS: Final = """
    SELECT pg_terminate_backend(pid, 2000) FROM pg_locks
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND objsubid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND classid = $1::int::oid AND objid = $2::int::oid AND pid <> pg_backend_pid()
"""
# In the order of the identities, as all statements lock them.
_LOCK_MINE: Final = """
    WITH mine AS (
        SELECT identity FROM identity_locks WHERE node_id = $1 AND ended_ms IS NULL ORDER BY identity FOR UPDATE
    ) UPDATE identity_locks h
"""
_RE_STAMP: Final = f"""
    {_LOCK_MINE} SET node_epoch = $2 FROM mine WHERE h.identity = mine.identity AND h.node_id = $1
    RETURNING h.identity, h.session_id
"""
END_LOCKS: Final = f"""
    {_LOCK_MINE} SET ended_ms = aether_now_ms() FROM mine WHERE h.identity = mine.identity AND h.node_id = $1
"""
_NEXT_EPOCH: Final = """
    UPDATE nodes SET epoch = greatest(epoch, $2) + 1, alive = true, ended_ms = NULL WHERE node_id = $1 RETURNING epoch
"""
_MINE: Final = "SELECT identity, session_id FROM identity_locks WHERE node_id = $1 AND ended_ms IS NULL"

LockRows = frozenset[tuple[str, str]]
"""(identity, session_id) of every identity lock that is this node's in the database."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Name, version and address (for people) of a cluster node, shown in listings."""

    name: str
    address: str = ""
    version: str = ""


class LeaseState(enum.Enum):
    """Whether a node's lease is held, lost within `lease_grace_s`, or lost for longer."""

    HELD = "held"
    LOST = "lost"
    AWAY = "away"


class LeaseWatcher(Protocol):
    """Called when a cluster node's lease changes; each call is one step, never raises."""

    def lease_lost(self) -> None:
        """Pause the node: other nodes may own its identities."""

    def lease_back(self, rows: LockRows, *, renewed: bool) -> None:
        """Go on with the node's lease; `rows` are the identity locks that it still has.

        `renewed`: the node was declared dead, and no other node has taken these locks meanwhile.
        """

    def lease_gone(self) -> None:
        """End all sessions of the node: other nodes may have taken every identity lock."""

    def lease_renewed(self) -> None:
        """Write this node's rows again that others deleted when they declared it dead."""

    def questions(self) -> None:
        """Look for requests of other nodes for identities that this node owns."""


@dataclass(slots=True)
class LeaseStatistics:
    """State and counters of a node's lease; `new_epochs`: times it was declared dead."""

    state: str = ""
    held: bool = False
    node_id: int = 0
    epoch: int = 0
    losses: int = 0
    new_epochs: int = 0
    times_away: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class _Regained:
    connection: Any
    node_id: int
    epoch: int
    rows: LockRows


def lock_class(schema: str, purpose: str) -> int:
    """Return the first key of the advisory locks of this schema and purpose."""
    return zlib.crc32(f"aether {purpose} {schema}".encode()) & 0x7FFF_FFFF


class Lease:
    """A cluster node's lease, kept by the task `run`; any task may call the methods."""

    def __init__(
        self, server: PostgresServer, info: NodeInfo, limits: ClusterLimits, watcher: LeaseWatcher, random: Random
    ) -> None:
        self._server = server
        self._info = info
        self._limits = limits
        self._watcher = watcher
        self._random = random
        self.token = secrets.token_hex(16)
        """A secret that the node's row has (storage/schema/cluster.py)."""
        self.lock_class = lock_class(server.schema, "lease")
        self.state = LeaseState.AWAY
        self.node_id = 0
        self.epoch = 0
        self._connection: Any = None
        self._alarm = AutoResetEvent()
        self._changed = RepeatedEvent()
        self._looked = RepeatedEvent()
        self._seen_held_s = 0.0
        self._counts = LeaseStatistics()

    # -- for the parts of the node -----------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether this node's identity locks are known to be its own."""
        return self.state is LeaseState.HELD

    @property
    def is_sure(self) -> bool:
        """Whether a recent probe has shown that this node has its lease."""
        if self.state is not LeaseState.HELD:
            return False
        age_s = trio.current_time() - self._seen_held_s
        return age_s <= self._limits.probe_s + SURE_S and not self._connection.is_closed()

    def fence(self) -> str:
        """Return the SQL query that makes a write fail once this node's lease has ended."""
        return f"SELECT aether_fence({self.node_id}, {self.epoch})"

    async def wait_held(self) -> None:
        """Wait until this node has its lease; LeaseLost after `lease_grace_s` without it."""
        while self.state is not LeaseState.HELD:
            if self.state is LeaseState.AWAY:
                reason = self._counts.last_error or "it is being registered"
                raise LeaseLost(f"this gateway has no lease in its cluster, and tries to get one: {reason}")
            await self._changed.wait()

    async def wait_sure(self, since_s: float = -math.inf) -> None:
        """Wait until a recent probe has shown that this node has its lease.

        For effects that pass no fence: a process that stood still may believe in a lease that other
        nodes have ended. `since_s` (trio's time): the probe must have begun then or later. A
        checkpoint only if it waits. Raises LeaseLost.
        """
        while True:
            await self.wait_held()
            if self.is_sure and self._seen_held_s >= since_s:
                return
            self._alarm.set()
            await self._looked.wait()

    def suspect(self) -> None:
        """Probe the lease now: the database refused what a node with a lease may do."""
        self._alarm.set()

    def statistics(self) -> LeaseStatistics:
        """Return the state of the node's lease, and counters since start."""
        return replace(self._counts, state=self.state.value, held=self.held, node_id=self.node_id, epoch=self.epoch)

    # -- its life ----------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register this node and keep its lease until cancelled; started with the lease."""
        await retry_at_start(self._begin, self._limits.lease_grace_s)
        self._listen(self._connection)
        self._enter(LeaseState.HELD)
        task_status.started()
        while True:
            await self._watch(self._connection)
            self._counts.losses += 1
            self._enter(LeaseState.LOST)
            self._watcher.lease_lost()
            logger.warning(
                "this node lost its lease in the cluster, and tries to get it back",
                node_id=self.node_id,
                epoch=self.epoch,
                reason=self._counts.last_error,
            )
            self._take(await self._regain())

    async def _begin(self) -> None:
        connection = await open_connection_from_trio(self._server, "lease")
        began_s = trio.current_time()
        work = within(connection, self._limits.lease_grace_s, partial(self._register, connection))
        try:
            self.node_id = await run_in_asyncio(self._server, work)
        except BaseException:
            connection.terminate()
            raise
        self._connection, self._seen_held_s, self.epoch = connection, began_s, 1

    async def close(self) -> None:
        """End the PostgreSQL session of the lease, which frees its lock."""
        connection, self._connection = self._connection, None
        self._enter(LeaseState.AWAY)
        if connection is not None:
            await close_connection(self._server, connection)

    async def _watch(self, connection: Any) -> None:
        """Return when the lease is lost; its connection is closed then."""
        alive = True
        while alive:
            with trio.move_on_after(self._limits.probe_s):
                await self._alarm.wait()
            if connection.is_closed():
                self._counts.last_error = "the server has ended the session"
                return
            alive = await self._probe(connection)
        connection.terminate()

    async def _probe(self, connection: Any) -> bool:
        began_s = trio.current_time()
        with trio.move_on_after(self._limits.probe_timeout_s):
            try:
                alive, asked = await run_in_asyncio(self._server, connection.fetchrow(_PROBE, self.node_id, self.epoch))
            except Exception as exc:
                self._counts.last_error = describe(exc)
                return False
            if not alive:
                self._counts.last_error = "this node was declared dead"
            elif asked:
                self._watcher.questions()
            if alive:
                self._seen_held_s = began_s
                self._looked.set()
            return bool(alive)
        self._counts.last_error = f"no answer within {self._limits.probe_timeout_s:g} s"
        return False

    async def _regain(self) -> _Regained:
        with trio.move_on_after(self._limits.lease_grace_s):
            return await self._try_until(empty=False)
        self._counts.times_away += 1
        self._enter(LeaseState.AWAY)
        logger.error(
            "this node did not get its lease back in time; all its sessions end",
            node_id=self.node_id,
            reason=self._counts.last_error,
        )
        self._watcher.lease_gone()
        return await self._try_until(empty=True)

    async def _try_until(self, *, empty: bool) -> _Regained:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                connection = await open_connection_from_trio(self._server, "lease")
                return await self._try(connection, empty=empty)
            except Exception as exc:
                self._counts.last_error = describe(exc)
            await trio.sleep(pause_s * self._random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _try(self, connection: Any, *, empty: bool) -> _Regained:
        began_s = trio.current_time()
        work = within(connection, self._limits.lease_grace_s, partial(self._come_back, connection, empty=empty))
        try:
            regained = await run_in_asyncio(self._server, work)
        except BaseException:
            connection.terminate()
            raise
        self._seen_held_s = began_s
        return regained

    def _take(self, regained: _Regained) -> None:
        self._connection = regained.connection
        self._listen(regained.connection)
        renewed = (regained.node_id, regained.epoch) != (self.node_id, self.epoch)
        if self.state is LeaseState.LOST:
            self._watcher.lease_back(regained.rows, renewed=renewed)
        self._counts.new_epochs += renewed
        self.node_id, self.epoch = regained.node_id, regained.epoch
        self._enter(LeaseState.HELD)
        if renewed:
            self._watcher.lease_renewed()
        logger.info("this node has its lease in the cluster again", node_id=self.node_id, epoch=self.epoch)

    def _listen(self, connection: Any) -> None:
        connection.add_termination_listener(self._terminated)

    def _terminated(self, connection: Any) -> None:
        if connection is self._connection:
            self._alarm.set()

    def _enter(self, state: LeaseState) -> None:
        self.state = state
        self._changed.set()
        self._looked.set()

    # -- on the asyncio side -----------------------------------------------------------------------

    async def _register(self, connection: Any) -> int:
        """Insert the node's row, which is visible only after the lock is taken."""
        info = self._info
        await connection.execute("BEGIN")
        node_id: int = await connection.fetchval(_REGISTER, self.token, info.name, info.address, info.version)
        await connection.execute("SELECT pg_advisory_lock($1, $2)", self.lock_class, node_id)
        await connection.execute("COMMIT")
        return node_id

    async def _come_back(self, connection: Any, *, empty: bool) -> _Regained:
        """Take the advisory lock again, renew the node's row; `empty` gives up its locks."""
        node_id, epoch = self.node_id, self.epoch
        token = await connection.fetchval("SELECT token FROM nodes WHERE node_id = $1", node_id)
        if token != self.token:
            return _Regained(connection, await self._register(connection), 1, frozenset())
        await connection.fetch(END_LEASE_SESSIONS, self.lock_class, node_id)
        await connection.execute("SELECT pg_advisory_lock($1, $2)", self.lock_class, node_id)
        await connection.execute("BEGIN")
        known = await connection.fetchrow("SELECT epoch, alive FROM nodes WHERE node_id = $1", node_id)
        if known["alive"] and known["epoch"] == epoch and not empty:
            rows = await connection.fetch(_MINE, node_id)
        else:
            epoch = await connection.fetchval(_NEXT_EPOCH, node_id, epoch)
            rows = []
            if empty:
                await connection.execute(END_LOCKS, node_id)
            else:
                rows = await connection.fetch(_RE_STAMP, node_id, epoch)
        await connection.execute("COMMIT")
        return _Regained(connection, node_id, epoch, frozenset((row[0], row[1]) for row in rows))
