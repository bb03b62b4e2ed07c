"""Run fuzz targets, one after the other.

    python -m fuzz [--target NAME] [--seconds N]        or: nox -s fuzz -- ...

Needs atheris. Each target runs in another process, because libFuzzer ends it. An input that is
a finding is written to the corpus directory as `crash-...`, and the exit status is 1; `python -m
fuzz --target NAME --input FILE` runs it again, without atheris. Other arguments go to libFuzzer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import trio

from fuzz.targets import TARGETS

RSS_MIB: Final = 512
"""Of a process with a target. Python, its libraries and atheris' tables have some 200, and coverage
grows.
"""
ALLOCATION_MIB: Final = 64
"""At once. The longest input has 64 KiB, and nothing may make a thousand times as much of it."""
INPUT_S: Final = 10
"""For one input; the slowest takes some milliseconds."""


def again(name: str, file: Path) -> int:
    """Judge one input again."""

    data = file.read_bytes()

    async def run() -> None:
        TARGETS[name].check(data)

    trio.run(run)
    print(f"{name}: nothing is wrong with {file}")
    return 0


def run_all(names: list[str], seconds: int, corpus: Path, rest: list[str]) -> int:
    """Run each target in a process; return how many had a finding."""
    found: list[str] = []
    for name in names:
        folder = corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[name].seeds()):
            (folder / f"seed-{number}").write_bytes(seed)
        print(f"=== {name}: {seconds} s; the corpus is {folder}", flush=True)
        arguments = [
            f"-max_total_time={seconds}",
            f"-max_len={TARGETS[name].max_bytes}",
            f"-rss_limit_mb={RSS_MIB}",
            f"-malloc_limit_mb={ALLOCATION_MIB}",
            f"-timeout={INPUT_S}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            *rest,
            str(folder),
        ]
        if subprocess.run([sys.executable, "-m", "fuzz.one", name, *arguments], check=False).returncode:
            found.append(name)
    print(f"=== {len(names)} targets, findings in: {', '.join(found) or 'none'}")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be repeated; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept; default: a temporary directory")
    parser.add_argument("--input", type=Path, help="judge this one input of --target")
    options, rest = parser.parse_known_args()
    names: list[str] = options.target or list(TARGETS)
    if options.input is not None:
        return again(names[0], options.input)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("fuzzing needs atheris: `nox -s fuzz`, or pip install --group fuzz", file=sys.stderr)
        return 2
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="aether-fuzz-"))
    return run_all(names, options.seconds, corpus, rest)


if __name__ == "__main__":
    sys.exit(main())
