"""The embedded PostgreSQL starts, keeps data, and never outlives its parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres import embedded
from aether_trio.storage.postgres.embedded import FAST, EmbeddedPostgres

LIMIT_S = 300.0
ROOT = Path(__file__).parents[3]


@pytest.fixture
def home() -> Iterator[Path]:
    """Not pytest's directories: they are for this user only."""
    place = Path(tempfile.mkdtemp(prefix="aether-pg-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def gone(pid: int) -> bool:
    """Whether a process has ended; until its parent waits for it, it is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, f"it never came: {what}"
        time.sleep(0.02)


@contextmanager
def running(home: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(home, settings=FAST)
    try:
        server.start()
        yield server
    finally:
        server.stop()


PARENT = """
import pathlib, sys
from aether_trio.storage.postgres import embedded
embedded.binaries = lambda: {18: pathlib.Path(sys.argv[2])}
server = embedded.EmbeddedPostgres(pathlib.Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def killed_parent(home: Path) -> Iterator[int]:
    """The process of a server whose parent is killed at the end."""
    command = [sys.executable, "-c", PARENT, str(home), str(embedded.binaries()[18])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        yield int(parent.stdout.readline())
        parent.kill()
        parent.wait(LIMIT_S)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_what_was_committed_is_there_after_an_end_of_any_kind(home: Path, signum: signal.Signals) -> None:
    with running(home) as server:
        server.psql("CREATE TABLE kept AS SELECT 7 AS n")
        first = server.pid
        server.restart(signum=signum)
        assert server.pid != first
        assert server.psql("SELECT n FROM kept") == "7"
    with running(home) as again:
        assert again.psql("SELECT n FROM kept") == "7"
    assert not again.running


def test_it_ends_with_the_process_that_started_it_even_if_that_is_killed(home: Path) -> None:
    with killed_parent(home) as pid:
        assert not gone(pid)
    wait_until(lambda: gone(pid), "its end")


def test_the_interrupt_of_a_terminal_does_not_reach_it(home: Path) -> None:
    with running(home) as server:
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_home_with_a_long_path_has_its_socket_elsewhere(home: Path) -> None:
    with running(home / ("long" * 30)) as server:
        sockets = server.sockets
        assert server.psql("SELECT 1") == "1"
        assert sockets.stat().st_mode & 0o777 == 0o700
        server.restart()
        assert server.sockets == sockets, "those who connect again do not find it"
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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")


@pytest.fixture
def installed_in_closed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that only root may enter, as root's home is, with the wheel in it."""
    closed = home / "root"
    closed.mkdir(mode=0o700)
    package = next(iter(embedded.binaries().values())).parents[1]
    for one in (package, package.with_name(f"{package.name}.libs")):
        (closed / one.name).symlink_to(one)
    there = {major: closed / package.name / path.relative_to(package) for major, path in embedded.binaries().items()}
    monkeypatch.setattr(embedded, "binaries", lambda: there)
    return closed


@pytest.fixture
def scratch(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, of this test only."""
    place = home / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@as_root
def test_data_and_binaries_may_be_where_only_root_may_enter(installed_in_closed: Path, scratch: Path) -> None:
    modes = installed_in_closed.stat().st_mode
    with running(installed_in_closed / "data" / "postgres") as server:
        server.psql("CREATE TABLE kept AS SELECT 7 AS n")
        dsn = server.dsn()
        server.restart(signum=signal.SIGKILL)
        assert server.psql("SELECT n FROM kept") == "7"
        assert server.dsn() == dsn
        assert server.psql("CHECKPOINT; SELECT pg_switch_wal() IS NOT NULL") == "t"
    assert installed_in_closed.stat().st_mode == modes, "directories above the server's own stay closed"
    assert not list(scratch.iterdir())


@as_root
def test_a_standby_follows_from_where_only_root_may_enter(installed_in_closed: Path) -> None:
    standby = EmbeddedPostgres(installed_in_closed / "standby", settings=FAST)
    with running(installed_in_closed / "primary") as primary:
        standby.create_standby(primary)
        with running(standby.home) as standby:
            primary.psql("CREATE TABLE kept AS SELECT 7 AS n")
            wait_until(lambda: standby.psql("SELECT to_regclass('kept') IS NOT NULL") == "t", "the table")


@as_root
def test_nothing_is_left_of_the_copy_when_its_process_was_killed(installed_in_closed: Path, scratch: Path) -> None:
    with killed_parent(installed_in_closed / "postgres") as pid:
        assert list(scratch.iterdir())
    wait_until(lambda: gone(pid), "its end")
    wait_until(lambda: not list(scratch.iterdir()), "an empty directory for temporary files")


@as_root
def test_temporary_files_are_where_the_server_may(installed_in_closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed_in_closed / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(installed_in_closed / "tmp"))
    with running(installed_in_closed / "postgres") as server:
        assert server.psql("SELECT 1") == "1"


def test_a_missing_wheel_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    embedded.binaries.cache_clear()
    try:
        with pytest.raises(StorageSetupError, match=r"pip install 'aether-trio\[cluster\]'"):
            embedded.binaries()
    finally:
        embedded.binaries.cache_clear()
