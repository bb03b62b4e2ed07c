"""Apply the faults of a plan to a cluster."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from aether_trio.devtools.fault_proxy import FaultProxy, ProxiedConnection
from aether_trio.devtools.node_process import NodeFailed
from aether_trio.devtools.process_cluster import ClusterNode, ProcessCluster
from aether_trio.storage.errors import StorageSetupError
from chaos.history import Disturbance, History
from chaos.keepers import MARK
from chaos.plan import Kind, Step

T = TypeVar("T")

SLOW_S: Final = 0.05
"""One way, on a slow link."""
WRITE_S: Final = 5.0
"""How long a write is waited for."""
THEN_S: Final = 0.2
"""From a write that is stalled to the cut of its node's clients, which go elsewhere and write
there.
"""
CUTS: Final = 0.7
"""How often that happens. (The rest of `pick` says what kind of write it is to be.)"""
BEGIN: Final = b"BEGIN;"
COMMIT: Final = b"COMMIT\x00"
LEASE: Final = b"application_name = 'aether-lease'"
BUS: Final = b"application_name = 'aether-listen'"


class Weather:
    """Applies a plan; `missed` counts faults that the moment did not allow."""

    def __init__(
        self, cluster: ProcessCluster, history: History, now: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._now = now
        self._say = say
        self._nodes = {node.name: node for node in cluster.nodes}
        self._taken: set[str] = set()
        self.missed = 0
        self._acts: dict[Kind, Callable[[Step], Awaitable[None]]] = {
            Kind.KILL_NODE: self._kill_node,
            Kind.STOP_NODE: self._stop_node,
            Kind.STOP_NODE_LONG: self._stop_node,
            Kind.DRAIN_NODE: self._drain_node,
            Kind.RESTART_DATABASE: self._database,
            Kind.CRASH_DATABASE: self._database,
            Kind.END_BACKEND: self._end_backend,
            Kind.END_LEASE: self._end_backend,
            Kind.END_BUS: self._end_backend,
            Kind.STALL_DATABASE_LINK: self._stall_database_link,
            Kind.STALL_CONNECTION: self._stall_connection,
            Kind.STALL_WRITE: self._stall_write,
            Kind.WITHHOLD_LEASE: self._withhold_lease,
            Kind.HALF_OPEN_LEASE: self._half_open_lease,
            Kind.STALL_BUS: self._stall_bus,
            Kind.CUT_DATABASE_LINK: self._cut_database_link,
            Kind.SLOW_DATABASE_LINK: self._slow_database_link,
            Kind.HALF_CLOSE_CONNECTION: self._half_close_connection,
            Kind.CUT_CLIENTS: self._clients,
            Kind.STALL_CLIENTS: self._clients,
            Kind.HALF_CLOSE_CLIENT: self._clients,
            Kind.FAIL_OVER: self._fail_over,
        }

    def is_at(self, node: ClusterNode) -> bool:
        """Say whether a fault affects this node's process now, which it may have ended."""
        return node.name in self._taken

    async def run(self, steps: Sequence[Step]) -> None:
        """Apply all faults; return when everything has been taken back."""
        begun_s = self._now()
        async with trio.open_nursery() as nursery:
            for step in steps:
                await trio.sleep(max(0.0, begun_s + step.at_s - self._now()))
                nursery.start_soon(self.do, step)

    async def do(self, step: Step) -> None:
        """Apply one fault now; return when it has been taken back."""
        since_s = self._now()
        lasting = f" for {step.duration_s:.1f} s" if step.duration_s else ""
        self._say(f"{since_s:7.1f} s  {step.kind}: {step.target}{lasting}")
        try:
            await self._acts[step.kind](step)
        except (StorageSetupError, NodeFailed, _NothingThere) as exc:
            # What was to be hit is away because of another fault.
            self.missed += 1
            self._say(f"{self._now():7.1f} s  not done: {step.kind}: {exc}")
        self._history.disturbances.append(Disturbance(step.kind, step.target, since_s, self._now()))

    # -- nodes

    async def _kill_node(self, step: Step) -> None:
        with self._node_for_itself(step) as node:
            await node.kill()
            await trio.sleep(step.duration_s)
            await self._start(node)

    async def _stop_node(self, step: Step) -> None:
        with self._node_for_itself(step) as node:
            node.stop()
            await trio.sleep(step.duration_s)
            node.cont()

    async def _drain_node(self, step: Step) -> None:
        with self._node_for_itself(step) as node:
            await node.terminate()
            await trio.sleep(step.duration_s)
            await self._start(node)

    @contextmanager
    def _node_for_itself(self, step: Step) -> Iterator[ClusterNode]:
        """Reserve a node for one fault, which may last longer than planned."""
        if step.target in self._taken:
            raise _NothingThere(f"{step.target} is not back yet")
        self._taken.add(step.target)
        try:
            yield self._nodes[step.target]
        finally:
            self._taken.remove(step.target)

    async def _start(self, node: ClusterNode) -> None:
        """Start a node again and again until it works: the database may be away."""
        while True:
            try:
                return await node.start()
            except NodeFailed as exc:
                self._say(f"{self._now():7.1f} s  {node.name} did not start: {str(exc).splitlines()[-1]}")
                await trio.sleep(0.5)

    # -- the database

    async def _database(self, step: Step) -> None:
        await self._cluster.stop_postgres(
            signum=signal.SIGINT if step.kind is Kind.RESTART_DATABASE else signal.SIGKILL
        )
        await trio.sleep(step.duration_s)
        await self._cluster.start_postgres()

    async def _fail_over(self, _step: Step) -> None:
        await self._cluster.fail_over()

    async def _end_backend(self, step: Step) -> None:
        role = {Kind.END_LEASE: "lease", Kind.END_BUS: "listen"}.get(step.kind)
        pids = [one.pid for one in await self._cluster.backends() if role in {None, one.role}]
        await self._cluster.end_backends([_chosen(pids, step)])

    # -- the ways between

    def _way(self, step: Step) -> FaultProxy:
        """The fault proxy from a node to the present primary."""
        node = self._nodes[step.target]
        way = node.database_link if self._cluster.standby is not None else node.standby_link
        return way or node.database_link

    async def _stall_database_link(self, step: Step) -> None:
        link = self._way(step)
        ends_s = self._now() + step.duration_s

        def stall(connection: ProxiedConnection) -> None:
            _stall(connection, max(0.0, ends_s - self._now()))

        with _on_all(link, stall):
            await trio.sleep(step.duration_s)

    async def _slow_database_link(self, step: Step) -> None:
        link = self._way(step)
        with _on_all(link, lambda connection: _delay(connection, SLOW_S)):
            await trio.sleep(step.duration_s)
        for connection in list(link.open.values()):
            _delay(connection, 0.0)

    async def _cut_database_link(self, step: Step) -> None:
        self._way(step).cut_all()

    async def _stall_connection(self, step: Step) -> None:
        connections = list(self._way(step).open.values())
        _stall(_chosen(connections, step), step.duration_s)
        await trio.sleep(step.duration_s)

    async def _stall_write(self, step: Step) -> None:
        """Stall a connection with a write under way, at one of three moments.

        Before its transaction has begun (it holds no lock, and others may write meanwhile), before
        the write itself has gone, or before its COMMIT has.
        """
        link = self._way(step)
        kind = step.pick * 10 % 1
        marks = [BEGIN] if kind < 0.7 else [MARK] if kind < 0.85 else [COMMIT]
        caught = trio.Event()

        def arm(connection: ProxiedConnection) -> None:
            def spring() -> None:
                if not caught.is_set():
                    caught.set()
                    _stall(connection, step.duration_s)

            connection.upstream.trap(lambda data: any(mark in data for mark in marks), spring)

        with _on_all(link, arm):
            with trio.move_on_after(WRITE_S / 2):
                await caught.wait()
            marks.append(BEGIN)  # whatever comes
            with trio.move_on_after(WRITE_S / 2):
                await caught.wait()
        for connection in list(link.open.values()):
            connection.upstream.disarm()
        if not caught.is_set():
            raise _NothingThere("nothing is written there")
        ends_s = self._now() + step.duration_s
        if step.pick < CUTS:
            await trio.sleep(min(THEN_S, step.duration_s / 2))
            self._cluster.front.cut_all(self._nodes[step.target].address)
        await trio.sleep(max(0.0, ends_s - self._now()))

    async def _withhold_lease(self, step: Step) -> None:
        """Keep a node from its lease, so that other nodes take what it holds.

        It goes on with what it has: its clients and its connection to the log.
        """
        link = self._way(step)
        ends_s = self._now() + step.duration_s

        def withhold(connection: ProxiedConnection) -> None:
            def stall() -> None:
                _stall(connection, max(0.0, ends_s - self._now()))

            if LEASE in connection.upstream.opening:
                connection.cut()
            elif not connection.upstream.opening:
                connection.upstream.trap(lambda data: LEASE in data, stall)

        with _on_all(link, withhold):
            await trio.sleep(step.duration_s)
        for connection in list(link.open.values()):
            connection.upstream.disarm()

    async def _half_open_lease(self, step: Step) -> None:
        """End the connection of a lease for the database alone: its node has to find out."""
        leases = [one for one in self._way(step).open.values() if LEASE in one.upstream.opening]
        for lease in leases:
            lease.cut(client=False)
        await trio.sleep(step.duration_s)
        for lease in leases:
            lease.cut(target=False)

    async def _stall_bus(self, step: Step) -> None:
        """Stall what a node listens on; all else that it has goes on."""
        ends_s = self._now() + step.duration_s

        def stall(connection: ProxiedConnection) -> None:
            if BUS in connection.upstream.opening:
                _stall(connection, max(0.0, ends_s - self._now()))
            elif not connection.upstream.opening:
                connection.upstream.trap(
                    lambda data: BUS in data, lambda: _stall(connection, max(0.0, ends_s - self._now()))
                )

        link = self._way(step)
        with _on_all(link, stall):
            await trio.sleep(step.duration_s)
        for connection in list(link.open.values()):
            connection.upstream.disarm()

    async def _half_close_connection(self, step: Step) -> None:
        connections = list(self._way(step).open.values())
        _chosen(connections, step).downstream.half_close()

    async def _clients(self, step: Step) -> None:
        address = self._nodes[step.target].address
        connections = [one for one in self._cluster.front.open.values() if one.target_address == address]
        if step.kind is Kind.HALF_CLOSE_CLIENT:
            _chosen(connections, step).upstream.half_close()
        for connection in connections:
            if step.kind is Kind.CUT_CLIENTS:
                connection.cut()
            elif step.kind is Kind.STALL_CLIENTS:
                _stall(connection, step.duration_s)
        await trio.sleep(step.duration_s)


class _NothingThere(Exception):
    """A fault finds nothing to hit."""


def _chosen(among: Sequence[T], step: Step) -> T:
    if not among:
        raise _NothingThere("there is none")
    return among[int(step.pick * len(among))]


def _stall(connection: ProxiedConnection, seconds: float) -> None:
    connection.upstream.stall(seconds)
    connection.downstream.stall(seconds)


def _delay(connection: ProxiedConnection, seconds: float) -> None:
    connection.upstream.delay(seconds)
    connection.downstream.delay(seconds)


@contextmanager
def _on_all(link: FaultProxy, do: Callable[[ProxiedConnection], None]) -> Iterator[None]:
    """Apply a change to all connections, also those that begin within the block."""

    async def script(connection: ProxiedConnection) -> None:
        do(connection)

    for connection in list(link.open.values()):
        do(connection)
    before, link.script = link.script, script
    try:
        yield
    finally:
        link.script = before
