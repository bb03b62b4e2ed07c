"""Run every fuzz target over its seeds and mutations of them, without atheris."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fuzz.targets import TARGETS, mutations

ROOT = Path(__file__).parents[2]
MUTATIONS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds_and_for_mutations_of_them(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert len(seeds) >= 5

    async def check_all() -> None:
        for data in (b"", *seeds, *mutations(seeds, MUTATIONS, seed=1)):
            try:
                target.check(data[: target.max_bytes])
            except BaseException as error:
                error.add_note(f"{name}: {len(data)} bytes, {data[:300]!r}")
                raise

    trio.run(check_all)


def test_mutations_are_always_the_same_and_differ() -> None:
    seeds = [b"one", b"another"]
    found = list(mutations(seeds, 50, seed=7))
    assert found == list(mutations(seeds, 50, seed=7))
    assert len(set(found)) > 40


def run_fuzz(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{path}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_atheris_it_says_what_to_do(tmp_path: Path) -> None:
    # An atheris that cannot be imported, whether or not there is one.
    (tmp_path / "atheris.py").write_text("raise ImportError\n")
    done = run_fuzz(path=str(tmp_path))
    assert done.returncode == 2
    assert "nox -s fuzz" in done.stderr


def test_one_input_is_judged_without_atheris(tmp_path: Path) -> None:
    seed = tmp_path / "input"
    seed.write_bytes(next(TARGETS["websocket"].seeds()))
    done = run_fuzz("--target", "websocket", "--input", str(seed))
    assert done.returncode == 0, done.stderr
    assert "nothing is wrong" in done.stdout


def test_an_unknown_target_is_refused_by_name() -> None:
    done = run_fuzz("--target", "nothing")
    assert done.returncode == 2
    assert "websocket" in done.stderr
