"""Nesting is counted from the bytes alone, and as deep as the value is."""

from __future__ import annotations

from typing import Any

import msgspec.msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire.framing.nesting import nesting

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=40))
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0) if value else 0
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0) if value else 0
    return 0


@given(VALUES)
def test_counts_what_is_there(value: Any) -> None:
    assert nesting(msgspec.msgpack.encode(value), 100) == depth(value)


@given(st.binary(max_size=200))
def test_any_bytes_end_the_walk(data: bytes) -> None:
    assert nesting(data, 10) <= 11


@pytest.mark.parametrize("levels", [1, 16, 17, 4000])
def test_stops_behind_the_limit(levels: int) -> None:
    assert nesting(b"\x91" * levels + b"\xc0", 16) == min(levels, 17)
