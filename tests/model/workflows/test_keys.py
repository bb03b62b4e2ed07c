"""Keys are texts, the same for equal values, and bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.text import TextError
from aether_trio.model.workflows.keys import MAX_KEY_BYTES, flow_key, key_text, place_key, place_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("order-1", "order-1"),
        (7, "7"),
        (7.0, "7"),
        (1_000_000.0, "1000000"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (1e300, "1e+300"),
        (True, "true"),
        (["a", 1.0], '["a",1]'),
        ({"b": 1, "a": "é"}, '{"a":"é","b":1}'),
    ],
)
def test_a_key_is_a_text(value: Any, text: str) -> None:
    assert key_text(value, "key") == text
    assert flow_key(value, "key") == text


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "join 'j', correlation_key is null: is a field missing in the event?"),
        ("", "join 'j', correlation_key is empty: is a field missing in the event?"),
        (float("nan"), "join 'j', correlation_key is nan, which is not JSON"),
        ("a\x00b", "join 'j', correlation_key contains the control character '\\x00', which is not allowed there"),
        ("\ud800", "join 'j', correlation_key has a lone surrogate and cannot be written as UTF-8"),
        ("x" * (MAX_KEY_BYTES + 1), "join 'j', correlation_key has 1025 bytes; at most 1024 are allowed"),
        (["é" * 600], "join 'j', correlation_key has 1204 bytes; at most 1024 are allowed"),
    ],
)
def test_what_is_no_key_is_refused(value: Any, error: str) -> None:
    with pytest.raises(TextError) as caught:
        key_text(value, "join 'j', correlation_key")
    assert str(caught.value) == error


@pytest.mark.parametrize("value", [None, ""])
def test_flow_control_has_a_key_for_what_has_none(value: Any) -> None:
    assert flow_key(value, "key") == ""


workspaces = st.text(st.sampled_from("a1 :*"), min_size=1, max_size=6).filter(lambda one: "::" not in one)
names = st.text(st.sampled_from("b2 :*"), max_size=6)


@given(workspaces, names)
def test_the_key_of_a_place_says_which_one_it_is(workspace: str, name: str) -> None:
    assert place_of(place_key(workspace, name)) == (workspace, name)


def test_the_key_of_a_place_without_spaces_is_as_it_was() -> None:
    assert place_key("w", "flow") == "w flow"
    assert place_of("w a flow") == ("w", "a flow")
    assert place_key("my team", "flow") == "::7 my teamflow"


@pytest.mark.parametrize("key", ["", "w", "::x flow", "::7", "::\u00b2 flow", f"::{10**9} flow"])
def test_what_is_no_place_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="the key of a place"):
        place_of(key)
