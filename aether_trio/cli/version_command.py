"""`aether version`: shows the version."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import click

from aether_trio.cli.output import print_json, say
from aether_trio.version import __version__


@click.command(name="version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with what it runs on.")
def command(as_json: bool) -> None:
    """Show the version."""
    if not as_json:
        say(f"aether {__version__}")
        return
    parts = {name: metadata.version(name) for name in ("trio", "h2", "grpclib", "protobuf")}
    python = platform.python_version()
    print_json({"aether": __version__, "python": python, "platform": sys.platform, **parts})
