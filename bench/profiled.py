"""Profile a module with cProfile: `python -m bench.profiled OUT MODULE [ARGS]`.

The gateway's loop thread is the one profiled (the database's threads are not). cProfile makes calls
dearer than lines, so read proportions; for true ones give `--profile` a name that ends in .svg or
.json, which runs py-spy instead.
"""

from __future__ import annotations

import cProfile
import pstats
import runpy
import sys
from pathlib import Path

TOP = 40


def main() -> None:
    """Profile until the module returns or raises SystemExit."""
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    profile = cProfile.Profile()
    try:
        profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
    finally:
        profile.dump_stats(out)
        with Path(out).with_suffix(".txt").open("w") as text:
            pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(TOP)


if __name__ == "__main__":
    main()
