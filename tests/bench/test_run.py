"""Whole small runs: what is counted, and that no fault of a gateway is missed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import cli, world
from bench.scenarios import FAMILIES, SCENARIOS, base

TINY = ["--quick", "--window", "0.05", "--pairs", "4", "--connections", "40", "--fanout", "5,10"]

Start = Callable[..., list[str]]


@pytest.fixture(params=["grpc", "framed", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Start]:
    """Start the stub gateway with some faults; give the bench's arguments for it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(transport: str, *faults: str) -> list[str]:
        ready = tmp_path / "stub.json"
        aimed = ["--transport", transport]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.stub_gateway", *aimed, "--ready-file", str(ready), *faults]
        )
        started.append(process)
        while not ready.exists():
            assert process.poll() is None, "the stub did not start"
            time.sleep(0.01)
        found = json.loads(ready.read_text())
        return [*aimed, "--target", found["gateway"], "--pid", str(found["pid"])]

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the bench; gives its exit status and its results by scenario."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "out.json"
        status = cli.main([*TINY, "--json", str(out), *arguments])
        return status, json.loads(out.read_text())["scenarios"]

    return run


def test_every_scenario_measures_another_gateway(transport: str, stub: Start, bench: Callable[..., Any]) -> None:
    status, results = bench(*stub(transport))
    found = {name.removeprefix(f"{transport}/"): result for name, result in results.items()}
    assert set(found) == set(SCENARIOS)
    assert {name: result["failed"] for name, result in found.items()} == dict.fromkeys(SCENARIOS, "")
    assert status == 0
    for name, result in found.items():
        assert result["rate"]["best"] > 0
        assert result["echoes"]["best"] > 0 or name == "idle"  # rest may cost nothing
        assert len(result["echo_windows"]) == len(result["windows"]) + 1
    for name in ("routed-1", "routed-16", "paced", "enqueue"):
        checks = found[name]["checks"]
        assert checks["sent"] == checks["received"] > 0
        assert found[name].get("ack_frames", 0) == (checks["sent"] if transport == "framed" else 0)
    fanout = found["fanout-1000"]["checks"]
    assert fanout["received"] == 10 * fanout["sent"] > 0
    assert found["idle"]["checks"] == {"connections": 40}
    assert [step["connections"] for step in found["idle"]["memory_steps"]] == [0, 10, 20, 30, 40]
    assert found["paced"]["latency_us"]["all"]["p50"] > 0


def test_every_quiet_scenario_measures_another_gateway(transport: str, stub: Start, bench: Callable[..., Any]) -> None:
    status, results = bench("quiet", *stub(transport))
    found = {name.removeprefix(f"{transport}/"): result for name, result in results.items()}
    assert {name: result["failed"] for name, result in found.items()} == dict.fromkeys(FAMILIES["quiet"], "")
    assert status == 0
    for name, result in found.items():
        assert result["echoes"]["best"] > 0
        assert result["gated"] == ([] if name == "raw-echo-paced" else ["echoes"])
        assert result["latency_us"]["all"]["p50"] > 0
        assert result["machine_us"] >= 0  # in ticks of 10 ms
        assert result["parameters"].get("rate") == {
            "raw-echo-paced": 1000.0,
            "paced-1000": 1000.0,
            "paced-5000": 5000.0,
            "kv-paced": 1000.0,
        }.get(name)
    for name in ("paced-1000", "paced-5000"):
        assert found[name]["checks"]["sent"] == found[name]["checks"]["received"] > 0
    lone = found["fanout-1000-lone"]
    assert lone["checks"]["received"] == 10 * lone["checks"]["sent"] > 0
    assert lone["parameters"]["window"] == found["kv-1"]["parameters"]["window"] == 1
    for name in ("kv-paced", "kv-1"):
        assert found[name]["checks"]["operations"] > 0
    assert found["connect-open"]["checks"]["connections"] > 0


@pytest.mark.parametrize("scenario", ["routed-16", "fanout-100", "enqueue"])
def test_a_repeated_message_fails_the_run(scenario: str, stub: Start, bench: Callable[..., Any]) -> None:
    status, found = bench(scenario, *stub("grpc", "--repeat", "7"))
    assert status == 1
    assert found[scenario]["checks"]["repeated"] > 0
    assert "repeated" in found[scenario]["failed"]


