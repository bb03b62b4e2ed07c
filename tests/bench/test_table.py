"""Tables for consoles and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import table

LATENCY = {"p50": 1000.0, "p90": 2000.0, "p99": 3000.0, "p99.9": 4000.0, "max": 5000.0}
RESULTS: dict[str, Any] = {
    "machine": {
        "cores": 2,
        "cpu": "A CPU",
        "kernel": "6.1",
        "python": "CPython 3.11",
        "packages": {"trio": "0.30"},
        "fsync_us": 80.4,
    },
    "scenarios": {
        "routed-16": {
            "rate": {"best": 12345.6, "mean": 1.0},
            "echoes": {"best": 1.987, "mean": 2.5},
            "cpu_us": {"best": 30.0, "mean": 40.0},
            "echo_us": {"best": 15.04, "mean": 16.0},
            "latency_us": {"all": LATENCY},
            "load_us": 8.0,
            "checks": {"sent": 7000, "lost": 0},
            "failed": "",
        },
        "idle": {"failed": "memory needs the server's process"},
    },
}


def test_a_row_holds_each_figure_under_its_heading() -> None:
    routed, idle = table.rows(RESULTS)
    assert dict(zip(table.HEADINGS[:4], routed, strict=False)) == {
        "scenario": "routed-16",
        "transport": "grpc",
        "rate /s": "12,346",
        "echoes": "1.99",
    }
    assert routed[4:] == ("2.50", "30.0", "40.0", "1.00", "2.00", "3.00", "4.00", "5.00", "")
    assert idle == ("idle", "grpc", *[""] * (len(table.HEADINGS) - 2))


def test_the_console_says_what_was_checked_and_what_failed() -> None:
    shown = table.text(RESULTS)
    assert "routed-16: 7,000 sent, 0 lost; load 8.0 us each" in shown
    assert "idle: FAILED: memory needs the server's process" in shown


def test_the_cpu_of_the_machine_is_below_the_table() -> None:
    found = separate_queue(kv=measured(7.0, machine_us=55.04, kernel_us=2.5), framed__kv=measured(7.0, machine_us=40.0))
    shown = table.text(found)
    assert "load 8.0 us each; machine 55.0 us each (2.5 of them the kernel's threads)" in shown
    assert "machine 40.0 us each\n" in shown + "\n"


def test_a_cluster_is_shown_by_its_parts() -> None:
    done = {"database_share": 0.25, "groups_per_s": 1234.5, "rows_per_group": 7.0, "notifies_per_s": 90.0}
    done |= {"wakes_per_s": 80.0, "reads_per_s": 70.0, "rows_per_read": 6.0, "pushed_per_s": 50.0}
    results = separate_queue(cluster_2_across=measured(4.0, cluster=done), routed_16=measured(1.0))
    headings, row = table.of_clusters(results)
    shown = dict(zip(headings, row, strict=True))
    assert (shown["echoes"], shown["gateways"], shown["database"]) == ("4.00", "3.00", "1.00")
    assert (shown["groups /s"], shown["rows a group"], shown["NOTIFY /s"]) == ("1,234", "7.0", "90")
    assert " | ".join(row) in table.markdown(results)
    assert "rows a read" in table.text(results)
    assert shown["pushed /s"] == "50"
    assert table.of_clusters(separate_queue(routed_16=measured(1.0))) == []


def separate_queue(**scenarios: dict[str, Any]) -> dict[str, Any]:
    return RESULTS | {"scenarios": {name.replace("__", "/").replace("_", "-"): one for name, one in scenarios.items()}}


def measured(echoes: float, **more: Any) -> dict[str, Any]:
    return RESULTS["scenarios"]["routed-16"] | {"echoes": {"best": echoes, "mean": 9.0}} | more


def test_transports_stand_side_by_side() -> None:
    found = separate_queue(
        raw_echo=measured(1.0),
        idle=measured(0.1, kib_per_connection=18.84),
        framed__idle=measured(0.1, kib_per_connection=9.0),
        kv=measured(7.0),
        framed__kv={"failed": "broken"},
    )
    assert table.side_by_side(found) == [
        ("echoes", "grpc", "framed"),
        ("idle", "18.8 KiB", "9.0 KiB"),
        ("kv", "7.00", "failed"),
    ]
    assert [row[:2] for row in table.rows(found)][1:3] == [("idle", "grpc"), ("idle", "framed")]
    assert "| idle | 18.8 KiB | 9.0 KiB |\n| kv | 7.00 | failed |\n\n| scenario | transport |" in table.markdown(found)
    shown = table.text(found).splitlines()
    assert [line.split() for line in shown if line.startswith("kv ")][-1] == ["kv", "7.00", "failed"]


def test_one_transport_stands_alone() -> None:
    assert table.side_by_side(RESULTS) == []
    assert table.side_by_side(separate_queue(raw_echo=measured(1.0), framed__kv=measured(7.0))) == []


def test_a_page_gets_the_table_between_its_markers_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):  # rendering again changes nothing
        table.render(page, RESULTS)
        text = page.read_text()
        assert text.startswith(f"before\n{table.BEGIN}\n")
        assert text.endswith(f"{table.END}\nafter\n")
        assert "old" not in text
        assert text.count("| routed-16 | grpc | 12,346 | 1.99 |") == 1
        assert "one echo was 15.0 us" in " ".join(text.split())


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="has no"):
        table.render(page, RESULTS)
    assert page.read_text() == "nothing here"
