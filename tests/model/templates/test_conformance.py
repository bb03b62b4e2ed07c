"""Every row that Go's text/template has recorded, character by character.

rows.jsonl is made by recorder/main.go of the cases in recorder/cases.py; main.go says how to run
them. The deviations from Go are listed in the docstring of aether_trio.model.templates.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aether_trio.model.templates import TemplateError, compile_template

ROWS = [
    json.loads(line, parse_int=float)
    for line in Path(__file__).with_name("rows.jsonl").read_text(encoding="utf-8").splitlines()
]
ROWS_OF_ONE_TEST = 200


def outcome(row: dict[str, Any]) -> tuple[str, str]:
    try:
        template = compile_template(row["template"])
    except TemplateError:
        return "parse", ""
    try:
        return "prints", template.render(row["data"])
    except TemplateError:
        return "run", ""


def recorded(row: dict[str, Any]) -> tuple[str, str]:
    return ("prints", row["output"]) if "output" in row else (row["fails"], "")


@pytest.mark.parametrize("start", range(0, len(ROWS), ROWS_OF_ONE_TEST))
def test_prints_what_go_prints(start: int) -> None:
    for row in ROWS[start : start + ROWS_OF_ONE_TEST]:
        assert outcome(row) == recorded(row), row["template"]


def test_rows_cover_all_outcomes() -> None:
    outcomes = Counter(recorded(row)[0] for row in ROWS)
    assert outcomes["prints"] > 1500
    assert outcomes["parse"] > 150
    assert outcomes["run"] > 800
