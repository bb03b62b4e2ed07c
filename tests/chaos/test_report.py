"""A result says whether it is well: all invariants seen and held, or not."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from chaos import cli, report
from chaos.checks import check_all
from chaos.history import History
from chaos.plan import Kind
from chaos.recovery import Times
from chaos.run import Result, Wishes
from tests.chaos.test_checks import BOUND_S, good


def result_of(history: History) -> Result:
    times = Times("identity back", [0.2, 0.9, 0.4])
    return Result(Wishes(seed=7), history, check_all(history, bound_s=BOUND_S), [times], missed=0, turns=3)


def shown(result: Result) -> str:
    console = Console(file=io.StringIO(), width=120)
    report.show(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_good_run() -> None:
    result = result_of(good())
    assert result.well
    text = shown(result)
    assert "kill a node" in text
    assert "0.40" in text
    assert "violated" not in text
    assert json.loads(json.dumps(report.as_json(result)))["well"] is True


def test_a_violation_is_written_out_and_counted() -> None:
    history = good()
    del history.delivered[2]
    result = result_of(history)
    assert not result.well
    assert "violated no accepted message is lost: ag::chaos::peer::1: a number 2" in shown(result)
    found = {one["invariant"]: one["violations"] for one in report.as_json(result)["invariants"]}
    assert found["no accepted message is lost"] == 1


def test_a_run_that_has_seen_nothing_is_not_well() -> None:
    history = good()
    history.held = []
    result = result_of(history)
    assert not result.well
    assert "saw nothing" in shown(result)


def test_the_command_line() -> None:
    given = cli.parser().parse_args(["--seed", "3", "--only", "kill_node, end-bus", "--minutes", "0.5"])
    assert given.only == (Kind.KILL_NODE, Kind.END_BUS)
    assert given.minutes == 0.5


@pytest.mark.parametrize("wrong", [["--only", "rain"], ["--minutes", "0"], ["--every", "-1"]])
def test_a_wrong_command_line(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(wrong)
    assert ended.value.code == 2
