"""Find a program that tests need, or fetch it on Debian or Ubuntu.

    python scripts/ensure_program.py chromium

Prints its path; exits with 1 when there is none. Looked for: the variable CHROMIUM or PROMTOOL,
then the usual names on PATH and beside this Python. Chromium is installed with apt-get, which needs
root. The package of promtool is unpacked and not installed, as it would start a server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BIN: Final = Path(sys.prefix) / "bin"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the tests, and how to get it."""

    title: str
    package: str
    """Debian's package."""
    names: tuple[str, ...]
    """The names of its executable, in the order in which they are looked for."""
    tests: str
    fetch: Callable[[], bool]
    """Install or unpack it; return whether that could be tried and went well."""

    @property
    def variable(self) -> str:
        """The environment variable that names the executable."""
        return self.names[0].upper()

    @property
    def advice(self) -> str:
        """What to do when there is none."""
        return (
            f"no {self.title} was found: install it (Debian, Ubuntu: apt-get install {self.package}), or name its "
            f"executable in the environment variable {self.variable}. Without it the {self.tests} are skipped; "
            "with CI=true they fail."
        )

    def find(self) -> str | None:
        """Return its path, or None; exit when the variable names what cannot be run."""
        named = os.environ.get(self.variable)
        if named:
            path = shutil.which(named)
            if path is None:
                raise SystemExit(f"{self.variable} is {named!r}, which is not an executable file")
            return path
        candidates = (*self.names, BIN / self.names[0])
        return next((path for path in map(shutil.which, candidates) if path), None)


def _install_chromium() -> bool:
    if shutil.which("apt-get") is None or not _is_root():
        return False
    print("installing Chromium for the browser tests (about 100 MB to fetch)", flush=True)
    return _run("apt-get", "update") and _run("apt-get", "install", "-y", "--no-install-recommends", "chromium")


def _unpack_promtool() -> bool:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    print("fetching promtool for the tests of alerts (about 20 MB)", flush=True)
    download = ("apt-get", "download", "prometheus")
    with tempfile.TemporaryDirectory() as place:
        if not _run(*download, cwd=place) and not (
            _is_root() and _run("apt-get", "update") and _run(*download, cwd=place)
        ):
            return False
        for package in Path(place).glob("prometheus_*.deb"):
            if _run("dpkg-deb", "-x", str(package), "unpacked", cwd=place):
                shutil.copy(Path(place) / "unpacked/usr/bin/promtool", BIN)
                return True
    return False


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _run(*command: str, cwd: str | None = None) -> bool:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    ended = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, check=False)
    return ended.returncode == 0


CHROMIUM: Final = Program(
    "Chromium",
    "chromium",
    ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "browser tests",
    _install_chromium,
)
PROMTOOL: Final = Program("promtool", "prometheus", ("promtool",), "tests of alerts", _unpack_promtool)
PROGRAMS: Final = {"chromium": CHROMIUM, "promtool": PROMTOOL}


def main(arguments: list[str]) -> int:
    """Print the path of the named program, fetched if need be; return 1 without one."""
    if len(arguments) != 1 or arguments[0] not in PROGRAMS:
        print(f"usage: ensure_program.py {'|'.join(PROGRAMS)}", file=sys.stderr)
        return 2
    program = PROGRAMS[arguments[0]]
    path = program.find()
    if path is None and program.fetch():
        path = program.find()
    if path is None:
        print(program.advice, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
