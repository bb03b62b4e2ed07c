"""Costs with more and more in the gateway: filling it, and the ratios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import cli, runner, table
from bench.ground import BATCH, TOPIC_MESSAGES, WORKING_KEYS
from bench.scenarios import FAMILIES
from bench.scenarios.growth import figure_of

SIZES = [
    "--growth-agents",
    "10,30",
    "--growth-messages",
    f"2,{4 * TOPIC_MESSAGES}",
    "--growth-keys",
    f"1,{WORKING_KEYS + BATCH + 1}",
]


@pytest.mark.parametrize("transport", ["grpc", "framed"])
def test_each_figure_has_a_result_for_each_size(
    transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    names = ["growth-agents-kv", "growth-agents-connect", "growth-messages-routed-16", "growth-keys-paced"]
    arguments = ["--quick", "--window", "0.05", *SIZES, "--data-root", str(tmp_path), "--transport", transport]
    assert cli.main([*names, *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    results = {name.rpartition("/")[2]: result for name, result in found.items()}
    assert list(results) == [
        "growth-agents-kv-10",
        "growth-agents-kv-30",
        "growth-agents-connect-10",
        "growth-agents-connect-30",
        "growth-messages-routed-16-2",
        "growth-messages-routed-16-200",
        "growth-keys-paced-1",
        "growth-keys-paced-105",
    ]
    for result in results.values():
        assert result["failed"] == ""
        assert result["echoes"]["best"] > 0
        assert result["gated"] == ["echoes"]
        assert len(result["windows"]) == len(result["echo_windows"]) - 1
    assert results["growth-agents-kv-30"]["parameters"]["agents"] == 30
    routed = results["growth-messages-routed-16-200"]
    assert routed["growth"] == {"figure": "routed-16", "by": "messages", "size": 200}
    assert routed["checks"]["sent"] == routed["checks"]["received"] > 0
    compared = capsys.readouterr().out.partition("\ngrowth ")[2].split("\n\n")[0]
    name = "kv" if transport == "grpc" else f"{transport}/kv"
    assert [line.split()[:4] for line in compared.splitlines() if line.startswith(name)] == [
        [name, "agents", "10", "30"]
    ]
    assert not list(tmp_path.glob("aether-bench-*"))


def test_the_keys_that_kv_uses_are_among_those_of_the_size(tmp_path: Path) -> None:
    arguments = ["--quick", "--window", "0.05", "--growth-keys", "50,60", "--data-root", str(tmp_path)]
    full = ["--server-arg=--set", "--server-arg=limits.kv_keys_per_scope=60"]
    out = tmp_path / "out.json"
    assert cli.main(["growth-keys-kv", *arguments, *full, "--transport", "framed", "--json", str(out)]) == 0


def test_another_gateway_cannot_have_several_sizes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert cli.main(["growth-keys-kv", "--target", "127.0.0.1:1", "--json", str(out)]) == 1
    assert "always started here" in json.loads(out.read_text())["scenarios"]["growth-keys-kv"]["failed"]


def test_figures_with_the_same_thing_share_their_gateways_and_run_on_one_transport() -> None:
    plan = runner.planned(cli.choose(["kv", "growth"]), ("framed", "grpc"))
    groups = [([scenario.name for scenario in group], transport) for group, transport in runner.grouped(plan)]
    assert groups[:2] == [(["kv"], "framed"), (["kv"], "grpc")]
    assert [names[0] for names, _ in groups[2:]] == [
        "growth-agents-paced",
        "growth-messages-paced",
        "growth-keys-paced",
    ]
    assert [len(names) for names, _ in groups[2:]] == [4, 4, 4]
    assert {figure_of(scenario) for scenario in FAMILIES["growth"].values()} == {"paced", "routed-16", "kv", "connect"}


def test_sizes_are_those_given_those_of_quick_or_the_usual_ones() -> None:
    def sizes(*arguments: str) -> Any:
        return cli.options_of(cli.parser().parse_args(arguments)).growth

    assert sizes()["messages"] == (1_000, 1_000_000)
    assert sizes("--quick")["messages"] == (100, 5_000)
    assert sizes("--quick", "--growth-messages", "7,8,9")["messages"] == (7, 8, 9)
    for wrong in ("5", "9,8", "8,8"):
        with pytest.raises(ValueError, match="--growth-keys takes"):
            sizes("--growth-keys", wrong)


def grown(figure: str, size: int, echoes: float | None) -> dict[str, Any]:
    cost = None if echoes is None else {"best": echoes, "mean": echoes}
    return {"growth": {"figure": figure, "by": "keys", "size": size}, "echoes": cost, "failed": ""}


def test_growth_beyond_a_fifth_is_marked() -> None:
    results = {
        "scenarios": {
            "growth-keys-kv-100": grown("kv", 100, 2.0),
            "growth-keys-kv-1000": grown("kv", 1000, 2.3),
            "growth-keys-kv-100000": grown("kv", 100_000, 2.5),
            "framed/growth-keys-kv-100": grown("kv", 100, 4.0),
            "framed/growth-keys-kv-1000": grown("kv", 1000, 2.0),
            "growth-keys-paced-100": grown("paced", 100, None),
            "kv": {"echoes": {"best": 1.0, "mean": 1.0}},
        }
    }
    headings, *rows = table.of_growth(results)
    assert headings[-2:] == ("ratio", "")
    assert rows == [
        ("kv", "keys", "100", "1,000", "2.00", "2.30", "1.15", ""),
        ("kv", "keys", "100", "100,000", "2.00", "2.50", "1.25", "GROWS"),
        ("framed/kv", "keys", "100", "1,000", "4.00", "2.00", "0.50", ""),
    ]
    assert table.of_growth({"scenarios": {}}) == []
