"""`aether serve --workers N`: runs N gateway processes on one port.

They share a machine and a database; each is a node of the cluster like any other. The kernel
spreads connections over them (SO_REUSEPORT, socket(7)). This process accepts nothing: it holds the
ports, bound and not listening, so that no other program takes one while a worker is away; that also
turns 0 into a port which is the same for all.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aether_trio.cli import exits
from aether_trio.cli.json_lines import begin_log
from aether_trio.cli.node_supervisor import arguments_of, count_of, run, run_nodes
from aether_trio.cli.options import ServingOptions
from aether_trio.cli.ready_file import prepared_ready_file
from aether_trio.cli.running import data_text, manner_text, refuse_missing_files, refuse_open_gateway
from aether_trio.cli.start_errors import start_error
from aether_trio.config import Settings
from aether_trio.config.settings import TRANSPORTS
from aether_trio.devtools.node_process import NodeProcess, Ready
from aether_trio.transport.socket.listener import bind_tcp
from aether_trio.version import __version__

STDERR = 2


def run_workers(count: int, settings: Settings, given: ServingOptions) -> None:
    """Run worker processes until drained. Exits by CliError or SystemExit."""
    begin_log(settings.logging)
    if settings.storage.database is None:
        raise exits.CliError(
            "--workers needs a database that the workers share: give one with --database.", exits.SETTINGS
        )
    refuse_open_gateway(settings)
    refuse_missing_files(settings)
    ready = prepared_ready_file(given.ready_file)
    with ExitStack() as stack:
        try:
            ports = stack.enter_context(reserved_ports(settings))
        except OSError as error:
            raise start_error(error, settings) from error
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aether-workers-")))
        base = settings.gateway.node_name or socket.gethostname()
        nodes = []
        for number in range(count):
            overrides: dict[str, Any] = {
                **ports,
                "gateway.reuse_port": True,
                "gateway.node_name": f"{base}-{number + 1}",
            }
            if settings.ops.port:
                overrides["ops.port"] = settings.ops.port + number
            arguments = arguments_of("serve", given, overrides)
            nodes.append(NodeProcess(f"{base}-{number + 1}", arguments, directory, output=STDERR))
        if ready is not None:
            stack.callback(ready.remove)
        run(partial(run_nodes, nodes, partial(_announce, settings), ready=ready, reloads=True))


@contextmanager
def reserved_ports(settings: Settings) -> Iterator[dict[str, int]]:
    """Reserve the transports' ports until the block ends. Raises OSError."""
    wanted = {"gateway.port": settings.gateway.port}
    for transport in TRANSPORTS:
        section = getattr(settings, transport)
        if section.enabled and section.port is not None:
            wanted[f"{transport}.port"] = section.port
    with ExitStack() as held:
        found: dict[str, int] = {}
        for name, port in wanted.items():
            # A program that listens there with SO_REUSEPORT is only found without it.
            for probe in bind_tcp(settings.gateway.host, port):
                probe.close()
            sockets = bind_tcp(settings.gateway.host, port, reuse_port=True)
            for one in sockets:
                held.enter_context(one)
            found[name] = sockets[0].getsockname()[1]
        yield found


def _announce(settings: Settings, ready: Sequence[Ready]) -> str:
    tls = " with TLS" if settings.tls.cert else ""
    address = ready[0].gateway
    lines = [
        f"aether {__version__} is serving on {address}{tls} with {count_of(len(ready), 'worker')} ({manner_text(settings)})"
    ]
    lines += [
        f"  {'workers' if number == 0 else '       '} process {one.pid}"
        + (f"  ops http://{one.ops}" if one.ops else "")
        for number, one in enumerate(ready)
    ]
    lines.append(f"  data    {data_text(settings)}")
    lines.append("  stop    SIGTERM or Ctrl-C drains all; a second one stops at once")
    return "\n".join(lines)
