"""Print the paths of supported Pythons on this machine, one a line, oldest first.

A `python3.X` on PATH, or among the versions of pyenv, counts when X is in the classifiers of
pyproject.toml, and it starts and says that it is X.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
START_S: Final = 60.0
WHO: Final = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
"""`venv` is what every session of nox needs, and not every system's Python has."""


def supported_versions() -> list[str]:
    """Return the supported Python versions, such as "3.11", the oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"]]
    return sorted((match[1] for match in found if match), key=lambda version: int(version.partition(".")[2]))


def candidates(version: str) -> Iterator[Path]:
    """Yield the paths where a Python of this version may be, the best first."""
    for directory in os.get_exec_path():
        yield Path(directory) / f"python{version}"
    if pyenv := shutil.which("pyenv"):
        said = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False, timeout=START_S).stdout
        yield from sorted(Path(said.strip()).glob(f"versions/*/bin/python{version}"), reverse=True)


def starts(python: Path, version: str) -> bool:
    """Return whether this path is a Python of this version that runs."""
    if not os.access(python, os.X_OK):
        return False
    try:
        done = subprocess.run([python, "-c", WHO], capture_output=True, text=True, check=False, timeout=START_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def main() -> None:
    """Print the path of a Python for each supported version that this machine has."""
    for version in supported_versions():
        found = next((python for python in candidates(version) if starts(python, version)), None)
        if found is not None:
            print(found)


if __name__ == "__main__":
    main()
