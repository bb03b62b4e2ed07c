"""Plots, page and table show what was measured, and fetch nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtests import report, table
from loadtests.outcome import judge
from loadtests.plots import decades, line_plot, nice_ticks
from loadtests.timeline import Timeline
from tests.loadtests.test_outcome import line, plan, verdict


@pytest.fixture
def results() -> dict[str, Any]:
    timeline = Timeline(1)
    timeline.row(0.0, "connect", 50_000, 0.0)
    for second in (1, 2, 3):
        timeline.feed(
            0, line(4, {"message": [1000 * second] * 5, "back": [9000]}, sent=5 * second, received=5 * second)
        )
        timeline.row(float(second), "hold", 60_000, 0.25)
    timeline.mark(2.0, "all <cut>")
    seen = {"connect_s": 1.0, "hearers": 4, "cut": 4, "back": 4, "resumed_after_cut": 4}
    found = judge(plan("storm"), timeline, [verdict()], seen)
    return found | {
        "connect_rate": 4.0,
        "back_s": 0.009,
        "when": "now",
        "machine": {"cpu": "a & b"},
        "command": "nox -s load",
    }


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def test_the_page_is_whole_and_needs_nothing_else(results: dict[str, Any], tmp_path: Path) -> None:
    page = report.write(tmp_path / "out", results)
    text = page.read_text()
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert not re.search(r"(src|href)\s*=|@import|url\(|<script", text)
    assert text.count("<figure>") == 8
    assert "Nothing lost, all well." in text
    assert "all &lt;cut&gt;" in text
    assert "a &amp; b" in text
    assert (tmp_path / "out" / "report.json").exists()


def test_failures_are_said_instead(results: dict[str, Any]) -> None:
    text = report.html(results | {"failures": ["2 messages lost"]})
    assert '<p class="bad">2 messages lost</p>' in text
    assert "all well" not in text


def test_the_table_for_the_terminal_says_the_same(results: dict[str, Any]) -> None:
    text = table.text(results)
    assert text.startswith("framed, storm: 4 users")
    assert re.search(r"messages received, each once +15\n", text)
    assert "cut 4 connections; 4 came back (4 resumed), the last after 0.01 s" in text
    assert text.endswith("nothing lost, all well")


def test_a_line_goes_through_its_points() -> None:
    drawn = line_plot("T", "u", {"a": [(0.0, 0.0), (10.0, 100.0)]})
    assert 'points="58.0,196.0 548.0,14.0"' in drawn


def test_a_value_that_is_missing_makes_a_gap() -> None:
    drawn = line_plot(
        "T", "u", {"a": [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.0), (4.0, 2.0), (5.0, None), (6.0, 1.0)]}
    )
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 1


def test_nothing_to_draw_is_no_plot() -> None:
    assert line_plot("T", "u", {"a": [(0.0, None)]}) == ""
    assert line_plot("T", "u", {"a": [(0.0, 0.0)]}, log_y=True) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 15_000), (0, 0.003), (3, 17)])
def test_ticks_are_round_and_cover_what_is_shown(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 8


def test_decades_cover_what_is_shown() -> None:
    assert decades(0.5, 20) == [0.1, 1.0, 10.0, 100.0]
    assert decades(1, 1) == [1.0, 10.0]
