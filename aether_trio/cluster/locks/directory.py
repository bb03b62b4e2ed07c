"""Lists and finds the sessions and service instances of all nodes of a cluster.

Lists are read from the table of identity locks, those of live leases only; cluster_locks.py decides
who owns an identity. The sessions of a node that has died are listed until the node is declared
dead: by a claim of one of its identities, or by the second of two looks that find it without a
lease. Every node looks every few seconds, and a list makes this node look again at once, but not
more often than every LOOK_S.

A session of this node is described by its registry, which knows more than the row. The workspaces
that users have switched to (`moved`) are written in batches, and before each read. A node whose
service instances change, or that declares a node dead, notifies all nodes after the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from aether_trio.cluster.locks.cluster_locks import NEWS
from aether_trio.cluster.locks.remote_disconnects import Disconnects, DisconnectStatistics
from aether_trio.cluster.locks.service_instances import ServiceInstances
from aether_trio.cluster.node.bus import ALL
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.cluster.session_host import LocalSessions
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.periodic_task import PeriodicTask
from aether_trio.concurrency.supervision import keep_running
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ownership import (
    DisconnectOutcome,
    DisconnectResult,
    LastSeen,
    SessionFilter,
    SessionList,
    SessionRecord,
    WorkspaceUse,
)
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.postgres.database import PostgresServer

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster

SERVICES: Final = "services"
LOOK_S: Final = 1.0
SERVICES_MIN_INTERVAL_S: Final = 0.02  # between two looks at the services
MAX_MOVES: Final = 1000

_LIVE: Final = """
    FROM identity_locks h JOIN nodes n ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive WHERE h.ended_ms IS NULL
"""
_COLUMNS: Final = "h.identity, h.session_id, h.place, h.connected_ms, h.peer, h.node_id, h.written_ms"
_PAGE: Final = """
    WITH live AS (
        SELECT %s AND (cardinality($1::text[]) = 0 OR h.kind = ANY($1))
            AND (h.node_id <> $2 OR h.identity <> ALL($3::text[]))
    )
    SELECT (SELECT count(*) FROM live), page.* FROM (SELECT) AS always
    LEFT JOIN (SELECT * FROM live ORDER BY identity OFFSET $4 LIMIT $5) AS page ON true ORDER BY page.identity
"""
_PAGE_OF_ALL: Final = _PAGE % f"{_COLUMNS} {_LIVE}"
_PAGE_OF_PLACE: Final = _PAGE % f"{_COLUMNS} {_LIVE} AND h.place = $6"
_USE: Final = f"""
    SELECT h.place, h.kind, count(*) {_LIVE} AND h.place <> '' AND ($1 = '' OR h.place = $1)
        AND (h.node_id <> $2 OR h.identity <> ALL($3::text[])) GROUP BY h.place, h.kind
"""
_FIND: Final = f"SELECT {_COLUMNS} {_LIVE} AND h.session_id = $1"
_HOLDER: Final = f"SELECT {_COLUMNS} {_LIVE} AND h.identity = $1"
_LAST_HELD: Final = """
    SELECT coalesce(bool_or(t.live), false), coalesce(max(t.ms), 0) FROM (
        SELECT s.live, CASE WHEN s.live THEN h.written_ms ELSE coalesce(h.ended_ms, n.ended_ms, h.written_ms) END AS ms
        FROM identity_locks h LEFT JOIN nodes n ON n.node_id = h.node_id AND n.epoch = h.node_epoch
        CROSS JOIN LATERAL (SELECT h.ended_ms IS NULL AND coalesce(n.alive, false)
            AND (h.node_id <> $1 OR h.identity <> ALL($2::text[])) AS live) AS s
        WHERE %s
    ) AS t
"""
_LAST_HELD_ONE: Final = _LAST_HELD % "h.identity = $3"
# Identity strings order by their bytes, so the windows of a user are a range: ";" comes right
# behind ":".
_LAST_HELD_USER: Final = (
    _LAST_HELD % "h.identity >= 'us::' || $3::text || '::' AND h.identity < 'us::' || $3::text || ':;'"
)
_SERVICES: Final = f"""
    SELECT h.implementation, h.identity {_LIVE} AND h.kind = 'service' AND h.takes_any AND h.node_id <> $1
    ORDER BY h.identity
"""
# In the order of the identities, as all statements lock them.
_MOVE: Final = """
    WITH mine AS (
        SELECT h.identity, h.session_id, c.place FROM unnest($1::text[], $2::text[], $3::text[]) AS c (identity, session_id, place)
        JOIN identity_locks h ON h.identity = c.identity AND h.session_id = c.session_id
        WHERE h.ended_ms IS NULL ORDER BY h.identity FOR UPDATE OF h
    )
    UPDATE identity_locks h SET place = mine.place, written_ms = aether_now_ms() FROM mine
    WHERE h.identity = mine.identity AND h.session_id = mine.session_id AND h.ended_ms IS NULL
