"""Arguments of the bench, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import cli, results, runner
from bench.scenarios import FAMILIES, SCENARIOS
from bench.servers import ServerOptions, command


def options(*arguments: str) -> Any:
    return cli.options_of(cli.parser().parse_args(arguments))


def test_all_scenarios_run_when_none_is_named_and_in_their_own_order_otherwise() -> None:
    assert [scenario.name for scenario in cli.choose([])] == list(SCENARIOS)
    assert [scenario.name for scenario in cli.choose(["routed-16", "idle"])] == ["idle", "routed-16"]
    with pytest.raises(ValueError, match="no scenario is called 'rooted'"):
        cli.choose(["rooted"])


def test_a_family_is_named_as_a_whole_or_in_part() -> None:
    cluster = list(FAMILIES["cluster"])
    assert [scenario.name for scenario in cli.choose(["cluster"])] == cluster
    assert [scenario.name for scenario in cli.choose(["cluster-2-across", "kv"])] == ["kv", "cluster-2-across"]
    assert not set(cluster) & set(SCENARIOS)


def test_a_cluster_is_measured_on_the_first_transport() -> None:
    plan = runner.planned(cli.choose(["kv", "cluster-1"]), ("framed", "grpc"))
    assert [(scenario.name, transport) for scenario, transport in plan] == [
        ("kv", "framed"),
        ("kv", "grpc"),
        ("cluster-1", "framed"),
    ]


def test_sizes_come_from_arguments_then_quick_then_defaults() -> None:
    assert (options().pairs, options().windows, options().connections) == (100, 10, 2000)
    assert options("--quick").windows == 3
    assert options("--quick", "--pairs", "7").pairs == 7
    assert options("--seconds", "2").windows == 4
    assert options("--seconds", "0.1", "--window", "0.05").windows == 2
    assert options("--fanout", "3,4").fanout == (3, 4)
    assert options("--credential", "api_key=a=b").credentials == {"api_key": "a=b"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--only", "idle,nonsense"],
        ["--pairs", "0"],
        ["--seconds", "-1"],
        ["--fanout", "3"],
        ["--compare", "missing.json"],
        ["--transport", "smoke-signals"],
        ["--transport", "grpc,"],
        ["report", "missing.json"],
    ],
)
def test_wrong_arguments_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_transports_are_the_main_ones_or_those_that_are_named() -> None:
    def transports(*arguments: str) -> Any:
        return cli.parser().parse_args(arguments).transport

    assert transports() == transports("--transport", "all") == ("grpc", "framed", "websocket")
    assert transports("--transport", "framed-acks,grpc,framed-acks") == ("framed-acks", "grpc")


def test_what_needs_no_gateway_runs_once_and_the_transports_of_a_scenario_follow_each_other() -> None:
    plan = runner.planned(cli.choose(["raw-echo", "kv", "idle"]), ("framed", "grpc"))
    assert [results.name_of(transport, scenario.name) for scenario, transport in plan] == [
        "raw-echo",
        "framed/idle",
        "idle",
        "framed/kv",
        "kv",
    ]
    assert results.split_name("framed/idle") == ("framed", "idle")
    assert results.split_name("idle") == ("grpc", "idle")


def test_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(cli.every())
    assert set(cli.every()) == set(SCENARIOS).union(*FAMILIES.values())


def fake_measure(monkeypatch: pytest.MonkeyPatch, echoes: float, failed: str = "") -> None:
    result = {
        "gated": ["echoes"],
        "parameters": {},
        "rate": {"best": 1.0, "mean": 1.0},
        "echoes": {"best": echoes, "mean": echoes},
        "cpu_us": {"best": 1.0, "mean": 1.0},
        "failed": failed,
    }
    monkeypatch.setattr(cli, "measure", lambda *_: {"machine": {}, "profiled": False, "scenarios": {"kv": result}})


def test_a_comparison_fails_the_run_above_the_threshold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    fake_measure(monkeypatch, 2.0)
    assert cli.main(["kv", "--json", old]) == 0
    fake_measure(monkeypatch, 2.5)
    assert cli.main(["kv", "--json", new, "--compare", old]) == 1
    assert "WORSE" in capsys.readouterr().out
    assert cli.main(["kv", "--json", new, "--compare", old, "--threshold", "0.3"]) == 0
    assert results.read(Path(new))["scenarios"]["kv"]["echoes"]["best"] == 2.5


def test_a_failed_scenario_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measure(monkeypatch, 2.0, failed="3 lost")
    assert cli.main(["kv", "--json", str(tmp_path / "out.json")]) == 1


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"schema": 0})])
def test_files_of_another_kind_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(results.UnreadableResults):
        results.read(path)


def test_each_transport_has_its_own_profile(tmp_path: Path) -> None:
    chosen = ServerOptions(profile=tmp_path / "out.prof")
    assert str(tmp_path / "out.framed-kv.prof") in command(chosen, "framed/kv", tmp_path)


@pytest.mark.parametrize(
    ("profile", "starts"),
    [
        (None, ["-m", "aether_trio", "dev", "--port", "0"]),
        ("out.prof", ["-m", "bench.profiled", "out.kv.prof", "aether_trio", "dev"]),
        ("out", ["-m", "bench.profiled", "out.kv.prof", "aether_trio", "dev"]),
        ("out.svg", ["record", "--format", "flamegraph", "--output", "out.kv.svg"]),
        ("out.json", ["record", "--format", "speedscope", "--output", "out.kv.json"]),
    ],
)
def test_the_gateway_starts_plain_or_under_a_profiler(profile: str | None, starts: list[str], tmp_path: Path) -> None:
    chosen = ServerOptions(args=["--ephemeral"], profile=Path(profile) if profile else None)
    line = command(chosen, "kv", tmp_path)
    assert line[1 : 1 + len(starts)] == starts
    assert line[-1] == "--ephemeral"
