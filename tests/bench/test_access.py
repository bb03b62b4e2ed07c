"""What access costs: the family at small sizes, its comparisons, and its goals."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bench import cli, runner, table
from bench.access_ground import lay_audit, lay_rules
from bench.goals import Goal, more_than_another, times_another
from bench.scenarios import FAMILIES, access_rate
from bench.units import Window

TINY = ["--quick", "--window", "0.05", "--pairs", "4", "--rules", "300", "--sessions", "200", "--audit-rows", "600"]


def measured(tmp_path: Path, *arguments: str, status: int | None = 0) -> dict[str, Any]:
    out = tmp_path / "out.json"
    left = cli.main([*arguments, *TINY, "--data-root", str(tmp_path), "--json", str(out)])
    assert status is None or left == status
    found: dict[str, Any] = json.loads(out.read_text())["scenarios"]
    assert {name: one["failed"] for name, one in found.items()} == dict.fromkeys(found, "")
    return found


def goals_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {goal["figure"]: goal for goal in result["goals"]}


@pytest.mark.parametrize("transport", ["grpc", "framed", "websocket"])
def test_messages_with_rules_and_in_a_users_name_are_compared_with_those_without(
    transport: str, tmp_path: Path
) -> None:
    names = [f"access-routed-16{end}" for end in ("-without", "", "-behalf")]
    found = measured(tmp_path, *names, "--transport", transport)
    results = {name.rpartition("/")[2]: result for name, result in found.items()}
    assert list(results) == names
    for result in results.values():
        assert result["checks"]["sent"] == result["checks"]["received"] > 0
        assert len(result["windows"]) == len(result["echo_windows"]) - 1
    assert results[names[0]]["goals"] == []
    assert results[names[0]]["parameters"].get("rules") is None
    for name, most in ((names[1], 1.05), (names[2], 1.15)):
        assert results[name]["parameters"]["rules"] == 300
        goal = goals_of(results[name])["CPU, times access-routed-16-without"]
        assert goal["goal"] == most
        assert goal["reached"] > 0


def test_lone_messages_and_connections_are_compared(tmp_path: Path) -> None:
    lone = [f"access-lone{end}" for end in ("-without", "", "-behalf")]
    found = measured(tmp_path, *lone, "access-connect-without", "access-connect", "access-connect-token")
    assert goals_of(found["access-lone-behalf"])["CPU, times access-lone-without"]["goal"] == 1.15
    assert all(found[name]["checks"]["sent"] == found[name]["checks"]["received"] > 0 for name in lone)
    assert found["access-connect-token"]["checks"]["connections"] > 0
    token = goals_of(found["access-connect-token"])["CPU, more than access-connect"]
    assert (token["goal"], token["unit"]) == (3.0, "echoes")


def test_one_of_a_group_runs_alone(tmp_path: Path) -> None:
    found = measured(tmp_path, "access-routed-16")
    assert found["access-routed-16"]["goals"] == []


def test_revocations_end_their_sessions_and_a_lock_those_of_a_workspace(tmp_path: Path) -> None:
    found = measured(tmp_path, "access-revoke")["access-revoke"]
    checks = found["checks"]
    assert checks["revoked"] > 0
    assert checks["sessions"] == 200
    assert checks["locked"] == 20
    goals = goals_of(found)
    assert goals["request to answer, p50"]["goal"] == 50.0
    assert 0 < goals["request to answer, p50"]["reached"] <= goals["request to answer, p99"]["reached"]
    assert goals["a lock of 20 sessions: to the answer"]["reached"] > 0


def test_decisions_and_checks_of_the_audit_are_timed(tmp_path: Path) -> None:
    found = measured(tmp_path, "access-decide", "access-verify", status=None)
    decide = goals_of(found["access-decide"])
    assert decide["groups looked up, p99"]["goal"] == 20.0
    assert decide["memory"]["kept"] is True
    verify = goals_of(found["access-verify"])
    assert verify["rows a second on 1 CPU"]["reached"] > 0
    assert found["access-verify"]["checks"]["rows"] > found["access-verify"]["parameters"]["rows"] == 600


def test_a_rate_is_shared_by_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_rate, "LEAD_SECONDS", 0.5)
    monkeypatch.setattr(access_rate, "COUNTED_SECONDS", 0.5)
    found = measured(tmp_path, "access-rate-2-nodes")["access-rate-2-nodes"]
    assert found["checks"]["refused"] > 0
    assert found["checks"]["lost"] == 0
    assert found["errors"] == {}
    assert goals_of(found)["accepted of the rate, off by"]["goal"] == 10.0


def test_what_is_compared_is_started_here_and_runs_on_one_transport(tmp_path: Path) -> None:
    plan = runner.planned(cli.choose(["kv", "access"]), ("framed", "grpc"))
    groups = [([scenario.name for scenario in group], transport) for group, transport in runner.grouped(plan)]
    assert [names for names, _ in groups[2:5]] == [
        ["access-routed-16-without", "access-routed-16", "access-routed-16-behalf"],
        ["access-lone-without", "access-lone", "access-lone-behalf"],
        ["access-connect-without", "access-connect", "access-connect-token"],
    ]
    assert sum(len(names) for names, _ in groups[2:]) == len(FAMILIES["access"])
    out = tmp_path / "out.json"
    assert cli.main(["access-lone", "--target", "127.0.0.1:1", "--json", str(out)]) == 1
    assert "always started here" in json.loads(out.read_text())["scenarios"]["access-lone"]["failed"]


def windows(*costs_us: float) -> list[Window]:
    return [Window(1.0, 1000, round(cost * 1e6), 0) for cost in costs_us]


def test_a_comparison_is_of_best_windows_with_the_median_of_rounds_beside_it() -> None:
    mine, others, echo = windows(24, 22, 33), windows(20, 21, 22), windows(10, 12, 11, 10)
    best, rounds = times_another(mine, others, "other", 1.05)
    assert (best.figure, best.reached, best.kept) == ("CPU, times other", 1.1, False)
    assert (rounds.reached, rounds.kept) == (pytest.approx(1.2), True)
    best, rounds = more_than_another(mine, others, echo, "other", 3)
    assert (best.reached, best.unit, best.kept) == (pytest.approx(0.2), "echoes", True)
    assert rounds.reached == pytest.approx(0.4)
    assert times_another([Window(1.0, 5, None, 0)], others[:1], "other") == []
    assert more_than_another(mine, others, [], "other") == []


def test_a_goal_is_a_most_or_a_least_and_a_missed_one_is_marked() -> None:
    goals = [Goal("p99", 21.5, "us", 20.0), Goal("rows", 250_000, "", 200_000, at_least=True), Goal("beside", 1.234)]
    assert [goal.kept for goal in goals] == [False, True, True]
    assert not Goal("rows", 1.0, goal=2.0, at_least=True).kept
    shown = [
        {"figure": one.figure, "reached": one.reached, "unit": one.unit, "goal": one.goal, "at_least": one.at_least}
        | {"kept": one.kept}
        for one in goals
    ]
    headings, *rows = table.of_goals({"scenarios": {"access-x": {"goals": shown}, "kv": {}}})
    assert headings == table.GOAL_HEADINGS
    assert rows == [
        ("access-x", "p99", "21.5 us", "<= 20 us", "MISSED"),
        ("access-x", "rows", "250,000", ">= 200,000", ""),
        ("access-x", "beside", "1.23", "", ""),
    ]
    assert table.of_goals({"scenarios": {}}) == []


def test_rules_and_rows_are_in_the_data_before_a_gateway_starts(tmp_path: Path) -> None:
    lay_rules(tmp_path / "rules", 200)
    with sqlite3.connect(tmp_path / "rules" / "tasks.db") as database:
        assert database.execute("SELECT count(*), count(DISTINCT principal_id) > 20 FROM access_rules").fetchone() == (
            200,
            1,
        )
        assert database.execute("SELECT count(*) FROM access_groups").fetchone() == (2,)
    database.close()
    lay_audit(tmp_path / "rows", 77)
    with sqlite3.connect(tmp_path / "rows" / "tasks.db") as database:
        kinds = {kind for (kind,) in database.execute("SELECT DISTINCT event_type FROM audit_log")}
        assert kinds >= {"auth", "authorization", "message"}
        assert database.execute("SELECT size >= 77 FROM audit_trees").fetchone() == (1,)
    database.close()
