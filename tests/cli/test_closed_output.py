"""Test that commands end when no program reads their output, as behind `head -1`."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.cli.shell import AETHER, LIMIT_S, Shell, aether, clean_environment

CLOSED = 141


def ends(process: subprocess.Popen[bytes], code: int = CLOSED) -> None:
    """Close the pipe of its output, and wait for its end."""
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    try:
        assert process.wait(LIMIT_S) == code
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_watch_ends_when_it_waits(shell: Shell) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "absent").strip()
    process = shell.start("tasks", "watch", task_id)
    assert task_id.encode() in first_line(process)
    ends(process)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_watch_ends_when_it_has_more_to_say(shell: Shell, more: list[str]) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "absent").strip()
    for _ in range(2):
        shell.out("tasks", "cancel", task_id)
        shell.out("tasks", "retry", task_id)
    process = shell.start("tasks", "watch", task_id, "--from", "start", *more)
    first_line(process)
    ends(process)


def test_watch_ends_before_it_has_anything_to_say(shell: Shell) -> None:
    task_id = shell.out("tasks", "create", "press", "--pool", "absent").strip()
    ends(shell.start("tasks", "watch", task_id, "--from", "start"))


def test_tail_ends_when_it_waits(shell: Shell) -> None:
    ends(shell.start("tail", "ag::default::silent::1"))
    shell.out("send", "ag::default::once::1", "x")
    process = shell.start("tail", "ag::default::once::1", "--from", "start")
    first_line(process)
    ends(process)


@pytest.mark.parametrize(
    "arguments",
    [("tasks", "list"), ("kv", "list"), ("kv", "get", "k"), ("sessions", "--json"), ("agents", "list"), ("version",)],
    ids=" ".join,
)
def test_one_that_prints_once(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.out("kv", "put", "k", "v")
    shell.out("tasks", "create", "press", "--pool", "absent")
    ends(shell.start(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "list"),
        ("tasks", "list", "--json"),
        ("kv", "get", "k"),
        ("topics", "show", "ag::default::full::1"),
        ("tail", "ag::default::full::1", "--from", "start", "--no-follow"),
        ("version",),
        ("--help",),
        ("--version",),
        ("kv", "get", "--help"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_said_in_one_line(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.out("kv", "put", "k", "v")
    shell.out("tasks", "create", "press", "--pool", "absent")
    shell.out("send", "ag::default::full::1", "hello")
    with Path("/dev/full").open("wb") as full:
        process = shell.start(*arguments, stdout=full)
        _, said = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, said.decode()) == (
            1,
            "Error: standard output cannot be written: No space left on device\n",
        )
        process = shell.start(*arguments, stdout=full, stderr=full)
        assert process.wait(LIMIT_S) == 1


def test_orchestrate_ends_its_agents_first(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("agents: {echo: {command: [python, echo.py]}}\n", encoding="utf-8")
    process = shell.start("orchestrate", str(file))
    assert b"starts echo" in first_line(process)
    ends(process, 0)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [*AETHER, *arguments, "--port", "0", "--ephemeral"]
    return subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_line(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Return when the process has printed a line with this text."""
    assert process.stdout is not None
    guard = threading.Timer(LIMIT_S, process.kill)
    guard.start()
    try:
        printed = b""
        while text not in printed and (line := process.stdout.readline()):
            printed += line
    finally:
        guard.cancel()
    assert text in printed, f"it has ended, and has printed {printed!r}"


def wait_until_ready(process: subprocess.Popen[bytes], ready: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not ready.exists():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end, "it never serves"
        time.sleep(0.02)


def test_a_gateway_for_development_drains() -> None:
    process = start("dev", "--log-level", "error")
    assert b"is serving on" in first_line(process)
    ends(process, 0)


def test_a_gateway_that_serves_goes_on_though_the_disk_of_its_log_is_full(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    options = ("--port", "0", "--ops-port", "0", "--log-level", "debug")
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [*AETHER, "dev", *options, "--ready-file", str(ready), "--data-dir", str(tmp_path / "data")],
            env=clean_environment(),
            stdout=full,
            stderr=full,
        )
    try:
        wait_until_ready(process, ready)
        address = json.loads(ready.read_text())["gateway"]
        for _ in range(2):
            assert aether("kv", "put", "k", "v", AETHER_GATEWAY=address).returncode == 0
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_gateway_that_serves_goes_on_though_its_log_has_no_reader(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    settings = ("--host", "127.0.0.1", "--ops-port", "0", "--set", "auth.allow_anonymous=true")
    process = start(
        "serve", *settings, "--set", "access.default=open", "--log-level", "debug", "--ready-file", str(ready)
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        wait_for_line(process, b"stop")
        process.stdout.close()
        process.stderr.close()
        wait_until_ready(process, ready)
        address = json.loads(ready.read_text())["gateway"]
        for _ in range(2):
            assert aether("kv", "put", "k", "v", AETHER_GATEWAY=address).returncode == 0
        process.terminate()
        assert process.wait(LIMIT_S) == 0, "it drains, though it cannot say so"
    finally:
        process.kill()
        process.wait()
