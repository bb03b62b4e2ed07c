"""The PostgreSQL of the extra: starts, keeps data, never outlives its parent.

No PostgreSQL is installed.
"""

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
        "import sys, pathlib; from aether_trio.storage.postgres.embedded import EmbeddedPostgres as E\n"
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
        server.restart()
        assert server.sockets == sockets, "those who connect again do not find it"
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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")


@pytest.fixture
def closed(home: Path) -> Path:
    """A directory that only root may enter, as root's home is."""
    place = home / "root"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def installed_in_closed(closed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel lies in a virtual environment that root made at home."""
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
    server = EmbeddedPostgres(installed_in_closed / "data" / "postgres", settings=FAST)
    try:
        server.start()
        server.psql("CREATE TABLE kept AS SELECT 7 AS n")
        dsn = server.dsn()
        server.restart(signum=signal.SIGKILL)
        assert server.psql("SELECT n FROM kept") == "7"
        assert server.dsn() == dsn
        assert server.psql("CHECKPOINT; SELECT pg_switch_wal() IS NOT NULL") == "t"
    finally:
        server.stop()
    assert installed_in_closed.stat().st_mode == modes, "directories above the server's own stay closed"
    assert not list(scratch.iterdir())


@as_root
def test_a_standby_follows_from_where_only_root_may_enter(installed_in_closed: Path) -> None:
    primary = EmbeddedPostgres(installed_in_closed / "primary", settings=FAST)
    standby = EmbeddedPostgres(installed_in_closed / "standby", settings=FAST)
    try:
        primary.start()
        standby.create_standby(primary)
        standby.start()
        primary.psql("CREATE TABLE kept AS SELECT 7 AS n")
        give_up = time.monotonic() + LIMIT_S
        while standby.psql("SELECT to_regclass('kept') IS NOT NULL") != "t":
            assert time.monotonic() < give_up, "the standby does not follow"
            time.sleep(0.02)
    finally:
        standby.stop()
        primary.stop()


@as_root
def test_nothing_is_left_of_the_copy_when_its_process_was_killed(installed_in_closed: Path, scratch: Path) -> None:
    program = (
        "import sys, pathlib; from aether_trio.storage.postgres import embedded\n"
        "there = {18: pathlib.Path(sys.argv[2])}; embedded.binaries = lambda: there\n"
        "server = embedded.EmbeddedPostgres(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    arguments = [installed_in_closed / "postgres", embedded.binaries()[18]]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert list(scratch.iterdir())
        parent.kill()
        parent.wait(LIMIT_S)
    wait_gone(pid)
    give_up = time.monotonic() + LIMIT_S
    while left := list(scratch.iterdir()):
        assert time.monotonic() < give_up, f"left: {left}"
        time.sleep(0.02)


@as_root
def test_temporary_files_go_where_the_server_may_enter(
    installed_in_closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed_in_closed / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(installed_in_closed / "tmp"))
    server = EmbeddedPostgres(installed_in_closed / "postgres", settings=FAST)
    try:
        server.start()
        assert server.psql("SELECT 1") == "1"
    finally:
        server.stop()


def test_a_missing_wheel_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    embedded.binaries.cache_clear()
    try:
        with pytest.raises(StorageSetupError, match=r"pip install 'aether-trio\[cluster\]'"):
            embedded.binaries()
    finally:
        embedded.binaries.cache_clear()
