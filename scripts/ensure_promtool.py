"""Find promtool for the tests of alerts, or fetch it on Debian or Ubuntu.

Prints its path; exits with 1 when there is none. Looked for: the variable PROMTOOL, then promtool
on PATH and beside this Python. The package is unpacked and not installed, as it would start a
server on port 9090.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ADVICE = (
    "no promtool was found: install Prometheus (Debian, Ubuntu: apt-get install prometheus), or name its executable "
    "in the environment variable PROMTOOL. Without it the tests of alerts are skipped; with CI=true they fail."
)
BESIDE = Path(sys.prefix) / "bin" / "promtool"


def find() -> str | None:
    """Return the path of promtool, or None; exit when PROMTOOL cannot be run."""
    named = os.environ.get("PROMTOOL")
    if named:
        path = shutil.which(named)
        if path is None:
            raise SystemExit(f"PROMTOOL is {named!r}, which is not an executable file")
        return path
    return shutil.which("promtool") or shutil.which(BESIDE)


def fetch() -> bool:
    """Unpack Debian's package beside this Python; return whether that went well."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    print("fetching promtool for the tests of alerts (about 20 MB)", flush=True)

    def run(*command: str, cwd: str) -> bool:
        return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, check=False).returncode == 0

    with tempfile.TemporaryDirectory() as place:
        if not run("apt-get", "download", "prometheus", cwd=place):
            may_update = hasattr(os, "geteuid") and os.geteuid() == 0
            if not (may_update and run("apt-get", "update", cwd=place)):
                return False
            if not run("apt-get", "download", "prometheus", cwd=place):
                return False
        for package in Path(place).glob("prometheus_*.deb"):
            if run("dpkg-deb", "-x", str(package), "unpacked", cwd=place):
                shutil.copy(Path(place) / "unpacked/usr/bin/promtool", BESIDE)
                return True
    return False


def main() -> int:
    """Print the path of promtool, fetched if need be; return 1 without one."""
    path = find()
    if path is None and fetch():
        path = find()
    if path is None:
        print(ADVICE, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
