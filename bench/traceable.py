"""Run a module as a program that other processes of the same user may inspect.

`python -m bench.traceable MODULE [ARGS]`. Many systems let only an ancestor do so (Yama); py-spy is
none of a gateway's. Elsewhere this changes nothing.
"""

from __future__ import annotations

import ctypes
import runpy
import sys
from typing import Final

PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = -1


def allow() -> None:
    """Let every process of this user inspect this one."""
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)
    except (OSError, AttributeError):
        pass  # not Linux: there is nothing to allow


def main() -> None:
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    allow()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
