"""Test tables and facts at all widths: ids stay whole, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aether_trio.cli.layout import Table, fact_lines, fold

ID = "3f2a90de-6f0c-4c6e-9a51-77c0c1b2d3e4"
ROWS = [
    (ID, "resize", "ag::default::resizer::1", "the disk of the worker is full, so nothing was written"),
    ("x", "", "漢字漢字", ""),
]
COLUMNS = ("task", "type", "worker", "error")


def lines(width: int | None, **options: bool) -> list[str]:
    return list(Table(COLUMNS, ROWS, ("task", "worker"), **options).lines(width))


def test_a_pipe_gets_a_row_on_one_line() -> None:
    head, first, second = lines(None)
    assert head.split() == list(COLUMNS)
    assert first == f"{ID}  resize  ag::default::resizer::1  {ROWS[0][3]}"
    assert second.split() == ["x", "漢字漢字"]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_ids_and_names_stay_on_one_line(width: int) -> None:
    shown = lines(width)
    assert all(cell_len(line) <= width for line in shown)
    for whole in (ID, "ag::default::resizer::1", "漢字漢字"):
        assert sum(whole in line for line in shown) == 1
    assert "".join(ROWS[0][3].split()) in "".join("".join(line[-40:].split()) for line in shown) or width > 40


def test_a_narrow_terminal_gets_a_few_lines_for_each_row() -> None:
    assert lines(40) == [
        "task",
        f"  {ID}",
        "type    resize",
        "worker  ag::default::resizer::1",
        "error   the disk of the worker is full,",
        "        so nothing was written",
        "",
        "task    x",
        "worker  漢字漢字",
    ]


def test_an_id_that_is_wider_than_the_terminal_is_not_broken() -> None:
    assert list(fact_lines([("task", ID), ("type", "resize")], 20)) == ["task", ID, "type  resize"]


def test_columns_that_say_nothing_are_left_out_for_room() -> None:
    table = Table(("task", "nothing at all", "error"), [(ID, "", "the disk is full")])
    assert list(table.lines(54)) == [f"{'task':36}  error", f"{ID}  the disk is full"]


def test_numbers_are_aligned_at_their_ends() -> None:
    table = Table(("what", "count"), [("a", "1"), ("b", "1,000")], numbers=True)
    assert list(table.lines(None)) == ["what  count", "a         1", "b     1,000"]


texts = st.text("ab 漢\u0301", max_size=40)


@given(st.lists(st.tuples(texts, texts, texts), max_size=4), st.integers(4, 60))
def test_no_letter_is_lost_and_no_line_is_too_wide(rows: list[tuple[str, str, str]], width: int) -> None:
    table = Table(("a", "b", "c"), rows, ())
    shown = list(table.lines(width))
    assert all(cell_len(line) <= max(width, 42) for line in shown)
    for row in rows:
        for cell in row:
            for letter in "ab漢":
                assert sum(line.count(letter) for line in shown) >= cell.count(letter)


@given(texts, st.integers(2, 30))
def test_a_folded_text_is_the_text(text: str, width: int) -> None:
    folded = fold(text, width)
    assert all(cell_len(line) <= width for line in folded)
    assert "".join(folded).replace(" ", "") == text.replace(" ", "")
