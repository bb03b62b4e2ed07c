"""Find a Chromium for the browser tests, or install it on Debian or Ubuntu.

Prints its path; exits with 1 when none can be installed. Looked for: the variable CHROMIUM, then
chromium, chromium-browser and google-chrome on PATH. Installing needs root and apt-get.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ADVICE = (
    "no Chromium was found: install it (Debian, Ubuntu: apt-get install chromium), or name its executable in the "
    "environment variable CHROMIUM. Without it the browser tests are skipped; with CI=true they fail."
)


def find() -> str | None:
    """Return the path of a Chromium, or None; exit when CHROMIUM cannot be run."""
    named = os.environ.get("CHROMIUM")
    if named:
        path = shutil.which(named)
        if path is None:
            raise SystemExit(f"CHROMIUM is {named!r}, which is not an executable file")
        return path
    return next((path for path in map(shutil.which, NAMES) if path), None)


def install() -> bool:
    """Install Chromium with apt-get; return whether that could be tried and went well."""
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    print("installing Chromium for the browser tests (about 100 MB to fetch)", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            return False
    return True


def main() -> int:
    """Print the path of a Chromium, installed if need be; return 1 without one."""
    path = find()
    if path is None and install():
        path = find()
    if path is None:
        print(ADVICE, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
