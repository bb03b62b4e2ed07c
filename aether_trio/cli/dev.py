"""`aether dev`: starts a gateway for development."""

from __future__ import annotations

import click

from aether_trio.cli.options import load, serving_options
from aether_trio.cli.running import run_gateway


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
@serving_options
def command(
    nodes: int | None,
    agents_file: str | None,
    port: int | None,
    ops_port: int | None,
    data_dir: str | None,
    ephemeral: bool | None,
    ready_file: str | None,
    log_level: str | None,
    log_format: str | None,
    until_stdin_ends: bool,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Start a gateway for development.

    It listens on 127.0.0.1 only, asks for no credentials and limits no message rates. Ctrl-C drains
    it: clients are told to reconnect, accepted messages are on the disk.

    One port speaks gRPC, the binary framing, and WebSocket and HTTP: its page in a browser shows
    what the gateway does.
    """
    flags = {
        "gateway.dev": True,
        "gateway.port": port,
        "gateway.data_dir": data_dir,
        "gateway.ephemeral": ephemeral,
        "ops.port": 0 if ops_port is None and port == 0 else ops_port,
        "logging.level": log_level,
        "logging.format": log_format,
    }
    settings = load(config_file, flags, sets).settings
    sidecar = None
    if agents_file is not None:
        from aether_trio.cli.dev_agents import sidecar_for

        sidecar = sidecar_for(agents_file, settings)
    if nodes is None:
        run_gateway(settings, ready_file=ready_file, until_stdin_ends=until_stdin_ends, sidecar=sidecar)
        return
    from aether_trio.cli.dev_nodes import run_dev_nodes

    run_dev_nodes(
        nodes, settings, config_file=config_file, flags=flags, sets=sets, ready_file=ready_file, sidecar=sidecar
    )
