"""Starts a cluster of processes to break: PostgreSQL, gateways, and fault proxies.

    async with open_process_cluster(3) as cluster:
        async with AgentClient(f"aether://{cluster.front.address}", ...) as agent:      # some node
            await cluster.nodes[0].kill()                   # SIGKILL
            cluster.nodes[1].database_link.cut_all()        # RST on every connection to PostgreSQL
            await cluster.restart_postgres(signum=signal.SIGKILL)
            await cluster.nodes[0].start()                  # on the same ports

              ┌── front (a node for each connection, in turn) ──┐
    clients ──┤                                                 ├──▶ node ──▶ PostgreSQL
              └── node.link, one for each node ─────────────────┘     └ by node.database_link

Nothing has to be installed but the extra `cluster`. Everything is gone when the block ends, and
dies with this process. Durability is off (embedded.FAST): what is killed is processes, not the
machine. All methods belong to one trio run; those of PostgreSQL take turns.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

import aether_trio
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.devtools.node_process import NodeFailed, NodeProcess
from aether_trio.devtools.ports import HeldPorts, held_port
from aether_trio.devtools.round_robin import RoundRobin
from aether_trio.storage.postgres.embedded import FAST, SUPERUSER, EmbeddedPostgres

__all__ = ["ClusterNode", "PostgresSession", "ProcessCluster", "open_process_cluster"]

T = TypeVar("T")

STOP_S: Final = 30.0
SCHEMA: Final = "aether"


@dataclass(frozen=True, slots=True)
class PostgresSession:
    """A gateway's connection to PostgreSQL; `role` is "writer", "lease", "bus", ..."""

    pid: int
    role: str


class ClusterNode:
    """One gateway process of a ProcessCluster, with its lasting fault proxies."""

    def __init__(
        self,
        name: str,
        process: NodeProcess,
        link: FaultProxy,
        database_link: FaultProxy,
        standby_link: FaultProxy | None = None,
    ) -> None:
        self.name = name
        self.link = link
        self.database_link = database_link
        """To the primary of the beginning."""
        self.standby_link = standby_link
        self.stopped = False
        """By SIGSTOP."""
        self._serves = False
        self._process = process
        self._ports = HeldPorts()
        self._settled: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        """Whether the gateway process exists, stopped or not."""
        return self._process.running

    @property
    def serving(self) -> bool:
        """Whether the process runs and has become ready, stopped or not."""
        return self.running and self._serves

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        """HOST:PORT of the gateway without a proxy; the same after each start."""
        assert self._process.ready is not None, "it was never started"
        return self._process.ready.gateway

    @property
    def ops_address(self) -> str:
        assert self._process.ready is not None, "it was never started"
        return self._process.ready.ops

    @property
    def returncode(self) -> int | None:
        """The exit code of the process's last end; None while it runs."""
        return None if self.running else self._process.returncode

    def output(self) -> str:
        """Return the end of the process's output, over all starts."""
        return self._process.said()

    def printed(self) -> str:
        """Return all of the process's output, over all starts."""
        return self._process.printed()

    async def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        code = await self._process.wait()
        self._hold_ports()
        self.stopped = False
        self._settled()
        return code

    async def start(self) -> None:
        """Start the gateway on the ports it had before. Raises NodeFailed with its output."""
        ready = self._process.ready
        pinned: list[str] = []
        if ready is not None:
            for key, address in (("gateway.port", ready.gateway), ("ops.port", ready.ops)):
                pinned += ["--set", f"{key}={address.rpartition(':')[2]}"]
        self.stopped = self._serves = False
        ready = await self._process.start(*pinned)
        self._ports.release()
        self.link.target = ready.gateway
        self._serves = True
        self._settled()

    async def kill(self) -> None:
        """Kill the gateway with SIGKILL, and wait for its end."""
        await self._process.kill()
        self._hold_ports()
        self.stopped = False
        self._settled()

    def stop(self) -> None:
        """Stop the process with SIGSTOP; the kernel still accepts for it."""
        self._process.send(signal.SIGSTOP)
        self.stopped = True
        self._settled()

    def cont(self) -> None:
        """Let a stopped process go on, with SIGCONT."""
        self._process.send(signal.SIGCONT)
        self.stopped = False
        self._settled()

    async def terminate(self) -> int:
        """Send SIGTERM, and wait for the drain; return the exit code."""
        self._process.send(signal.SIGTERM)
        code = await self._process.wait()
        self._hold_ports()
        return code

    def _hold_ports(self) -> None:
        ready = self._process.ready
        if ready is not None:
            self._ports.hold((ready.gateway, ready.ops))

    async def restart(self) -> None:
        """Drain the gateway and start it again, as an upgrade does."""
        await self.terminate()
        await self.start()

    def on_change(self, look: Callable[[], None]) -> None:
        """Have `look` called when the process was started, killed, stopped or continued."""
        self._settled = look

    async def close(self) -> None:
        """End the process, by a drain if possible; for the cluster."""
        self.cont()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_S):
                if self.running:
                    await self.terminate()
            await self._process.kill()
        self._ports.release()


