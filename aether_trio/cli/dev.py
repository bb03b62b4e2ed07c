"""`aether dev`: starts a gateway for development."""

from __future__ import annotations

import click

from aether_trio.cli.options import ServingOptions, serving_options
from aether_trio.cli.running import run_gateway
from aether_trio.cli.sidecar_process import Sidecar, together


@click.command(
    name="dev",
    epilog="""
\b
Examples:
  aether dev                                    data in ./aether-data
  aether dev --ephemeral                        data goes away with it
  aether dev --port 0 --ready-file ready.json   for scripts: a free port, told in a file
  aether dev --nodes 3                          a cluster with a PostgreSQL that it starts
  aether dev --agents agents.yaml               agents start when they are sent a message
  aether dev --workflows workflows/             workflows are applied when their files change
  aether dev --set log.retention_age_s=60
""",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 16),
    metavar="N",
    help="Run N gateways on a PostgreSQL that is started with them, and give each connection to --port to the next one. "
    "Needs aether-trio[cluster].",
)
@click.option(
    "--agents",
    "agents_file",
    type=click.Path(dir_okay=False),
    metavar="AGENTS.YAML",
    help="Start the agents of this file when a message or a task needs them; `aether orchestrate --help` says what is in it.",
)
@click.option(
    "--workflows",
    "workflows_directory",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Apply the workflows of this directory, and again whenever a file changes.",
)
@serving_options
def command(nodes: int | None, agents_file: str | None, workflows_directory: str | None, given: ServingOptions) -> None:
    """Start a gateway for development.

    It listens on 127.0.0.1 only, asks for no credentials and limits no message rates. Ctrl-C drains
    it: clients are told to reconnect, accepted messages are on the disk.

    One port speaks gRPC, the binary framing, and WebSocket and HTTP: its page in a browser shows
    what the gateway does.
    """
    given = given.with_flags({"gateway.dev": True})
    if given.flags["ops.port"] is None and given.flags["gateway.port"] == 0:
        given = given.with_flags({"ops.port": 0})
    settings = given.load()
    sidecars: list[Sidecar] = []
    if agents_file is not None:
        from aether_trio.cli.dev_agents import sidecar_for

        sidecars.append(sidecar_for(agents_file, settings))
    if workflows_directory is not None:
        from aether_trio.cli.dev_workflows import workflows_sidecar

        sidecars.append(workflows_sidecar(workflows_directory, settings))
    sidecar = together(*sidecars) if sidecars else None
    if nodes is None:
        run_gateway(settings, ready_file=given.ready_file, until_stdin_ends=given.until_stdin_ends, sidecar=sidecar)
        return
    from aether_trio.cli.dev_nodes import run_dev_nodes

    run_dev_nodes(nodes, settings, given, sidecar)
