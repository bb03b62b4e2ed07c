"""Chains of causes grow by one, end at the 17th, and read anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.workflows import hops
from aether_trio.model.workflows.hops import MAX_ENCODED, MAX_HOPS, MAX_NAME, Hops, TooManyHops

names = st.text(st.characters(), max_size=200)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def chain_of(*given_names: str) -> Hops:
    chain: Hops = ()
    for name in given_names:
        chain = hops.extend(chain, "rule", name)
    return chain


def test_a_chain_has_the_causes_in_order() -> None:
    chain = hops.extend(hops.extend((), "rule", "intake"), "workflow", "report")
    assert chain == ("rule:intake", "workflow:report")
    assert hops.encode(chain) == '["rule:intake","workflow:report"]'


def test_the_seventeenth_is_refused_and_its_chain_named() -> None:
    chain = chain_of(*["ping", "pong"] * 8)
    assert len(chain) == MAX_HOPS
    with pytest.raises(TooManyHops) as caught:
        hops.extend(chain, "rule", "ping")
    assert str(caught.value) == (
        f"stopped after 16 hops: {'rule:ping → rule:pong → ' * 8}rule:ping. Rules or workflows cause each other: "
        "give one of them a condition that ends the loop"
    )
    assert caught.value.chain == chain


def test_the_refusal_is_bounded_and_escaped() -> None:
    chain = chain_of(*["\x1b[31m\n" + "x" * 100_000] * MAX_HOPS)
    with pytest.raises(TooManyHops) as caught:
        hops.extend(chain, "rule", "\x00")
    assert len(str(caught.value)) < 17 * (MAX_NAME * 6 + 4) + 200
    assert str(caught.value).isprintable()


@given(st.lists(names, max_size=MAX_HOPS))
def test_reads_what_it_writes(given_names: list[str]) -> None:
    chain = chain_of(*given_names)
    text = hops.encode(chain)
    assert hops.decode(text) == chain
    assert hops.decode(list(chain)) == chain
    assert text.isascii()
    assert "\x00" not in "".join(chain)
    assert len(text) <= MAX_ENCODED


@settings(max_examples=30)
@given(anything)
def test_reads_anything_as_a_bounded_chain(value: Any) -> None:
    for one in (value, [value] * 40, json.dumps(value, default=str)):
        chain = hops.decode(one)
        assert len(chain) <= MAX_HOPS
        assert all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in chain)
        assert hops.decode(hops.encode(chain)) == chain


@pytest.mark.parametrize("value", ["", "[", "[" * 10_000, '["a"]' + " " * MAX_ENCODED, {"a": 1}, 7, b'["a"]', None])
def test_what_is_no_chain_is_an_empty_one(value: Any) -> None:
    assert hops.decode(value) == ()


def test_a_longer_chain_than_can_grow_is_refused_too() -> None:
    chain = hops.decode([f"rule:{number}" for number in range(1_000)])
    assert chain[-1] == "rule:999"
    with pytest.raises(TooManyHops):
        hops.extend(chain, "rule", "x")