class ProcessCluster:
    """A running cluster; `front` is its load balancer, and `turns` selects its nodes."""

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        standby: EmbeddedPostgres | None,
        nodes: Sequence[ClusterNode],
        front: FaultProxy,
        turns: RoundRobin,
    ) -> None:
        self.postgres = postgres
        """The primary."""
        self.standby = standby
        self.nodes = nodes
        self.front = front
        self.turns = turns
        self._turn = trio.Lock()
        for node in nodes:
            node.on_change(self._look)

    @property
    def alive(self) -> list[ClusterNode]:
        """The nodes that run and are not stopped."""
        return [node for node in self.nodes if node.running and not node.stopped]

    async def start(self) -> None:
        """Start every node that does not run, together. Raises NodeFailed."""
        failed: list[NodeFailed] = []

        async def start(node: ClusterNode) -> None:
            try:
                await node.start()
            except NodeFailed as exc:
                failed.append(exc)

        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                if not node.running:
                    nursery.start_soon(start, node)
        if failed:
            raise failed[0]

    async def stop_postgres(self, *, signum: int = signal.SIGINT) -> None:
        """Stop PostgreSQL: SIGINT shuts down fast, SIGQUIT at once, SIGKILL is a crash."""
        await self._in_turn(partial(self.postgres.stop, signum=signum))

    async def start_postgres(self) -> None:
        """Start PostgreSQL again, on the same data and port; return when it is ready."""
        await self._in_turn(self.postgres.start)

    async def restart_postgres(self, *, signum: int = signal.SIGINT) -> None:
        """Stop PostgreSQL with a signal, and start it again."""
        await self._in_turn(partial(self.postgres.restart, signum=signum))

    async def fail_over(self, *, signum: int = signal.SIGKILL) -> None:
        """End the primary for good and promote the synchronous standby to `postgres`."""
        assert self.standby is not None, "there is no standby; open the cluster with standby=True"
        former, self.postgres, self.standby = self.postgres, self.standby, None
        await self._in_turn(partial(former.stop, signum=signum))
        await self._in_turn(partial(self.postgres.psql, "SELECT pg_promote()"))

    async def sql(self, text: str) -> list[list[str]]:
        """Run SQL with the nodes' schema; return rows as text. Raises StorageSetupError."""
        said = await self._in_turn(partial(self.postgres.psql, f"SET search_path = {SCHEMA}; {text}"))
        return [line.split("|") for line in said.splitlines()]

    async def backends(self) -> list[PostgresSession]:
        """Return the nodes' connections to PostgreSQL, in the order of their process ids."""
        rows = await self.sql(
            "SELECT pid, substr(application_name, 8) FROM pg_stat_activity WHERE application_name LIKE 'aether-%' ORDER BY pid"
        )
        return [PostgresSession(int(pid), role) for pid, role in rows]

    async def end_backends(self, pids: Iterable[int]) -> None:
        """Have PostgreSQL end these connections (pg_terminate_backend)."""
        chosen = ",".join(str(int(pid)) for pid in pids)
        await self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY('{{{chosen}}}')")  # noqa: S608

    def _look(self) -> None:
        """Update the front's nodes, as a load balancer's health check does."""
        self.turns.addresses = [node.address for node in self.nodes if node.serving]
        self.turns.out = {node.address for node in self.nodes if node.serving and node.stopped}

    async def _in_turn(self, work: Callable[[], T]) -> T:
        async with self._turn:
            return await trio.to_thread.run_sync(work)


