"""Describe the machine on which a run is measured."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("trio", "h2", "protobuf", "grpclib", "msgspec")
SYNCS = 20


def describe(data_root: Path | None) -> dict[str, Any]:
    """Facts on the machine as JSON, without host name and paths."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
        "fsync_us": round(fsync_us(data_root), 1),
    }


def fsync_us(place: Path | None) -> float:
    """Measure the median time, in µs, to append 4 KiB and fdatasync them.

    The file is where the gateway's data will be; tmpfs shows as almost none.
    """
    with tempfile.TemporaryFile(dir=place) as file:
        took = []
        for _ in range(SYNCS):
            start = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - start)
    return sorted(took)[SYNCS // 2] * 1e6


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
