"""Texts of durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows.durations import MAX_MS, DurationError, duration_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1h30m", 5_400_000),
        ("90s", 90_000),
        ("1.5h", 5_400_000),
        ("300ms", 300),
        ("2d", 172_800_000),
        ("1w1d", 691_200_000),
        ("0", 0),
        (".5s", 500),
        ("1.s", 1_000),
        ("0.0001s", 1),  # rounded up
        ("1us", 1),
        ("1500µs", 2),
        ("999999ns", 1),
        ("0.1s0.2s", 300),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert duration_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("+5s", "is not a duration"),
        ("soon", "is not a duration"),
        ("1h 30m", "' 30m' is not a duration"),
        ("-5s", "'-5s' is not a duration"),
        ("30", "the number 30 has no unit"),
        ("5y", "unit 'y' is unknown: there are w, d, h, m, s and ms"),
        ("1H", "unit 'H' is unknown"),
        ("107000d", "longer than a hundred years"),
        ("1e9s", "unit 'e' is unknown"),
        ("5s\x00", "is not a duration"),
        ("9" * 100 + "s", "at most 64 characters"),
        ("\u0665s", "is not a duration"),
    ],
)
def test_what_is_no_duration(text: str, says: str) -> None:
    with pytest.raises(DurationError, match=says):
        duration_ms(text)


@given(st.text(max_size=80) | st.from_regex(r"[0-9.]{1,8}[a-z]{1,2}([0-9]{1,3}[hms])?", fullmatch=True))
def test_any_text_is_a_duration_or_an_error(text: str) -> None:
    try:
        assert 0 <= duration_ms(text) <= MAX_MS
    except DurationError:
        pass
