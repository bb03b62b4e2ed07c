"""The `aether` command. Each command has a file, which is imported on use.

So `aether version` opens no gateway.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process; the console script `aether` calls it."""
    from aether_trio.cli.app import app

    app(prog_name="aether")
