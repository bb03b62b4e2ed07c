"""JSON as workflows keep it, written whole or in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.services.workflows.documents import json_values
from aether_trio.services.workflows.documents.json_values import (
    LARGE_BYTES,
    JsonError,
    may_be_infinite,
    plain,
    read_document,
    read_json,
    size_up_to,
    unwritable,
    write_entry,
    write_json,
    write_list,
    write_object,
)

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=6),
    max_leaves=30,
)


@given(VALUES, st.integers(1, 3))
def test_pieces_are_the_same_json(value: Any, piece: int) -> None:
    whole = json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_PIECE", piece)
        try:
            assert write_json(value) == whole
        except JsonError:
            whole.decode("utf-8", "surrogatepass").encode("utf-8", "replace")
            assert b"\xed" in whole  # a key has half of a character


def test_objects_of_what_is_written_already() -> None:
    assert write_object({}) == b"{}"
    assert write_object({"a": 1.0}) == b'{"a":1}'
    assert write_object({}, b=b"[]", c=None) == b'{"b":[],"c":null}'
    assert write_object({"a": "é"}, b=b'{"x":1}') == '{"a":"é","b":{"x":1}}'.encode()
    assert write_entry({"number": 1}, b"{}") == b'{"number":1}'
    assert write_entry({"number": 1}, b'{"type":"Started"}') == b'{"number":1,"type":"Started"}'
    assert write_list([]) == b"[]"
    assert write_list([b"1", b"{}"]) == b"[1,{}]"


@pytest.mark.parametrize("length", [1, LARGE_BYTES])
def test_numbers_are_the_same_in_large_and_small_json(length: int) -> None:
    data = json.dumps({"l": [1, -2, 2**60, 1.5, 1e300] * length}).encode()
    floats = read_json(data)["l"][:5]
    assert floats == [1, -2, 2.0**60, 1.5, 1e300]
    assert {type(one) for one in floats} == {float}
    found = read_document(data)["l"][:5]
    assert found == [1, -2, 2**60, 1.5, 1e300]
    assert [type(one) for one in found] == [int, int, int, float, float]


def test_objects_and_texts_are_the_same_in_large_and_small_json() -> None:
    value = {"a": {"b": [{}, {"c": "é"}]}, "d": None}
    for read in (read_json, read_document):
        assert read(json.dumps({"l": [value] * LARGE_BYTES}).encode())["l"][-1] == value


@pytest.mark.parametrize("number", [b"1e999", b"-1E+999", b"1e0999", b"9" * 400, b"0." + b"9" * 400 + b"e400"])
@pytest.mark.parametrize("before", [0, 100, json_values._SEARCHED - 200, json_values._SEARCHED, 3 * LARGE_BYTES])
def test_numbers_that_are_too_large_are_found_wherever_they_are(number: bytes, before: int) -> None:
    data = b'["' + b"x" * before + b'",' + number + b"," + b"1" * 10 + b"]"
    assert may_be_infinite(data)
    assert unwritable(read_json(data), data).startswith("/1: ")
    assert not may_be_infinite(data.replace(number, b"1e99"))


def test_sizes_are_counted_up_to_a_bound() -> None:
    assert size_up_to({"a": [1, True, "xyz"]}, 1_000) <= 40
    assert size_up_to(["x" * 100] * 1_000_000, 1_000) < 1_000_000 + 2_000
    assert size_up_to("x" * 5_000, 1_000) > 1_000
