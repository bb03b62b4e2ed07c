"""`aether serve`: starts a gateway that others can reach."""

from __future__ import annotations

import click

from aether_trio.cli.hangups import Hangups
from aether_trio.cli.options import ServingOptions, serving_options
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
def command(host: str | None, database: str | None, workers: int | None, given: ServingOptions) -> None:
    """Start a gateway that others can reach.

    Everyone who connects must show an API key or a client certificate, whatever kind of principal
    they are. It refuses to start on a reachable address while neither is configured, and to take
    either there without TLS.

    One port speaks gRPC, the binary framing and WebSocket; TRANSPORT.enabled and TRANSPORT.port
    (grpc, framed, websocket) switch one off or give it a separate port.

    SIGHUP reads certificates, revoked certificates, API keys, identity providers and the keys of
    API tokens anew, all or none; sessions whose credential is gone end.
    """
    hangups = Hangups()
    with hangups.noted():
        given = given.with_flags({"gateway.host": host, "storage.database": database})
        settings = given.load()
        if workers is None:
            run_gateway(
                settings,
                ready_file=given.ready_file,
                until_stdin_ends=given.until_stdin_ends,
                load=given.load,
                hangups=hangups,
            )
            return
        from aether_trio.cli.workers import run_workers

        run_workers(workers, settings, given)
