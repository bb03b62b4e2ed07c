"""Check `aether errors`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from aether_trio.cli.app import app
from aether_trio.model.error_guide import ERROR_GUIDE


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["errors", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_code_is_explained() -> None:
    code, text, _ = run("ERR_OUTCOME_UNKNOWN")
    assert code == 0
    assert text.splitlines()[0] == "ERR_OUTCOME_UNKNOWN  (request)"
    assert "What to do: Look whether it was done" in text


@pytest.mark.parametrize("word", ["outcome_unknown", "Outcome"])
def test_a_part_in_any_case_is_enough(word: str) -> None:
    assert run(word) == run("ERR_OUTCOME_UNKNOWN")


def test_a_number_is_taken_whole() -> None:
    _, text, _ = run("1")
    assert text.splitlines()[0] == "1  (command line)"
    assert "1002" not in text


def test_all_are_shown_without_a_code() -> None:
    _, text, _ = run("--json")
    assert [one["code"] for one in json.loads(text)] == [entry.code for entry in ERROR_GUIDE]


def test_an_unknown_code_is_an_error() -> None:
    code, text, error = run("ERR_NO_SUCH")
    assert (code, text) == (2, "")
    assert "`aether errors` lists all" in error
