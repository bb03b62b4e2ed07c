"""Check the vectors and arbitrary bytes as the fuzz target of the framing does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.feeding import split
from fuzz.framing import check, seeds

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
