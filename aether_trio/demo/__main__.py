"""`python -m aether_trio.demo [--once] [--pace SECONDS]`. Exit code 0 when all happened as told, 1 when not."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal

import click


@click.command()
@click.option("--once", is_flag=True, help="End after the story instead of serving on.")
@click.option(
    "--pace", "pace_s", type=click.FloatRange(0, 5), default=0.4, show_default=True, metavar="SECONDS",
    help="The breath between two lines.",
)  # fmt: skip
def main(once: bool, pace_s: float) -> None:
    """A gateway, two agents, a user's window and a progress line; half of it is killed on the way."""
    if importlib.util.find_spec("scitrera_aether_client") is None:
        raise click.ClickException("the demo needs the published SDK: pip install 'aether-trio[sdk]'")
    for name in [name for name in os.environ if name.startswith("AETHER_")]:
        del os.environ[name]  # settings of somebody's own gateway or client; the SDK reads them too
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read at import; lost connections are part of the story
    raise SystemExit(0 if asyncio.run(_run(once, pace_s)) else 1)


async def _run(once: bool, pace_s: float) -> bool:
    from aether_trio.demo.play import run
    from aether_trio.demo.screen import Screen

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    return await run(Screen(), once=once, pace_s=pace_s, stop=stop)


if __name__ == "__main__":
    main()
