"""The fuzz target's check holds for the vectors and for arbitrary bytes; `nox -s fuzz` looks further."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.fuzz_framing import check, seeds, split

SEEDS = list(seeds())


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_the_check_holds_for_every_vector(number: int) -> None:
    check(SEEDS[number])


@given(st.binary(max_size=300))
def test_the_check_holds_for_arbitrary_bytes(data: bytes) -> None:
    check(data)


@given(st.sampled_from(SEEDS), st.integers(0, 255), st.data())
def test_the_check_holds_for_mutated_vectors(seed: bytes, step: int, data: st.DataObject) -> None:
    stream = bytearray(seed)
    stream[2] = step
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] = data.draw(st.integers(0, 255))
    check(bytes(stream))


@given(st.binary(max_size=300), st.integers(0, 255))
def test_a_split_loses_nothing(stream: bytes, step: int) -> None:
    assert b"".join(split(stream, step)) == stream


def test_without_atheris_it_says_what_to_do(tmp_path: Path) -> None:
    # An atheris that cannot be imported, whether or not there is one.
    (tmp_path / "atheris.py").write_text("raise ImportError\n")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.fuzz_framing"],
        cwd=root,
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "nox -s fuzz" in done.stderr