"""


_COLUMN_OF: Final = {
    Kind.AGENT.value: "agents",
    Kind.UNIQUE_TASK.value: "tasks",
    Kind.TASK.value: "tasks",
    Kind.USER.value: "users",
}
"""Kinds of identities, and the count of a WorkspaceUse that they belong to."""


def _refused_move(move: tuple[str, tuple[str, str]], error: Exception) -> None:
    structlog.get_logger("aether.cluster").error(
        "PostgreSQL refuses to write that a user has switched to another workspace", identity=move[0], reason=str(error)
    )


@dataclass(frozen=True, slots=True)
class DirectoryLimits:
    """How long a node's directory of sessions waits for other nodes, in seconds."""

    poll_s: float = 5.0  # between two looks that make up for lost notifications
    ask_again_s: float = 1.0
    wait_s: float = 12.0  # for a node's answer to a disconnect: more than two polls


@dataclass(frozen=True, slots=True)
class DirectoryStatistics:
    """Counters of a cluster node's directory of sessions since start.

    `service_looks` are looks at the services of other nodes, `move_statements` those that wrote
    `moves` switches of a workspace.
    """

    service_looks: int
    move_statements: int
    moves: int
    disconnects: DisconnectStatistics


class ClusterDirectory:
    """Lists the sessions of all cluster nodes; `run` must run, `close` comes after it."""

    def __init__(
        self,
        server: PostgresServer,
        cluster: Cluster,
        sessions: LocalSessions,
        cluster_limits: ClusterLimits,
        limits: DirectoryLimits,
        random: Random,
    ) -> None:
        self._cluster = cluster
        self._sessions = sessions
        self._limits = limits
        self._queries = QueryPool(server, cluster_limits, "directory", 1)
        self._instances = ServiceInstances(random)
        self._moves: dict[str, tuple[str, str]] = {}
        self._moving = trio.Lock()
        every_s = limits.poll_s
        self._services = PeriodicTask(
            "services of other nodes",
            self._follow_services,
            random,
            every_s=every_s,
            min_interval_s=SERVICES_MIN_INTERVAL_S,
        )
        self._disconnect_requests = PeriodicTask(
            "disconnects requested by other nodes", self._follow_disconnects, random, every_s=every_s
        )
        self._moved = PeriodicTask("switches of workspaces", self._follow_moves, random, every_s=None)
        self._listed = PeriodicTask(
            "the search for dead nodes", self._find_dead, random, every_s=None, min_interval_s=LOOK_S
        )
        self._looked_at = trio.current_time()
        self._service_looks = self._move_statements = self._move_count = 0
        self.disconnects = Disconnects(
            self._queries,
            cluster.lease,
            cluster.bus,
            sessions,
            self._disconnect_requests.trigger,
            ask_again_s=limits.ask_again_s,
            wait_s=limits.wait_s,
        )
        cluster.locks.on_change.append(self._on_locks_changed)
        cluster.peers.when_dead(self._services.trigger)
        cluster.bus.handle(SERVICES, lambda _sender, _body: self._services.trigger())
        cluster.bus.handle(NEWS, self._on_lock_news)

    def statistics(self) -> DirectoryStatistics:
        """Return the counters of the session directory since start."""
        return DirectoryStatistics(
            self._service_looks, self._move_statements, self._move_count, self.disconnects.statistics()
        )

    # -- reading -----------------------------------------------------------------------------------

    async def page(self, wanted: SessionFilter, offset: int, limit: int) -> SessionList:
        self._listed.trigger()
        await self._write_moves()
        kinds = [kind.value for kind in wanted.kinds]
        args = [kinds, self._cluster.node_id, self._cluster.leaving(), offset, limit]
        if wanted.workspace:
            rows = await self._queries.fetch(_PAGE_OF_PLACE, *args, wanted.workspace)
        else:
            rows = await self._queries.fetch(_PAGE_OF_ALL, *args)
        return SessionList([self._record(row[1:]) for row in rows if row[1] is not None], rows[0][0])

    async def use(self, workspace: str = "") -> Mapping[str, WorkspaceUse]:
        self._listed.trigger()
        await self._write_moves()
        rows = await self._queries.fetch(_USE, workspace, self._cluster.node_id, self._cluster.leaving())
        counts: dict[str, dict[str, int]] = {}
        for place, kind, count in rows:
            column = _COLUMN_OF.get(kind)
            if column is not None:
                found = counts.setdefault(place, {})
                found[column] = found.get(column, 0) + count
        return {place: WorkspaceUse(**found) for place, found in counts.items()}

    async def find(self, session_id: str) -> SessionRecord | None:
        own = self._sessions.record(session_id)
        return own if own is not None else await self._find_elsewhere(session_id)

    async def disconnect(self, session_id: str, reason: str) -> DisconnectResult:
        identity = self._sessions.disconnect(session_id, reason)
        if identity is not None:
            return DisconnectResult(DisconnectOutcome.DONE, identity)
        session = await self._find_elsewhere(session_id)
        if session is None:
            return DisconnectResult(DisconnectOutcome.UNKNOWN)
        return DisconnectResult(await self.disconnects.end(session, reason), session.identity.text)

    async def holder(self, identity: str) -> SessionRecord | None:
        session_id = self._sessions.session_id_of(identity)
        if session_id is not None:
            return self._sessions.record(session_id)
        self._listed.trigger()
        rows = await self._queries.fetch(_HOLDER, identity)
        return self._record(rows[0]) if rows and identity not in self._cluster.leaving() else None

    async def last_seen(self, identity: str) -> LastSeen:
        here = self._sessions.last_seen(identity)
        return here if here.connected else await self._last_seen(_LAST_HELD_ONE, identity)

    async def user_last_seen(self, user_id: str) -> LastSeen:
        found = await self._last_seen(_LAST_HELD_USER, user_id)
        here = self._sessions.user_last_seen(user_id)
        return LastSeen(found.connected or here.connected, max(found.last_ms, here.last_ms))

    def pick_service(self, implementation: str) -> str | None:
        picked = self._instances.pick(implementation, self._sessions.instances(implementation))
        if picked is None and trio.current_time() > self._looked_at + LOOK_S:
            self._services.trigger()  # the sender is told to try again in a second
        return picked

    async def _find_elsewhere(self, session_id: str) -> SessionRecord | None:
        self._listed.trigger()
        await self._write_moves()
        rows = await self._queries.fetch(_FIND, session_id)
        return self._record(rows[0]) if rows and rows[0][0] not in self._cluster.leaving() else None

    async def _last_seen(self, sql: str, name: str) -> LastSeen:
        self._listed.trigger()
        return LastSeen(*(await self._queries.fetch(sql, self._cluster.node_id, self._cluster.leaving(), name))[0])

    def _record(self, row: Sequence[Any]) -> SessionRecord:
        identity, session_id, place, connected_ms, peer, node_id, written_ms = row
        own = self._sessions.record(session_id)
        if own is not None:
            return own  # which knows more than its row
        # Not strict: another node may be configured otherwise.
        parsed = Identity.parse(identity, strict=False)
        return SessionRecord(session_id, parsed, place, connected_ms, peer, written_ms, node_id)

    # -- moving ------------------------------------------------------------------------------------

    def moved(self, session: SessionRecord) -> None:
        self._moves[session.identity.text] = (session.session_id, session.workspace)
        self._moved.trigger()

    async def _write_moves(self) -> None:
        """Write which users switched workspace; after a failure they wait again."""
        if not self._moves and not self._moving.locked():
            return
        async with self._moving:
            while self._moves:
                names = list(self._moves)[:MAX_MOVES]
                moves = {name: self._moves.pop(name) for name in names}
                try:
                    await in_halves(list(moves.items()), self._write_some, _refused_move)
                except BaseException:
                    self._moves = {**moves, **self._moves}
                    raise
                self._move_statements += 1
                self._move_count += len(moves)

    async def _write_some(self, moves: Sequence[tuple[str, tuple[str, str]]]) -> list[Any]:
        names = [name for name, _ in moves]
        return await self._queries.fetch(
            _MOVE, names, [one for _, (one, _) in moves], [place for _, (_, place) in moves]
        )

    # -- notifications -----------------------------------------------------------------------------

    def _on_locks_changed(self, identities: Sequence[str]) -> None:
        if any(identity.startswith("sv::") for identity in identities):
            self._cluster.bus.broadcast(SERVICES, "")

    def _on_lock_news(self, _sender: int, body: str) -> None:
        if body == ALL:
            self._services.trigger()

    # -- its tasks ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow other nodes' services and disconnects; started when services are known."""
        await self._follow_services(True)
        task_status.started()
        async with trio.open_nursery() as nursery:
            for one in (self._services, self._disconnect_requests, self._moved, self._listed):
                nursery.start_soon(keep_running, "directory", one.run)

    async def close(self) -> None:
        """Close the directory's connection to PostgreSQL."""
        await self._queries.close()

    async def _follow_services(self, _periodic: bool) -> None:
        self._looked_at = trio.current_time()
        self._instances.replace((row[0], row[1]) for row in await self._queries.fetch(_SERVICES, self._cluster.node_id))
        self._service_looks += 1

    async def _follow_disconnects(self, periodic: bool) -> None:
        await self.disconnects.carry_out()
        if periodic:
            await self.disconnects.forget()

    async def _follow_moves(self, _periodic: bool) -> None:
        await self._write_moves()

    async def _find_dead(self, _periodic: bool) -> None:
        if await self._cluster.nodes.look():
            self._listed.trigger()  # a node has no lease: the second look decides


@asynccontextmanager
async def open_directory(
    server: PostgresServer,
    cluster: Cluster,
    sessions: LocalSessions,
    *,
    cluster_limits: ClusterLimits,
    limits: DirectoryLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[ClusterDirectory]:
    """Open the directory of all nodes' sessions; `sessions` are those of this node."""
    random = random or Random()  # noqa: S311  # spreads attempts and turns
    directory = ClusterDirectory(server, cluster, sessions, cluster_limits, limits or DirectoryLimits(), random)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(directory.run)
            yield directory
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await directory.close()
