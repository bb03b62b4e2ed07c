"""Nodes of a cluster in this process, each with an engine, a loop and a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import trio

from aether_trio.cluster.cluster import Cluster, open_cluster
from aether_trio.cluster.node.lease import NodeInfo
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.model.ownership import GrantedLock, IdentityLock, LockRequest, SessionHistory
from aether_trio.storage.base import Execute, Program
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresDatabase, PostgresServer, open_postgres
from tests.helpers.engines import PostgresEngine

LONG_S = 60.0  # a safety net against a hang, never a measurement
STEADY = ClusterLimits(
    lease_grace_s=LONG_S, probe_s=0.2, probe_timeout_s=LONG_S, statement_s=LONG_S, ask_again_s=0.2, ending_s=LONG_S
)
"""Nothing ends by waiting: a machine that stalls for seconds declares no node dead, and gives up no
connection."""
SHORT_GRACE = replace(STEADY, lease_grace_s=1.0)
"""Only for nodes that are to see the grace end."""
FEW = PostgresLimits(writers=2, readers=1, patience_s=LONG_S)

_numbers = count(1)


async def until(what: Callable[[], bool | Awaitable[bool]]) -> None:
    with trio.fail_after(LONG_S):
        while not (found if isinstance(found := what(), bool) else await found):
            await trio.sleep(0.01)


@dataclass
class Host:
    """A SessionHost; `resumable` are ended sessions, `gate` delays their end."""

    told: list[str] = field(default_factory=list)
    lost: list[IdentityLock] = field(default_factory=list)
    asked_for: list[tuple[str, str]] = field(default_factory=list)
    gate: trio.Event | None = None
    left: list[str] = field(default_factory=list)
    cluster: Cluster | None = None

    def lease_lost(self) -> None:
        self._tell("lost")

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        self.lost += lost
        self._tell("back")

    def lease_gone(self) -> None:
        self._tell("gone")

    def leaving(self) -> list[str]:
        return self.left

    async def yields(self, hold: IdentityLock, resume_session_id: str) -> bool:
        self.asked_for.append((hold.identity, resume_session_id))
        if resume_session_id != hold.session_id:
            return False
        if self.gate is not None:
            await self.gate.wait()
        assert self.cluster is not None
        self.cluster.locks.release(hold, SessionHistory(hold.session_id, 1_000, 7))
        return True

    def _tell(self, what: str) -> None:
        self.told.append(what)

    async def wait_told(self, what: str, times: int = 1) -> None:
        await until(lambda: self.told.count(what) >= times)


@dataclass
class Node:
    """One node. `database` is the logical database that its sessions would write to."""

    host: Host
    server: PostgresServer
    cluster: Cluster
    database: PostgresDatabase
    stop: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)

    async def claim(
        self, identity: str, *, resume: str = "", session: str = "", workspace: str = "lab", connected_ms: int = 5_000
    ) -> GrantedLock:
        with trio.fail_after(LONG_S):
            session = session or f"session-{next(_numbers)}"
            request = LockRequest(
                identity, session, "agent", connected_ms, workspace=workspace, resume_session_id=resume
            )
            return await self.cluster.locks.claim(request)

    async def write(self, identity: str, epoch: int) -> None:
        """Write with the epoch of the session's lock; raises FencedError."""
        await self.database.run(lambda: _write(identity, epoch))

    async def write_as_holder(self, identity: str, epoch: int) -> None:
        """Write, and end the session when its lock is lost."""
        hold = self.cluster.locks.mine(identity)
        if hold is None or hold.epoch != epoch:
            raise SessionEnded(identity)
        await self.write(identity, epoch)


class SessionEnded(Exception):
    """The session knows that it does not hold its identity any more."""


def _write(identity: str, epoch: int) -> Program[None]:
    rows = yield Execute("UPDATE counters SET n = n + 1 WHERE identity = $1", (identity,))
    if not rows:
        yield Execute(
            "INSERT INTO counters VALUES ($1, 1) ON CONFLICT (identity) DO UPDATE SET n = counters.n + 1", (identity,)
        )
    yield Execute("INSERT INTO history SELECT identity, n, $2 FROM counters WHERE identity = $1", (identity, epoch))


HISTORY = (
    "CREATE TABLE IF NOT EXISTS counters (identity TEXT PRIMARY KEY, n BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS history (identity TEXT, n BIGINT, epoch BIGINT, PRIMARY KEY (identity, n))",
)


def history_is_ordered(place: PostgresEngine) -> dict[str, list[int]]:
    """Check that the epochs of an identity's writes never go back; return the epochs."""
    epochs: dict[str, list[int]] = {}
    for identity, epoch in place.rows("SELECT identity, epoch FROM history ORDER BY identity, n"):
        epochs.setdefault(identity, []).append(epoch)
    for identity, seen in epochs.items():
        assert seen == sorted(seen), f"a former holder of {identity} wrote after its successor: {seen}"
    return epochs


class Nodes:
    """Starts and stops nodes of one cluster, each in a task with its loop."""

    def __init__(self, nursery: trio.Nursery, dsn: str, schema: str, limits: ClusterLimits) -> None:
        self._nursery = nursery
        self._dsn = dsn
        self._schema = schema
        self._limits = limits
        self._nodes: list[Node] = []

    async def start(
        self,
        *,
        dsn: str | None = None,
        limits: ClusterLimits | None = None,
        host: Host | None = None,
        connections_of: Callable[[str], int] = lambda workspace: 0,
    ) -> Node:
        started = (dsn or self._dsn, limits or self._limits, host or Host(), connections_of)
        node: Node = await self._nursery.start(self._run, *started)
        self._nodes.append(node)
        return node

    async def stop(self, *nodes: Node) -> None:
        for node in nodes:
            node.stop.set()
        for node in nodes:
            await node.stopped.wait()

    async def stop_all(self) -> None:
        await self.stop(*self._nodes)

    async def _run(
        self,
        dsn: str,
        limits: ClusterLimits,
        host: Host,
        connections_of: Callable[[str], int],
        task_status: trio.TaskStatus[Node],
    ) -> None:
        stop, stopped = trio.Event(), trio.Event()
        number = len(self._nodes) + 1
        info = NodeInfo(f"node-{number}", f"10.0.0.{number}:50051", "1")
        try:
            async with open_postgres(dsn, schema=self._schema, limits=FEW) as server:
                database = await server.database("scratch")
                opened = open_cluster(
                    server, host, info, limits=limits, random=Random(number), connections_of=connections_of
                )
                async with opened as cluster:
                    host.cluster = cluster
                    task_status.started(Node(host, server, cluster, database, stop, stopped))
                    await stop.wait()
        finally:
            stopped.set()


@asynccontextmanager
async def open_nodes(dsn: str, schema: str, limits: ClusterLimits = STEADY) -> AsyncIterator[Nodes]:
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery, dsn, schema, limits)
        try:
            yield nodes
        finally:
            with trio.CancelScope(shield=True):
                await nodes.stop_all()