@pytest.mark.parametrize("scenario", ["routed-16", "fanout-100", "paced-1000", "fanout-100-lone"])
def test_a_lost_message_fails_the_run(
    scenario: str, stub: Start, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is lost never comes, however long one waits.
    monkeypatch.setattr(base, "DRAIN_SECONDS", 0.3)
    status, found = bench(scenario, *stub("grpc", "--lose", "7"))
    assert status == 1
    assert "still missing" in found[scenario]["failed"]


def test_a_publication_that_is_never_acknowledged_fails_the_run(
    stub: Start, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "SETTLING_SECONDS", 0.3)
    status, found = bench("routed-1", *stub("framed", "--forget", "7"))
    assert status == 1
    assert "never acknowledged" in found["framed/routed-1"]["failed"]


def test_a_refusal_is_reported_by_its_code(transport: str, stub: Start, bench: Callable[..., Any]) -> None:
    status, found = bench("routed-16", *stub(transport, "--refuse", "7"))
    (result,) = found.values()
    assert status == 1
    assert result["errors"]["ERR_RATE_LIMITED"] == result["checks"]["refused"] > 0
    assert result["checks"]["lost"] == 0
    assert "x ERR_RATE_LIMITED" in result["failed"]


@pytest.mark.parametrize(
    ("transport", "words"),
    [("grpc", "gRPC status 7"), ("framed", "framed error 7"), ("websocket", "WebSocket close 4207")],
)
def test_a_refused_connection_has_a_reason(transport: str, words: str, stub: Start, bench: Callable[..., Any]) -> None:
    status, found = bench("routed-1", *stub(transport, "--refuse-all"))
    (result,) = found.values()
    assert status == 1
    assert f"{words} the stub refuses all clients" in result["failed"]


def test_a_target_without_a_process_gives_rates_only(stub: Start, bench: Callable[..., Any]) -> None:
    status, found = bench("routed-1", "idle", *stub("grpc")[:4])
    assert found["routed-1"]["echoes"] is None
    assert found["routed-1"]["rate"]["best"] > 0
    assert "give --pid" in found["idle"]["failed"]
    assert status == 1


def test_no_listener_is_a_failure_not_a_wait(bench: Callable[..., Any]) -> None:
    status, found = bench("kv", "--transport", "grpc", "--target", "127.0.0.1:1")
    assert status == 1
    assert "refused" in found["kv"]["failed"]


def test_our_gateway_is_started_measured_and_ended_on_each_transport(bench: Callable[..., Any], tmp_path: Path) -> None:
    status, found = bench("connect", "idle", "routed-16", "--data-root", str(tmp_path))
    assert {name: result["failed"] for name, result in found.items()} == dict.fromkeys(found, "")
    assert status == 0
    assert list(found) == [
        f"{transport}{name}" for name in ("connect", "idle", "routed-16") for transport in ("", "framed/", "websocket/")
    ]
    for transport in ("", "framed/", "websocket/"):
        assert (
            found[f"{transport}routed-16"]["checks"]["received"] == found[f"{transport}routed-16"]["checks"]["sent"] > 0
        )
        assert found[f"{transport}idle"]["checks"]["connections"] == 40
    assert found["framed/routed-16"]["ack_frames"] > 0
    assert not list(tmp_path.glob("aether-bench-*"))  # its data went with it


def test_a_cluster_is_started_measured_by_its_parts_and_ended(bench: Callable[..., Any]) -> None:
    chosen = ("cluster-2-across", "cluster-workers-2", "cluster-paced-across")
    # PostgreSQL may run as another user.
    with tempfile.TemporaryDirectory(prefix="aether-test-bench-") as place:
        Path(place).chmod(0o755)
        # Longer windows: something is to be committed and told in them on a machine that is busy,
        # too.
        status, found = bench(*chosen, "--window", "0.25", "--data-root", place)
        assert not list(Path(place).iterdir())
    assert {name: result["failed"] for name, result in found.items()} == dict.fromkeys(chosen, "")
    assert status == 0
    for name, result in found.items():
        done = result["cluster"]
        assert result["checks"]["received"] == result["checks"]["sent"] > 0
        assert 0 < done["database_share"] < 1
        assert done["groups_per_s"] > 0
        assert done["rows_per_group"] > 0
        if name != "cluster-workers-2":  # there the kernel may put all on one
            assert done["wakes_per_s"] > 0
            assert done["notifies_per_s"] > 0
            assert done["pushed_per_s"] + done["rows_per_read"] > 0  # a lone message is pushed


def test_a_cluster_is_never_another_gateway(bench: Callable[..., Any]) -> None:
    status, found = bench("cluster-1", "--target", "127.0.0.1:1")
    assert status == 1
    assert "--target is for one gateway" in found["cluster-1"]["failed"]


@pytest.mark.parametrize("transport", ["grpc", "framed", "framed-acks", "websocket"])
def test_absent_receivers_catch_up(transport: str, bench: Callable[..., Any], tmp_path: Path) -> None:
    status, found = bench("enqueue", "--transport", transport, "--data-root", str(tmp_path))
    (result,) = found.values()
    assert result["failed"] == ""
    assert status == 0
    assert result["catch_up"]["messages"] == result["checks"]["sent"] > 0


def test_a_gateway_that_does_not_start_says_why(bench: Callable[..., Any], tmp_path: Path) -> None:
    status, found = bench("kv", "--transport", "grpc", "--server-arg=--no-such-option", "--data-root", str(tmp_path))
    assert status == 1
    assert "before it was ready" in found["kv"]["failed"]
    assert "--no-such-option" in found["kv"]["failed"]


def test_a_profile_is_written_for_each_scenario(bench: Callable[..., Any], tmp_path: Path) -> None:
    status, _ = bench(
        "kv", "--transport", "grpc", "--profile", str(tmp_path / "out.prof"), "--data-root", str(tmp_path)
    )
    assert status == 0
    assert "function calls" in (tmp_path / "out.kv.txt").read_text()
    assert (tmp_path / "out.kv.prof").stat().st_size > 0
    assert json.loads((tmp_path / "out.json").read_text())["profiled"] is True