@asynccontextmanager
async def open_process_cluster(
    nodes: int,
    *,
    settings: Sequence[str] = (),
    postgres: Mapping[str, str] | None = None,
    command: Sequence[str] = ("dev",),
    standby: bool = False,
    start: bool = True,
    proxied: bool = True,
    keep: Path | None = None,
    checkout: Path | None = None,
) -> AsyncIterator[ProcessCluster]:
    """Open a cluster of PostgreSQL and gateways, serving or yet to be started.

    `settings` are texts for the nodes' `--set`, `postgres` what PostgreSQL has beside
    embedded.FAST. `command` is what the nodes run. Without `proxied` the nodes' `database_link` is
    not on their way to PostgreSQL: a proxy costs more of each statement than PostgreSQL does. The
    nodes are of this package, or of the one in the directory `checkout`. With `standby` there is a
    synchronous hot standby, and the nodes know both. The processes' output is left in `keep`.
    Raises NodeFailed or StorageSetupError with the output of the process that did not start.
    """
    home = _make_home()
    given = {**FAST, **(postgres or {})}
    ports = ExitStack()
    server = EmbeddedPostgres(home / "postgres", port=ports.enter_context(held_port()), settings=given)
    servers = [server]
    raised: BaseException | None = None
    try:
        await trio.to_thread.run_sync(server.start)
        if standby:
            servers.append(EmbeddedPostgres(home / "standby", port=ports.enter_context(held_port()), settings=given))
            await trio.to_thread.run_sync(_follow, servers[0], servers[1])
        async with AsyncExitStack() as stack:
            made = []
            for number in range(1, nodes + 1):
                ways = [await stack.enter_async_context(open_fault_proxy(f"127.0.0.1:{one.port}")) for one in servers]
                link = await stack.enter_async_context(open_fault_proxy(RoundRobin(())))
                hosts = [way.address for way in ways] if proxied else [f"127.0.0.1:{one.port}" for one in servers]
                dsn = f"postgresql://{SUPERUSER}@{','.join(hosts)}/postgres"
                sets = [
                    *settings,
                    f"storage.database={dsn}",
                    f"storage.schema={SCHEMA}",
                    f"gateway.node_name=node-{number}",
                    f"gateway.data_dir={home / f'node-{number}'}",
                ]
                arguments = [
                    *command,
                    "--port",
                    "0",
                    "--ops-port",
                    "0",
                    *(part for one in sets for part in ("--set", one)),
                ]
                process = NodeProcess(f"node-{number}", arguments, home, environment=_environment(checkout))
                made.append(ClusterNode(f"node-{number}", process, link, *ways))
            turns = RoundRobin(())
            front = await stack.enter_async_context(open_fault_proxy(turns))
            cluster = ProcessCluster(server, servers[1] if standby else None, made, front, turns)
            try:
                if start:
                    await cluster.start()
                yield cluster
            except BaseException as exc:
                raised = exc
                raise
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as nursery:
                        for node in made:
                            nursery.start_soon(node.close)
    except BaseExceptionGroup as group:
        # The proxies are nurseries, which the caller need not know.
        if raised is None or not _is_all(group, raised):
            raise
        raise raised from raised.__cause__
    finally:
        with trio.CancelScope(shield=True):
            for one in reversed(servers):
                await trio.to_thread.run_sync(partial(one.stop, signum=signal.SIGQUIT))
            ports.close()
            if keep is not None:
                _keep_output(home, keep)
            shutil.rmtree(home, ignore_errors=True)


def _follow(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Start a hot standby that the primary waits for in each commit from now on."""
    standby.create_standby(primary)
    standby.start()
    primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.psql("SELECT pg_reload_conf()")
    while primary.psql("SELECT sync_state FROM pg_stat_replication") != "sync":
        time.sleep(0.05)


def _is_all(group: BaseException, error: BaseException) -> bool:
    """Whether an exception group, or a group in a group, holds only this error."""
    while group is not error:
        if not isinstance(group, BaseExceptionGroup) or len(group.exceptions) > 1:
            return False
        (group,) = group.exceptions
    return True


def _keep_output(home: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for said in (*home.glob("*.log"), *home.glob("*/log")):
        shutil.copyfile(said, keep / "-".join(said.relative_to(home).parts))


def _make_home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="aether-cluster-"))
    home.chmod(0o755)  # PostgreSQL may run as another user
    return home


def _environment(checkout: Path | None) -> dict[str, str]:
    """Return an environment for nodes: no AETHER_ settings, and code from `checkout`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AETHER_")}
    root = str(checkout or Path(aether_trio.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    if checkout is not None:
        kept["PYTHONSAFEPATH"] = "1"  # not the one in the working directory
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
