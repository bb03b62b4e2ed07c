"""Prints what it finds of its process, then ends as its first argument says."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

from tests.helpers.fork_server import LIMITS


def standard(name: str) -> dict[str, object]:
    file = getattr(sys, name)
    assert file is getattr(sys, f"__{name}__")
    return {
        "file": str(Path(f"/proc/self/fd/{file.fileno()}").readlink()).partition(":")[0],
        "terminal": file.isatty(),
        **{key: str(getattr(file, key)) for key in ("name", "mode", "encoding", "errors", "newlines")},
        "buffering": (file.line_buffering, file.write_through, type(file.buffer).__name__),
    }


def found() -> dict[str, object]:
    own = Path("/proc/self")
    return {
        "arguments": sys.argv,
        "original": sys.orig_argv,
        "path": sys.path,
        "directory": str(Path.cwd()),
        "environment": dict(os.environ),
        "time zone": time.tzname,
        "warnings": (sys.warnoptions, [str(one) for one in warnings.filters]),
        "standard": [standard(name) for name in ("stdin", "stdout", "stderr")],
        "files": sorted(int(one.name) for one in (own / "fd").iterdir() if one.exists()),
        "signals": {one.name: str(signal.getsignal(one)).partition(" at ")[0] for one in signal.valid_signals()
                    if isinstance(one, signal.Signals)},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "umask": os.umask(0),
        "limits": [resource.getrlimit(one) for one in LIMITS],
        "wakeup": signal.set_wakeup_fd(-1),
        "leader": (os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()),
        "module": (__name__, __file__, __package__, sys.modules["__main__"].__dict__ is globals()),
    }  # fmt: skip


if __name__ == "__main__":
    end = sys.argv[1]
    print(json.dumps(found()))
    print("its error", file=sys.stderr)
    match end:
        case "exit":
            sys.exit(7)
        case "message":
            sys.exit("the reason")
        case "error":
            raise ValueError("it fails")
        case "warning":
            warnings.warn("it is old", DeprecationWarning, stacklevel=1)
        case "input":
            print(ascii(sys.stdin.read()))
        case "closed":
            sys.stdout.flush()
            print("x" * 100_000)
        case "wait":
            print("waits", flush=True)
            signal.pause()
