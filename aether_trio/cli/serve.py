"""`aether serve`: starts a gateway that others can reach."""

from __future__ import annotations

import click

from aether_trio.cli.options import load, serving_options
from aether_trio.cli.running import run_gateway


@click.command(
    name="serve",
    epilog="""
\b
Examples:
  aether keys new --principal agent     make a key, and put its record into aether.yaml
  aether serve --config aether.yaml --set tls.cert=chain.pem --set tls.key=key.pem
  aether serve --config aether.yaml --host 127.0.0.1
  aether serve --config aether.yaml --database postgresql://aether@db.example.com/aether
  aether serve --config aether.yaml --set websocket.port=8080 --set framed.enabled=false
""",
)
@click.option("--host", help="Address to listen on.  [default: 0.0.0.0]")
@click.option("--database", metavar="URL", help="postgresql://... that keeps everything, instead of --data-dir.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Run N processes that share the ports and --database; one that dies is started again. Their ops ports are "
    "--ops-port and those behind it.",
)
@serving_options
def command(
    host: str | None,
    database: str | None,
    workers: int | None,
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
    """Start a gateway that others can reach.

    Everyone who connects must show an API key or a client certificate, whatever kind of principal
    they are. It refuses to start on a reachable address while neither is configured, and to take
    either there without TLS.

    One port speaks gRPC, the binary framing and WebSocket; TRANSPORT.enabled and TRANSPORT.port
    (grpc, framed, websocket) switch one off or give it a separate port.
    """
    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.data_dir": data_dir,
        "gateway.ephemeral": ephemeral,
        "ops.port": ops_port,
        "storage.database": database,
        "logging.level": log_level,
        "logging.format": log_format,
    }
    settings = load(config_file, flags, sets).settings
    if workers is None:
        run_gateway(settings, ready_file=ready_file, until_stdin_ends=until_stdin_ends)
        return
    from aether_trio.cli.workers import run_workers

    run_workers(workers, settings, config_file=config_file, flags=flags, sets=sets, ready_file=ready_file)
