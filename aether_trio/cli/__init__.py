"""The `aether` command. Each command has a file, which is imported on use.

So `aether version` opens no gateway.
"""

from __future__ import annotations


def main() -> None:
    """Run the `aether` command line of this process (the console script)."""
    from aether_trio.cli.app import app

    app(prog_name="aether")
