"""Small real runs with a gateway and a worker, on every transport and shape."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aether_trio.config import ApiKey, describe, load_settings
from aether_trio.services.credentials.checker import hash_api_key
from tests.helpers.gateway import GatewayProcess, start_gateway

ROOT = Path(__file__).parents[2]
LIMIT_S = 300
KEY = "aek_for-this-test"


def load(place: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests", "--users", "20", "--minutes", "0.05", "--talking", "100", "--rate", "20", "--interval", "0.2",
         "--out", str(place), *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    report = place / "report.json"
    return done, json.loads(report.read_text()) if report.exists() else {}


def well(done: subprocess.CompletedProcess[str], report: dict[str, Any]) -> dict[str, Any]:
    """Nothing failed, and the page is there; the report."""
    assert done.returncode == 0, (done, report.get("complaints"))
    assert report["failures"] == []
    assert report["errors"] == {}
    assert report["messages"]["lost"] == report["messages"]["repeated"] == report["messages"]["out_of_order"] == 0
    assert report["messages"]["sent"] > 0
    assert "written to " in done.stdout
    return report


@pytest.mark.parametrize("transport", ["framed", "websocket", "grpc", "grpc-raw"])
def test_every_message_of_every_transport_arrives_once(transport: str, tmp_path: Path) -> None:
    report = well(*load(tmp_path, "--transport", transport))
    messages, latency = report["messages"], report["latency_ms"]
    assert messages["received"] == messages["sent"] == latency["message"]["count"]
    assert report["connections"]["connects"] == latency["connect"]["count"] == 20
    assert ("ack" in latency) == (transport == "framed")
    assert report["gateway"]["rss_mib"] > 10
    assert {row["phase"] for row in report["timeline"]} >= {"connect", "hold", "drain"}
    assert (tmp_path / "report.html").read_text().count("<figure>") >= 6


@pytest.mark.parametrize("transport", ["framed", "websocket", "grpc"])
def test_after_a_storm_all_are_back_with_their_sessions(transport: str, tmp_path: Path) -> None:
    done, report = load(tmp_path, "--transport", transport, "--shape", "storm", "--jitter", "0.1")
    assert (report["cut"], report["back"]) == (20, 20)
    assert report["resumed_after_cut"] == 20
    assert report["connections"]["connects"] == 40
    assert [mark["text"] for mark in report["marks"]][:3] == ["all connected", "all cut", "the last of 20 is back"]
    if transport == "framed":  # the others acknowledge nothing, so what was under way is in doubt
        assert report["messages"]["received"] == report["messages"]["sent"]
        well(done, report)
    assert report["messages"]["lost"] == 0


@pytest.mark.parametrize("transport", ["framed", "websocket"])
def test_a_broadcast_reaches_every_user(transport: str, tmp_path: Path) -> None:
    report = well(*load(tmp_path, "--transport", transport, "--shape", "fan-out", "--processes", "2"))
    assert report["messages"]["received"] == 20 * report["messages"]["sent"]


def test_slow_readers_get_everything_and_are_counted_apart(tmp_path: Path) -> None:
    latency = well(*load(tmp_path, "--shape", "slow-readers", "--slow", "20"))["latency_ms"]
    assert latency["slow"]["count"] > 0
    assert latency["message"]["count"] > 0


def test_in_churn_users_come_back_and_nothing_is_lost(tmp_path: Path) -> None:
    report = well(*load(tmp_path, "--shape", "churn", "--lifetime", "0.5", "--minutes", "0.1"))
    assert report["connections"]["connects"] > 20
    assert report["messages"]["received"] == report["messages"]["sent"]


def test_the_ramp_comes_in_steps(tmp_path: Path) -> None:
    report = well(*load(tmp_path, "--shape", "ramp", "--minutes", "0.1"))
    heights = {row["connected"] for row in report["timeline"] if row["phase"] == "connect"}
    assert len(heights) > 3
    assert max(heights) == 20


def test_a_gateway_that_runs_already_is_left_running(tmp_path: Path) -> None:
    with start_gateway(ephemeral=True) as gateway:
        report = well(*load(tmp_path, "--target", gateway.address, "--pid", str(gateway.pid)))
        assert gateway.running
    assert report["gateway"]["rss_mib"] > 10


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One key, for agents; five messages at once, then one a second."""
    directory = tmp_path_factory.mktemp("strict")
    record = ApiKey(id="test", sha256=hash_api_key(KEY), principal="agent")
    flags = {"gateway.host": "127.0.0.1", "auth.api_keys": [record]}
    flags |= {"limits.send_rate_per_s": 1.0, "limits.send_burst": 5}
    (directory / "aether.yaml").write_text(describe(load_settings(flags=flags)))
    command = [sys.executable, "-m", "aether_trio", "serve", "--config", str(directory / "aether.yaml")]
    with start_gateway(ephemeral=True, command=command) as process:
        yield process


