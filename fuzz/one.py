"""Run libFuzzer on one target, in this process.

`python -m fuzz` starts it as `python -m fuzz.one NAME [its arguments]`.
"""

from __future__ import annotations

import sys
from typing import Final

import trio

INSTRUMENTED: Final = ("aether_trio", "fuzz", "h11", "h2", "hpack", "hyperframe", "wsproto")
"""Whose branches are new ground. Everything that is loaded would be nine thousand functions."""


def main() -> None:
    import atheris

    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz.targets import TARGETS

    async def run() -> None:
        # Some targets ask for trio's time; nothing else of a run is used.
        atheris.Setup([sys.argv[0], *arguments], TARGETS[name].check)
        atheris.Fuzz()

    trio.run(run)


if __name__ == "__main__":
    main()
