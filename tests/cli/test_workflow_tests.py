"""Test `aether workflows test`, which needs no gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aether_trio.cli.app import app

FLOW = """
id: flow
steps:
  - id: a
    action: {agent: worker}
tests:
  - name: well
    steps: {a: {result: 1}}
    expect: {result: {a: 1}}
  - name: "not well"
    steps: {a: {result: 1}}
    expect: {result: {a: 2}}
---
id: outer
steps:
  - {id: inner, workflow: flow}
tests:
  - name: with the other document
    steps: {inner: {steps: {a: {result: 5}}}}
    expect: {result: {inner: {a: 5}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "flow.yaml"
    found.write_text(FLOW)
    return found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["workflows", "test", *map(str, arguments)])


def test_each_case_says_how_it_ended_and_where_it_is(file: Path) -> None:
    done = run(file)
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "ok     flow: well",
        "FAILED flow: not well",
        f"       {file}:10:5: its result, a: is 1, not 2",
        "ok     outer: with the other document",
        "2 cases pass, 1 fails",
    ]


def test_one_case_and_json(file: Path) -> None:
    assert run(file, "--case", "well").exit_code == 0
    done = run(file.parent, "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["passed"], found["failed"]) == (2, 1)
    assert found["cases"][1]["differences"] == ["its result, a: is 1, not 2"]
    assert found["cases"][1]["place"] == f"{file}:10:5"
    assert found["cases"][0]["steps"]["a"]["result"] == 1
    assert "1.0" not in done.stdout  # whole numbers are written as such


def test_files_that_are_wrong_or_have_no_case(file: Path) -> None:
    done = run(file, "--case", "other")
    assert (done.exit_code, "no case is named other" in done.output) == (2, True)
    file.write_text(FLOW.replace("a: {result: 1}", "b: {result: 1}"))
    done = run(file)
    assert done.exit_code == 1
    assert f"{file}:8:13: test 'well': there is no step 'b'" in done.output
    file.write_text("id: flow\nsteps: [{id: a, output: 1}]\n")
    assert "the workflows have no tests" in run(file).output
    file.write_bytes(b"id: \xff")
    assert "byte 5 is not UTF-8" in run(file).output
