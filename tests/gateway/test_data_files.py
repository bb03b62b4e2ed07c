"""A data directory that has lost a file is refused, with the way out."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aether_trio.gateway.databases import open_databases
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite.data_files import DATABASES, NEW_FILE
from tests.cli.shell import Shell, aether
from tests.helpers.core import settings_for_tests
from tests.helpers.gateway import start_gateway


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a gateway that has drained."""
    directory = tmp_path_factory.mktemp("used") / "data"
    with start_gateway(data_dir=directory) as gateway:
        gateway.terminate()
        assert gateway.wait() == 0
    assert not (directory / NEW_FILE).exists()
    return directory


@pytest.fixture
def data(used: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "data"
    copy.mkdir()
    for file in used.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
        (copy / file.name).chmod(0o600)
    return copy


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize("left", [None, 0, 1], ids=["missing", "empty", "one byte"])
def test_a_file_that_is_lost_is_an_error_with_the_way_out(data: Path, name: str, left: int | None) -> None:
    file = data / f"{name}.db"
    problem = "missing" if left is None else "empty"
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    before = {path.name: path.read_bytes() for path in data.iterdir() if path.suffix == ".db"}
    done = aether("dev", "--port", "0", "--data-dir", str(data))
    assert done.returncode == 3
    assert f"Error: {file} is {problem}, while" in done.stderr
    assert f"aether restore BACKUP --data-dir {data} --force" in done.stderr
    assert "start without data" in done.stderr
    assert "Traceback" not in done.stderr
    # Nothing is made in its place, so the next start says the same.
    assert {path.name: path.read_bytes() for path in data.iterdir() if path.suffix == ".db"} == before


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize("further", [1, 2])
def test_a_file_under_the_name_of_another_is_refused_untouched(data: Path, name: str, further: int) -> None:
    taken_for = DATABASES[(DATABASES.index(name) + further) % len(DATABASES)]
    file = data / f"{taken_for}.db"
    file.write_bytes((data / f"{name}.db").read_bytes())
    before = file.read_bytes()
    done = aether("dev", "--port", "0", "--data-dir", str(data))
    assert done.returncode == 3
    assert f"{file} is the {name} database, and not the {taken_for} database" in done.stderr
    assert "aether restore" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == before


def test_a_write_ahead_log_that_is_left_alone_is_data_too(data: Path) -> None:
    for name in DATABASES:
        (data / f"{name}.db").unlink()
    (data / "log.db-wal").write_bytes(b"commits of a gateway that was killed")
    done = aether("dev", "--port", "0", "--data-dir", str(data))
    assert done.returncode == 3
    assert "while log.db-wal has data that belongs to it" in done.stderr


@pytest.mark.parametrize("made", range(len(DATABASES) + 1))
def test_a_first_start_that_was_killed_goes_on(tmp_path: Path, made: int) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / NEW_FILE).touch()
    for name in DATABASES[:made]:
        (directory / f"{name}.db").touch()  # as it is made, before SQLite has written anything
    with start_gateway(data_dir=directory) as gateway:
        assert not (directory / NEW_FILE).exists()
        gateway.terminate()
        assert gateway.wait() == 0


async def test_a_first_start_that_fails_is_no_loss(tmp_path: Path) -> None:
    settings = settings_for_tests(gateway={"ephemeral": False, "data_dir": str(tmp_path)})
    (tmp_path / "tasks.db").mkdir()
    with pytest.raises((StorageSetupError, BaseExceptionGroup)):
        async with open_databases(settings):
            pass
    (tmp_path / "tasks.db").rmdir()
    async with open_databases(settings):
        pass
    assert not (tmp_path / NEW_FILE).exists()


def test_files_that_are_written_anew_are_smaller_and_the_same(tmp_path: Path) -> None:
    topic, name = "ag::default::echo::1", "log.db"
    with start_gateway(data_dir=tmp_path / "data") as gateway:
        shell = Shell(gateway)
        for number in range(5):
            shell.out("send", "ag::default::large::1", "-", stdin=b"x" * 200_000)
            shell.out("send", topic, f"message {number}")
        shell.run("topics", "purge", "ag::default::large::1", "--yes")
        gateway.terminate()
        assert gateway.wait() == 0
        before = (tmp_path / "data" / name).stat().st_size
        for logical in DATABASES:
            with closing(sqlite3.connect(tmp_path / "data" / f"{logical}.db")) as database:
                database.execute("VACUUM")
        assert (tmp_path / "data" / name).stat().st_size < before / 2
        gateway.start()
        shell = Shell(gateway)
        tail = shell.out("tail", topic, "--from", "start", "--no-follow")
        assert [line.split()[-1] for line in tail.splitlines()] == list("01234")
        shell.out("send", topic, "message 5")
    done = aether("audit", "verify", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout[:3]) == (0, "ok:")


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_all_files_are_private_in_a_directory_of_everyone(tmp_path: Path, no_umask: None) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    with start_gateway(data_dir=data) as gateway:
        seen = modes(data)
        assert {"state.db", "log.db", "tasks.db", "log.db-wal", "log.db-shm", "audit.key", "gateway.lock"} <= set(seen)
        assert set(seen.values()) == {0o600}
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.wait()
        for path in data.iterdir():
            if path.name != "audit.key":  # which is refused then
                path.chmod(0o666)
        gateway.restart()
        assert set(modes(data).values()) == {0o600}


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