@pytest.mark.parametrize("transport", ["framed", "websocket", "grpc-raw"])
def test_users_that_are_refused_for_good_give_up(transport: str, strict: GatewayProcess, tmp_path: Path) -> None:
    done, report = load(tmp_path, "--transport", transport, "--target", strict.address)
    assert done.returncode == 1
    assert set(report["errors"]) == {"UNAUTHENTICATED"}
    assert "needs a credential" in report["error_texts"]["UNAUTHENTICATED"]
    assert report["connections"]["gave_up"] == 20
    assert report["failures"] == ["at most 0 of 20 users were connected at a time"]


@pytest.mark.parametrize("transport", ["framed", "grpc-raw"])
def test_refused_messages_are_counted_by_code_not_lost(transport: str, strict: GatewayProcess, tmp_path: Path) -> None:
    done, report = load(
        tmp_path, "--transport", transport, "--target", strict.address, "--credential", f"api_key={KEY}"
    )
    assert done.returncode == 1
    messages = report["messages"]
    assert report["errors"] == {"ERR_RATE_LIMITED": messages["refused"]}
    assert messages["refused"] > 0
    assert messages["sent"] == messages["received"] + messages["refused"]
    assert report["failures"] == [f"{messages['refused']:,} messages refused"]


def test_a_process_that_has_ended_is_an_error(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pid = ended.pid
    with start_gateway(ephemeral=True) as gateway:
        done, _ = load(tmp_path, "--target", gateway.address, "--pid", str(pid))
    assert (done.returncode, done.stderr) == (1, f"load: process {pid} has ended\n")


def test_ctrl_c_ends_early_with_a_report_and_twice_without(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests", "--users", "4", "--minutes", "60", "--talking", "100", "--rate", "20"]
    for interrupts in (1, 2):
        place, data = tmp_path / str(interrupts), tmp_path / "data"
        data.mkdir(exist_ok=True)
        # Its standard error says when it is under way; the gateway and the workers are sessions of
        # their own, as for a terminal.
        with subprocess.Popen(
            [*command, "--interval", "0.2", "--out", str(place), "--data-root", str(data)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                said = ""
                # The first such line comes some rows after all were connected.
                while " hold " not in said:
                    said = process.stdout.readline()
                    assert said, "it has ended"
                os.killpg(process.pid, signal.SIGINT)
                while "ending early" not in said:
                    said = process.stdout.readline()
                    assert said, "it has ended"
                if interrupts == 2:
                    os.killpg(process.pid, signal.SIGINT)
                rest = process.stdout.read()
            finally:
                process.kill()
        assert list(data.iterdir()) == []
        if interrupts == 2:
            assert (process.returncode, "interrupted" in rest) == (130, True), rest
            assert not (place / "report.json").exists()
        else:
            assert (process.returncode, "nothing lost, all well" in rest) == (0, True), rest
            report = json.loads((place / "report.json").read_text())
            assert "ended early" in [mark["text"] for mark in report["marks"]]
            assert report["messages"]["received"] == report["messages"]["sent"] > 0
