"""Metrics: each refusal with its code, the bounds, and the order of the checks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.metric import check_metric


@pytest.mark.parametrize("count", [1, 2, 1023, 1024])
def test_one_to_1024_entries(count: int) -> None:
    assert check_metric([("tokens", 1.0)] * count, 0) is False


@pytest.mark.parametrize(
    ("entries", "metadata_keys", "code", "message"),
    [
        ([], 0, Code.METRIC_EMPTY, "has no entries"),
        ([("a", 1.0)] * 1025, 0, Code.METRIC_EMPTY, "1025 entries; at most 1024"),
        ([("a", 1.0)], 65, Code.METRIC_INVALID, "65 metadata keys; at most 64"),
        ([("", 1.0)], 0, Code.METRIC_INVALID_ENTRY, "entry 0 of the metric has no name"),
        ([("a", 1.0), ("", 1.0)], 0, Code.METRIC_INVALID_ENTRY, "entry 1 of the metric has no name"),
        ([("a", math.nan)], 0, Code.METRIC_INVALID_ENTRY, "entry 0 of the metric, 'a', is nan"),
        ([("a", math.inf)], 0, Code.METRIC_INVALID_ENTRY, "is inf, not a finite number"),
        ([("a", 1.0), ("b", -math.inf)], 0, Code.METRIC_INVALID_ENTRY, "entry 1 .* is -inf"),
        ([], 65, Code.METRIC_INVALID, "metadata keys"),
        ([("", math.nan)] * 1025, 0, Code.METRIC_EMPTY, "entries"),
    ],
)
def test_refusals_the_first_of_several_reasons_wins(
    entries: list[tuple[str, float]], metadata_keys: int, code: Code, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_metric(entries, metadata_keys)
    assert caught.value.code is code
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("quantity", "negative"), [(0.0, False), (-0.0, False), (1e308, False), (-1e-300, True), (-1.0, True)]
)
def test_negative_quantities_are_flagged_wherever_they_are(quantity: float, negative: bool) -> None:
    assert check_metric([("a", quantity), ("b", 1.0)], 64) is negative
    assert check_metric([("b", 1.0), ("a", quantity)], 64) is negative


def test_an_iterator_will_do_and_bounds_can_be_set() -> None:
    assert check_metric(((name, 1.0) for name in "ab"), 0, max_entries=2) is False
    with pytest.raises(RequestError, match="at most 2"):
        check_metric(((name, 1.0) for name in "abc"), 0, max_entries=2)
    with pytest.raises(RequestError, match="at most 0"):
        check_metric([("a", 1.0)], 1, max_metadata_keys=0)


@given(st.lists(st.tuples(st.text(max_size=3), st.floats()), max_size=6))
def test_accepted_exactly_when_every_entry_is_sound(entries: list[tuple[str, float]]) -> None:
    sound = bool(entries) and all(name and math.isfinite(quantity) for name, quantity in entries)
    try:
        negative = check_metric(entries, 0)
    except RequestError:
        assert not sound
    else:
        assert sound
        assert negative is any(quantity < 0 for _, quantity in entries)
