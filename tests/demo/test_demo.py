"""The demo as a user runs it: real processes, real kills, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from aether_trio.demo.__main__ import main

ROOT = Path(__file__).parents[2]
LIMIT_S = 300

pytestmark = pytest.mark.interop


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment with `tmp_path` for scratch, and settings to be ignored."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
        "COLUMNS": "100",
        "AETHER_GATEWAY__PORT": "1",
        "AETHER_TLS_ENABLED": "true",
    }


def processes_in(directory: Path) -> list[str]:
    """Command lines of live processes whose scratch directory is this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={directory}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or belongs to another user
    return found


def run(module: str, *words: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def assert_nothing_left(directory: Path) -> None:
    assert list(directory.iterdir()) == []
    assert processes_in(directory) == []


def test_the_story_happens_as_told(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run("aether_trio.demo", "--once", "--pace", "0.02", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("✓") == 15
    assert "✗" not in done.stdout
    assert len(re.findall(r"kill -9 \d+", done.stdout)) == 4
    assert "Back! My notebook: 2 answered" in done.stdout
    assert "5 of 5" in done.stdout
    assert "retry 2 of 3" in done.stdout
    assert "the task is COMPLETED" in done.stdout
    assert "3 things are known about Grauspitze" in done.stdout
    assert "│ view: as far as Venice." in done.stdout
    assert_nothing_left(tmp_path)


def test_an_agent_asks_a_person_approves_less_and_a_revoke_stops_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = run("aether_trio.demo", "--ask", "--pace", "0", env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("✓") == 9
    assert "✗" not in done.stdout
    assert "read in office, for 60 s" in done.stdout
    assert "authority grant was revoked" in done.stdout
    assert_nothing_left(tmp_path)


@pytest.fixture
def serving(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "aether_trio.demo", "--pace", "0.02"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """Everything up to the line with `wanted`; fails when the demo ends before it."""
    text = ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if wanted in line:
            return text
    raise AssertionError(f"no {wanted!r} in:\n{text}")


def test_it_says_how_to_talk_to_it(serving: subprocess.Popen[str], tmp_path: Path, environment: dict[str, str]) -> None:
    text = read_until(serving, "Ctrl-C ends it")
    suggested = re.search(r"(send \S+) \"(.*?)\" (--gateway \S+)", text)
    assert suggested is not None, text
    words = (*suggested[1].split(), suggested[2], *suggested[3].split())
    clean = {name: value for name, value in environment.items() if not name.startswith("AETHER_")}
    sent = run("aether_trio", *words, env=clean, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert "researcher → cli" in read_until(serving, f"{suggested[2]} ")
    serving.send_signal(signal.SIGINT)
    assert serving.wait(LIMIT_S) == 0
    assert_nothing_left(tmp_path)


def test_ending_it_in_the_middle_leaves_nothing(serving: subprocess.Popen[str], tmp_path: Path) -> None:
    read_until(serving, "kill -9")
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(LIMIT_S) == 1
    assert_nothing_left(tmp_path)


def test_a_gateway_that_does_not_start_is_said(tmp_path: Path, environment: dict[str, str]) -> None:
    package = tmp_path / "broken" / "aether_trio"
    package.mkdir(parents=True)
    for part in (ROOT / "aether_trio").iterdir():
        if part.name != "__main__.py":
            (package / part.name).symlink_to(part)
    (package / "__main__.py").write_text("raise SystemExit('out of order')\n")
    done = run("aether_trio.demo", "--once", env=environment | {"PYTHONPATH": str(package.parent)}, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the gateway has ended" in done.stdout
    assert "out of order" in done.stdout


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["--once"])
    assert result.exit_code == 1
    assert "pip install 'aether-trio[sdk]'" in result.output
