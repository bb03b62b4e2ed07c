"""The `aether` command. Each command has a file, which is imported on use.

So `aether version` opens no gateway.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the `aether` command line of this process (the console script)."""
    if sys.argv[1:2] in (["serve"], ["orchestrate"]):  # they have read no file yet to read anew
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from aether_trio.cli.app import app

    app(prog_name="aether")
