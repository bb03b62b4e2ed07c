"""`aether dev --nodes N`: runs a cluster on this machine, with its database.

    clients ──▶ front, a node for each connection in turn
                ──▶ node-1 ... node-N ──▶ PostgreSQL, from a wheel, in the data directory

The front is this process, so it is no measure of a load balancer; each node has a separate address,
too.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.json_lines import begin_log
from aether_trio.cli.node_supervisor import FIRST_PAUSE_S, LONGEST_PAUSE_S, arguments_of, count_of, run, run_nodes
from aether_trio.cli.options import ServingOptions
from aether_trio.cli.output import announce
from aether_trio.cli.ready_file import ReadyFile, prepared_ready_file
from aether_trio.cli.running import manner_text, raise_file_limit, try_lines
from aether_trio.cli.sidecar_process import Sidecar
from aether_trio.cli.start_errors import start_error
from aether_trio.config import Settings
from aether_trio.config.settings import TRANSPORTS
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.devtools.node_process import NodeProcess, Ready
from aether_trio.devtools.round_robin import RoundRobin
from aether_trio.storage.data_dir_lock import lock_directory
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.embedded import EmbeddedPostgres, binaries
from aether_trio.version import __version__

STDERR: Final = 2
NEEDED: Final = ("asyncpg",)
LOOK_S: Final = 0.25
"""Between two looks whether the database is there."""


def run_dev_nodes(count: int, settings: Settings, given: ServingOptions, sidecar: Sidecar | None = None) -> None:
    """Run a cluster until it has drained. Exits by CliError or SystemExit."""
    begin_log(settings.logging)
    refuse_without_packages()
    refuse_own_ports(settings)
    raise_file_limit()  # for the connections of the front
    ready = prepared_ready_file(given.ready_file)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aether-nodes-")))
        try:
            dsn, data, server = stack.enter_context(_database(settings, directory))
        except StorageSetupError as error:
            raise exits.CliError(str(error), exits.SETTINGS, lines=True) from error
        nodes = []
        for number in range(count):
            overrides = {
                "gateway.port": settings.gateway.port and settings.gateway.port + 1 + number,
                "ops.port": settings.ops.port and settings.ops.port + number,
                "gateway.node_name": f"node-{number + 1}",
                "storage.database": dsn,
            }
            arguments = arguments_of("dev", given, overrides)
            nodes.append(NodeProcess(f"node-{number + 1}", arguments, directory, output=STDERR))
        if ready is not None:
            stack.callback(ready.remove)
        try:
            run(_run, nodes, settings, data, server, ready, sidecar)
        except OSError as error:
            raise start_error(error, settings) from error


def refuse_without_packages() -> None:
    """Raise CliError when a package that a cluster needs is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise exits.CliError(
            f"several nodes share a PostgreSQL, and {' and '.join(missing)} for it is not installed. "
            "Install it, and a PostgreSQL to try it with: pip install 'aether-trio[cluster]'",
            exits.SETTINGS,
        )


def refuse_own_ports(settings: Settings) -> None:
    """Raise CliError when a transport has a separate port, as nodes cannot share it."""
    for transport in TRANSPORTS:
        if getattr(settings, transport).port:
            raise exits.CliError(
                f"{transport}.port is set, and the nodes of --nodes cannot all have that port: leave it unset.",
                exits.SETTINGS,
            )


@contextmanager
def _database(settings: Settings, scratch: Path) -> Iterator[tuple[str, str, EmbeddedPostgres | None]]:
    """Yield the database's URL, description, and server if it is started here."""
    if settings.storage.database is not None:
        yield settings.storage.database, "the database that was given", None
        return
    binaries()  # raises before anything is made
    with ExitStack() as stack:
        if settings.gateway.ephemeral:
            directory, data = scratch, "a temporary directory, until the end"
        else:
            directory = stack.enter_context(lock_directory(Path(settings.gateway.data_dir)))
            data = str(directory.absolute())
        server = EmbeddedPostgres(directory.absolute() / "postgres")
        stack.callback(server.stop)
        server.start()
        yield server.dsn(), f"{data}, in a PostgreSQL that belongs to this command (process {server.pid})", server


async def _run(
    nodes: Sequence[NodeProcess],
    settings: Settings,
    data: str,
    server: EmbeddedPostgres | None,
    ready: ReadyFile | None,
    sidecar: Sidecar | None = None,
) -> int | None:
    turns = RoundRobin(())
    host = settings.gateway.host
    async with trio.open_nursery() as nursery, open_fault_proxy(turns, host=host, port=settings.gateway.port) as front:
        if server is not None:
            nursery.start_soon(_keep, server)

        def announce(all_ready: Sequence[Ready]) -> str:
            turns.addresses = [one.gateway for one in all_ready]
            if sidecar is not None:
                nursery.start_soon(sidecar.run, _ClusterAddresses(front.address, all_ready[0]))
            return _text(settings, front, all_ready, data)

        stopped_by = await run_nodes(
            nodes, announce, address=front.address, ready=ready, sidecar=sidecar, ends_with_output=True
        )
        nursery.cancel_scope.cancel()
    return stopped_by


class _ClusterAddresses:
    """The addresses of a cluster: for each transport, the proxy in front of the nodes."""

    def __init__(self, address: str, node: Ready) -> None:
        self.address = address
        self.addresses = dict.fromkeys(node.transports, address)


async def _keep(server: EmbeddedPostgres) -> None:
    """Start the database again whenever it has ended, until cancelled."""
    pause_s = FIRST_PAUSE_S
    while True:
        await trio.sleep(LOOK_S)
        if server.running:
            continue
        announce("the database has ended; it is started again", err=True)
        try:
            # It is not left half-started: the end of this command stops it.
            await trio.to_thread.run_sync(server.restart)
        except StorageSetupError as error:
            announce(f"{error}\nanother attempt follows in {pause_s:g} s", err=True, lines=True)
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        else:
            announce(f"the database is there again (process {server.pid})", err=True)
            pause_s = FIRST_PAUSE_S


def _text(settings: Settings, front: FaultProxy, ready: Sequence[Ready], data: str) -> str:
    lines = [
        f"aether {__version__} is serving on {front.address} with {count_of(len(ready), 'node')} ({manner_text(settings)})"
    ]
    for number, one in enumerate(ready):
        ops = f"  ops http://{one.ops}" if one.ops else ""
        lines.append(f"  node-{number + 1:<2} {one.gateway}  process {one.pid}{ops}")
    lines.append(f"  front   {front.address} gives each connection to the next node")
    lines.append(f"  data    {data}")
    if settings.websocket.page and settings.websocket.enabled:
        lines.append(f"  page    http://{front.address}/")
    lines += try_lines(front.address if settings.grpc.enabled else None, ready[0].ops, indent=8)
    lines.append(
        f"  try     kill -9 {ready[0].pid}    node-1 is started again, and its clients are on another node by then"
    )
    lines.append("  stop    Ctrl-C drains all; a second one stops at once")
    return "\n".join(lines)
