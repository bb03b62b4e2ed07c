"""Runs the demo: `python -m aether_trio.demo [--ask] [--once] [--pace SECONDS]`.

The exit code is 0 if all claims are true, else 1.
"""

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
    help="The pause between two lines.",
)  # fmt: skip
@click.option("--ask", is_flag=True, help="Show how an agent asks, a person approves less, and revokes.")
def main(once: bool, pace_s: float, ask: bool) -> None:
    """Show a gateway, two agents and a user's window, and kill half of them."""
    if importlib.util.find_spec("scitrera_aether_client") is None:
        raise click.ClickException("the demo needs the published SDK: pip install 'aether-trio[sdk]'")
    for name in [name for name in os.environ if name.startswith("AETHER_")]:
        del os.environ[name]  # settings of the user's gateway or client; the SDK reads them too
    # Read at import; lost connections are part of the story.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    raise SystemExit(0 if asyncio.run(_run(once, pace_s, ask=ask)) else 1)


async def _run(once: bool, pace_s: float, *, ask: bool) -> bool:
    from aether_trio.demo.screen import Screen
    from aether_trio.demo.story import run

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    if ask:
        from aether_trio.demo.asking import run_asking

        return await run_asking(Screen(), pace_s=pace_s, stop=stop)
    return await run(Screen(), once=once, pace_s=pace_s, stop=stop)


if __name__ == "__main__":
    main()
