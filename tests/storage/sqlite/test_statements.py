"""Translation of portable SQL."""

from __future__ import annotations

import pytest

from aether_trio.storage.sqlite.statements import compile_sql


@pytest.mark.parametrize(
    ("portable", "text", "order"),
    [
        ("SELECT 1", "SELECT 1", None),
        ("VALUES ($1, $2, $3)", "VALUES (?, ?, ?)", None),
        ("a = $2 AND b = $1", "a = ? AND b = ?", (1, 0)),
        ("a = $1 OR b = $1", "a = ? OR b = ?", (0, 0)),
        ("a = '$1' AND b = $1", "a = '$1' AND b = ?", None),
        ("a = 'it''s $1' AND b = $1", "a = 'it''s $1' AND b = ?", None),
        ('"$1" = $1', '"$1" = ?', None),
        ("a = $1 -- not $2\nAND b = $2", "a = ? -- not $2\nAND b = ?", None),
        ("x = $10", "x = ?", (9,)),
    ],
)
def test_parameters_become_positional(portable: str, text: str, order: tuple[int, ...] | None) -> None:
    compiled = compile_sql(portable)
    assert (compiled.text, compiled.order) == (text, order)


def test_arguments_follow_the_order_of_use() -> None:
    assert compile_sql("a = $2 AND b = $1 AND c = $2").arrange(("one", "two")) == ["two", "one", "two"]
