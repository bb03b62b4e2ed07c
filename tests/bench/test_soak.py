"""What samples of a long run say, and a short run with all its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import cli, table
from bench.latency import Latencies
from bench.soak import Sample, Watch, cpu_trend, file_sizes
from bench.units import Window, trend

MS = 10**6


def watch(count: int = 100, **given: Any) -> Watch:
    """Samples of seconds; `given` has functions of the second for some fields."""
    made = Watch()
    for second in range(1, count + 1):
        plain: dict[str, Any] = {
            "messages": 10 * second,
            "rss_kib": 102_400 + second % 2,
            "wal_bytes": 1 << 20,
            "file_bytes": 5 << 20,
            "fds": 20,
            "longest_ns": 3 * MS,
            "echo_ns": MS,
            "waited_ns": 20 * MS,
        }
        made.add(Sample(float(second), **plain | {name: value(second) for name, value in given.items()}))
    return made


def test_level_figures_are_level_with_noise_and_rising_ones_rise() -> None:
    found = watch(file_bytes=lambda second: second << 20).summary()["trends"]
    assert {name: line["rises"] for name, line in found.items()} == {
        "memory MiB": False,
        "WAL MiB": False,
        "other files MiB": True,
        "file descriptors": False,
    }
    assert found["other files MiB"]["per_hour"] == pytest.approx(3600)
    assert found["file descriptors"] == {
        "mean": 20,
        "least": 20,
        "most": 20,
        "per_hour": 0,
        "error": 0,
        "rises": False,
    }


def test_what_grows_at_first_and_then_no_more_is_level() -> None:
    found = watch(rss_kib=lambda second: 1024 * min(second, 25)).summary()["trends"]["memory MiB"]
    assert (found["least"], found["most"], found["rises"]) == (25, 25, False)


def test_pauses_are_the_machines_when_the_echo_is_late_or_others_have_the_cpu() -> None:
    late = {10: 150, 11: 300, 50: 120, 90: 200}
    waited = {90: 150}
    echo = {50: 90, 70: 500}
    summary = watch(
        longest_ns=lambda second: late.get(second, 3) * MS,
        echo_ns=lambda second: echo.get(second, 1) * MS,
        waited_ns=lambda second: waited.get(second, 2) * MS,
    ).summary()
    assert summary["pauses"] == {"gateway": 1, "machine": 3}
    assert [(one["from_s"], one["until_s"], one["ms"], one["of"]) for one in summary["longest_pauses"]] == [
        (9, 11, 300, "gateway"),
        (89, 90, 200, "machine"),
        (49, 50, 120, "machine"),
        (69, 70, 3, "machine"),
    ]
    first, second, *_ = table.pauses(summary)
    assert first == "1 pauses over 100 ms of the gateway, 3 of the machine"
    assert second == "300 ms in second 9 to 11 (gateway; echo 1 ms, waited for a CPU 4 ms)"


def test_cpu_has_a_trend_by_windows() -> None:
    dearer = [Window(60.0, 1000, (100 + minute) * 1_000_000, 0) for minute in range(20)]
    found = cpu_trend(dearer)["CPU us a message"]
    assert found["rises"]
    assert found["per_hour"] == pytest.approx(60)
    assert not cpu_trend([Window(60.0, 1000, 100_000_000, 0)] * 20)["CPU us a message"]["rises"]
    assert cpu_trend([Window(60.0, 1000, None, 0)] * 20) == {}


def test_a_trend_has_the_error_of_its_slope() -> None:
    assert trend([(0, 1), (1, 3), (2, 5)]).slope == 2
    assert trend([(0, 1), (1, 3), (2, 5)]).error == pytest.approx(0)
    noisy = trend([(0, 1), (1, -1), (2, 1), (3, -1)])
    assert noisy.slope == pytest.approx(-0.4)
    assert noisy.error == pytest.approx((0.8 * 4 / 2 / 5) ** 0.5)
    with pytest.raises(ValueError, match="three points"):
        trend([(0, 1), (1, 1)])


def test_write_ahead_logs_are_apart_from_other_files(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "log.db-wal").write_bytes(bytes(10))
    (tmp_path / "deeper" / "log.db").write_bytes(bytes(300))
    (tmp_path / "other").write_bytes(bytes(7))
    assert file_sizes(tmp_path) == (10, 307)


def test_latencies_are_folded_to_ten_microseconds() -> None:
    latencies = Latencies()
    assert latencies.fold() == 0
    latencies.pending.extend([5 * MS, 1 * MS, 2 * MS])
    assert latencies.fold() == 5 * MS
    assert not latencies.pending
    latencies.pending.append(3 * MS)
    latencies.fold()
    summary = latencies.summary()
    assert summary["count"] == 4
    assert summary["all"]["max"] == pytest.approx(5000, rel=0.01)
    assert latencies.summary()["count"] == 4


def test_a_short_run_watches_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    sizes = ["--quick", "--window", "0.1", "--minutes", "0.05", "--rate", "100", "--pairs", "4"]
    assert cli.main(["soak", *sizes, "--transport", "framed", "--data-root", str(tmp_path), "--json", str(out)]) == 0
    (result,) = json.loads(out.read_text())["scenarios"].values()
    assert result["failed"] == ""
    checks = result["checks"]
    assert checks["sent"] == checks["received"] > 0
    assert checks["operations"] > 0
    assert checks["tasks"] > 0
    assert len(result["windows"]) == 10
    soak = result["soak"]
    assert len(soak["samples"]) > 2
    assert len(soak["samples"][0].split()) == len(soak["columns"].split())
    assert soak["trends"]["memory MiB"]["mean"] > 10
    assert soak["trends"]["file descriptors"]["mean"] > 10
    assert soak["trends"]["other files MiB"]["mean"] > 0
    assert soak["trends"]["CPU us a message"]["mean"] > 0
    for latencies in (result["latency_us"]["all"], *(soak[f"{one}_us"] for one in ("operations", "tasks", "echo"))):
        assert latencies["max"] >= latencies["p50"] > 0
    shown = capsys.readouterr().out
    assert "framed/soak: memory MiB" in shown
    assert "pauses over 100 ms of the gateway" in shown
