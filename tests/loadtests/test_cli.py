"""The command line: its arguments, and what it says to wrong ones."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadtests import cli
from loadtests.plan import TRANSPORTS
from loadtests.shapes import SHAPES

FILES = 20_000
ROOT = Path(__file__).parents[2]
LIMIT_S = 300


def parts(*arguments: str):
    return cli.plan(cli.parser().parse_args(arguments), FILES)


def test_defaults_are_the_shapes() -> None:
    whole, (part,) = parts("--transport", "framed", "--users", "10000", "--minutes", "2")
    assert (whole.users, whole.seconds, whole.shape, whole.talking, whole.payload) == (10_000, 120.0, "chat", 1.0, 200)
    assert (part.first, part.count, part.streams, part.sources) == (0, 10_000, 1, ("",))
    slow, _ = parts("--shape", "slow-readers", "--talking", "0", "--slow", "50")
    assert (slow.payload, slow.talking, slow.slow) == (4096, 0.0, 50.0)


def test_processes_share_users_and_rates() -> None:
    whole, shares = parts("--users", "50000", "--target", "127.0.0.1:1", "--connect-rate", "900", "--connecting", "90")
    assert [part.count for part in shares] == [16_668, 16_666, 16_666]
    assert {part.connect_rate for part in shares} == {300.0}
    assert {part.connecting for part in shares} == {30}
    assert len(whole.sources) == -(-50_000 // whole.per_address)


def test_grpcio_gets_few_connections_and_the_others_one_for_each_user() -> None:
    assert parts("--transport", "grpc", "--users", "1000")[0].streams == 125
    assert parts("--transport", "grpc", "--users", "1000", "--streams", "1")[0].streams == 1
    assert parts("--transport", "grpc-raw", "--users", "1000")[0].streams == 1


def test_users_of_a_transport_are_whom_it_lets_in() -> None:
    agent, window = parts("--transport", "framed")[0], parts("--transport", "websocket")[0]
    assert str(agent.identity(7)) == f"ag::{agent.run}::load::7"
    assert str(window.identity(7)) == f"us::{window.run}-7::w"
    assert (agent.broadcast_topic, window.broadcast_topic) == (f"ga::{agent.run}", f"gu::{window.run}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--transport", "carrier-pigeon"], "invalid choice"),
        (["--shape", "cube"], "invalid choice"),
        (["--users", "0"], "0 is not above 0"),
        (["--users", "1"], "two make a conversation"),
        (["--users", "many"], "'many' is no whole number"),
        (["--rate", "fast"], "'fast' is no number"),
        (["--pid", "gateway"], "'gateway' is no whole number"),
        (["--minutes", "-1"], "-1 is not above 0"),
        (["--talking", "101"], "not between 0 and 100"),
        (["--jitter", "-1"], "below 0"),
        (["--payload", "10"], "need 24 bytes"),
        (["--target", "nowhere"], "is not HOST:PORT"),
        (["--pid", "1"], "--pid goes with --target"),
        (["--transport", "framed", "--streams", "2"], "--streams is for --transport grpc"),
        (["--credential", "secret"], "is not KEY=VALUE"),
        (["--connecting", "-1"], "not negative"),
        (["--users", "2000000"], "ulimit"),
        (["--users", "100000", "--target", "192.0.2.1:1"], "--source"),
        (["--source", "192.0.2.7"], "--source 192.0.2.7 is no address of this machine"),
        (["--out", "/dev/null/here"], "--out /dev/null/here: Not a directory"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.addresses, "raise_descriptor_limit", lambda: FILES)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_help_names_every_transport_and_shape(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*TRANSPORTS, *SHAPES))
    assert all(shape.doc in out for shape in SHAPES.values())


def test_a_target_that_is_not_there_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as silent:  # bound and not listening: no other process gets the port
        silent.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        assert cli.main(["--target", target, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"load: no gateway answers on {target}: Connection refused\n"


def test_a_run_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    command = [sys.executable, "-m", "loadtests", "--users", "20", "--minutes", "5", "--interval", "0.2"]
    process = subprocess.Popen(
        [*command, "--data-root", str(data), "--out", str(out)], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # no threads here
    )  # fmt: skip
    with process:
        try:
            ready = _wait_for(lambda: next(data.glob("*/ready.json"), None), process)
            gateway = int(_wait_for(lambda: json.loads(ready.read_text() or "{}").get("pid"), process))
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert (process.returncode, said.splitlines()[-1]) == (130, "load: interrupted")
    assert not Path(f"/proc/{gateway}").exists()
    assert list(data.iterdir()) == []


def _wait_for(look: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        assert process.poll() is None
        time.sleep(0.05)
    pytest.fail("it did not come")
