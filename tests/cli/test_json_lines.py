"""With JSON logs each line of a serving command is JSON, from start to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import AETHER, LIMIT_S, aether, clean_environment
from tests.helpers.gateway import start_gateway

AGENTS = """
agents:
  echo:
    command: [sh, -c, 'echo "here is $AETHER_IDENTITY"; exec sleep 600']
"""
GROWN = {"level", "timestamp", "event"}


def objects(text: str) -> list[dict[str, Any]]:
    """Each line as JSON; raises for any other line."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(set(one) >= GROWN for one in found), found
    return found


@pytest.mark.parametrize("how", ["option", "environment", "file"])
def test_each_line_of_a_gateway_from_start_to_stop(how: str, tmp_path: Path) -> None:
    config = tmp_path / "aether.yaml"
    config.write_text("logging: {format: json}\n" if how == "file" else "")
    extra = ["--config", str(config), *(["--log-format", "json"] if how == "option" else [])]
    env = {"AETHER_LOG_FORMAT": "json"} if how == "environment" else {}
    with start_gateway(data_dir=tmp_path / "data", extra_args=extra, env=env) as gateway:
        os.kill(gateway.pid, signal.SIGTERM)
        assert gateway.wait() == 0
        lines = objects(gateway.output())
        said = [one["event"] for one in lines]
        serving = next(one for one in lines if "is serving on" in one["event"])
        assert serving["address"] == gateway.address
        assert set(serving["transports"]) == {"grpc", "framed", "websocket"}
        assert any(text.startswith("SIGTERM: draining") for text in said)
        assert said[-1] == "drained"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["dev", "--set", "grpc.drain_deadline=3"], 3, "unknown key grpc.drain_deadline"),
        (["serve"], 3, "refusing to listen on"),
        (["dev", "--data-dir", "/proc/nothing"], 3, "cannot use the data directory"),
        (["dev", "--set", "tls.cert=none.pem", "--set", "tls.key=none.pem"], 3, "cannot read tls.cert"),
        (["dev", "--nodes", "2", "--set", "grpc.port=7001"], 3, "grpc.port is set"),
        (["orchestrate", "none.yaml"], 3, "none.yaml"),
    ],
)
def test_errors_of_the_start_are_json_too(arguments: list[str], code: int, text: str) -> None:
    done = aether(*arguments, AETHER_LOG_FORMAT="json")
    assert done.returncode == code
    assert done.stdout == ""
    last = objects(done.stderr)[-1]
    assert text in last["event"]
    assert last["level"] == "error"


UNEXPECTED = """
import sys, threading, warnings
from aether_trio.cli.json_lines import begin_log
from aether_trio.cli.output import announce
from aether_trio.config import LoggingSettings
begin_log(LoggingSettings(format="json"))
announce("one\\n  two\\n  three", lines=True)
warnings.warn("of a library\\nin two lines", stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Loud:
    def __del__(self):
        raise ValueError("ignored")
Loud()
raise RuntimeError("the end\\nof it")
"""


def test_tracebacks_and_warnings_are_json_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNEXPECTED], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    lines = objects(done.stderr)
    assert lines[0]["event"] == "one"
    assert lines[0]["details"] == ["two", "three"]
    assert "of a library" in lines[1]["event"]
    assert [one["exception"][0]["exc_type"] for one in lines[2:]] == ["ZeroDivisionError", "ValueError", "RuntimeError"]
    assert "values" not in done.stderr  # of variables


def test_lines_of_agents_have_time_and_agent(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    for log_format in ("console", "json"):
        with start_gateway(ephemeral=True) as gateway:
            command = [*AETHER, "orchestrate", "agents.yaml", "--gateway", gateway.address, "--log-format", log_format]
            with subprocess.Popen(
                command,
                cwd=tmp_path,
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                stream = process.stderr if log_format == "json" else process.stdout
                assert stream is not None
                lines = iter(stream.readline, "")
                first = next(lines)
                assert aether("send", "ag::w::echo::1", "hello", "--gateway", gateway.address).returncode == 0
                seen = list(_until(lines, "here is ag::w::echo::1"))
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=LIMIT_S)
        if log_format == "json":
            found = objects(first + "".join(seen) + err)
            assert out == ""
            said = next(one for one in found if one["event"] == "here is ag::w::echo::1")
            assert (said["agent"], said["kind"]) == ("ag::w::echo::1", "output")
            assert any(one.get("kind") == "event" and "process" in one["event"] for one in found)
            assert any("SIGTERM: stopping the agents" in one["event"] for one in found)
        else:
            assert all(line[:4].isdigit() and line[10] == " " and line[23] == " " for line in seen), seen
            assert seen[-1][24:] == "ag::w::echo::1 | here is ag::w::echo::1\n"


def _until(lines: Iterator[str], text: str) -> Iterator[str]:
    for line in lines:
        yield line
        if text in line:
            return
    raise AssertionError(f"{text} was not said")


def test_systemd_is_told_of_ready_reload_and_stop(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(LIMIT_S)
        (tmp_path / "aether.yaml").write_text("auth: {allow_anonymous: true}\n")
        command = [*AETHER, "serve", "--host", "127.0.0.1", "--config", str(tmp_path / "aether.yaml")]
        env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000"}
        with start_gateway(data_dir=tmp_path / "data", command=command, env=env) as gateway:
            assert listener.recv(4096) == f"READY=1\nSTATUS=serving on {gateway.address}".encode()
            assert listener.recv(4096) == b"WATCHDOG=1"
            assert listener.recv(4096) == b"WATCHDOG=1"
            os.kill(gateway.pid, signal.SIGHUP)
            told = [listener.recv(4096) for _ in range(2)]
            assert told[0].startswith(b"RELOADING=1\nMONOTONIC_USEC=") or told[0] == b"WATCHDOG=1"
            while not told[-1].startswith(b"READY=1"):
                told.append(listener.recv(4096))
            assert any(one.startswith(b"RELOADING=1") for one in told)
            os.kill(gateway.pid, signal.SIGTERM)
            assert gateway.wait() == 0
            while told[-1] != b"STOPPING=1\nSTATUS=draining":
                told.append(listener.recv(4096))
