"""`aether serve`."""

from __future__ import annotations

import click

from aether_trio.cli.options import load, settings_options
from aether_trio.cli.running import run_gateway


@click.command(
    name="serve",
    epilog="""
\b
Examples:
  aether keys new --id first            make a key, and put its record into aether.yaml
  aether serve --config aether.yaml
  aether serve --config aether.yaml --set tls.cert=chain.pem --set tls.key=key.pem
""",
)
@click.option("--host", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.  [default: 50051]")
@click.option("--ops-port", type=click.IntRange(0, 65535), help="Port of the ops server.  [default: 9090]")
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where the data lies.  [default: ./aether-data]")
@click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing: the data is deleted at the end.")
@click.option(
    "--ready-file", type=click.Path(dir_okay=False), help="Write {pid, gateway, ops} here once all is served."
)
@click.option("--log-level", help="debug, info, warning or error.")
@click.option("--log-format", help="console or json.")
@settings_options
def command(
    host: str | None,
    port: int | None,
    ops_port: int | None,
    data_dir: str | None,
    ephemeral: bool | None,
    ready_file: str | None,
    log_level: str | None,
    log_format: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Start a gateway that others can reach.

    Everyone who connects must show an API key or a client certificate, whatever kind of principal they are. It refuses
    to start on a reachable address while neither is configured.
    """
    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.data_dir": data_dir,
        "gateway.ephemeral": ephemeral,
        "ops.port": ops_port,
        "logging.level": log_level,
        "logging.format": log_format,
    }
    run_gateway(load(config_file, flags, sets).settings, ready_file=ready_file)
