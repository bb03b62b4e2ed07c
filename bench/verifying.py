"""Check an audit log as `aether audit verify` does, and say how long it took.

    python -m bench.verifying DATA_DIR CPUS

CPUS are those that it may use, with commas between them. Its processes begin within the time.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from time import perf_counter

from aether_trio.services.audit.sources import open_sqlite_log
from aether_trio.services.audit.verify import Verification


def main(data_dir: str, cpus: str) -> None:
    os.sched_setaffinity(0, map(int, cpus.split(",")))
    start, used = perf_counter(), _cpu_seconds()
    with open_sqlite_log(Path(data_dir) / "tasks.db") as log:
        verification = Verification(log)
        findings = [finding.text for finding in verification.run()]
    found = {
        "rows": verification.rows,
        "seconds": perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - used,
        "findings": findings,
    }
    print(json.dumps(found))


def _cpu_seconds() -> float:
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in both)


if __name__ == "__main__":
    main(*sys.argv[1:])
