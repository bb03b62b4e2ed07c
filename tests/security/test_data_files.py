"""A gateway's files can be read by its user alone, and unneeded ones are deleted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from aether_trio.client import AgentClient
from aether_trio.gateway.databases import open_databases
from aether_trio.storage.data_dir_lock import LOCK_FILE, TEMPORARY, temporary_directory
from tests.helpers.core import settings_for_tests
from tests.helpers.gateway import start_gateway


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Use the umask of many machines: new files can be read by all users."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def test_files_in_a_directory_that_others_may_enter_are_private(tmp_path: Path, open_umask: None) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    settings = settings_for_tests(gateway={"ephemeral": False, "data_dir": str(data)})
    async with open_databases(settings) as databases:
        await databases.log.execute("UPDATE schema_version SET version = version")
        found = modes(data)
        assert {"log.db", "log.db-wal", "log.db-shm", "state.db", "tasks.db", LOCK_FILE} <= set(found)
        assert set(found.values()) == {0o600}
    for path in data.iterdir():
        path.chmod(0o644)  # as an earlier release, or a copy, has left them
    (data / "log.db-wal").write_bytes(b"")
    (data / "log.db-wal").chmod(0o644)
    async with open_databases(settings):
        assert {name: mode for name, mode in modes(data).items() if name != LOCK_FILE and mode & 0o077} == {}


async def test_an_ephemeral_gateway_keeps_its_log_on_the_disk_and_removes_it(tmp_path: Path, open_umask: None) -> None:
    """Whatever it is sent takes room there, and none in memory."""
    env = {"TMPDIR": str(tmp_path)}
    process = await trio.to_thread.run_sync(lambda: start_gateway(ephemeral=True, env=env))
    try:
        [directory] = tmp_path.glob(TEMPORARY + "*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        async with AgentClient(f"aether://{process.address}", workspace="w", implementation="a", specifier="1") as one:
            for _ in range(20):
                await one.send("ag::w::b::1", os.urandom(100_000))
        files = list(directory.glob("log.db*"))
        assert sum(path.stat().st_size for path in files) > 2_000_000
        assert set(modes(directory).values()) == {0o600}
        process.terminate()
        assert await trio.to_thread.run_sync(process.wait) == 0
        assert list(tmp_path.glob(TEMPORARY + "*")) == []
    finally:
        await trio.to_thread.run_sync(process.close)


def test_what_a_killed_gateway_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path)}
    with start_gateway(ephemeral=True, env=env) as first, start_gateway(ephemeral=True, env=env) as second:
        assert len(list(tmp_path.glob(TEMPORARY + "*"))) == 2
        first.kill()
        assert len(list(tmp_path.glob(TEMPORARY + "*"))) == 2
        with start_gateway(ephemeral=True, env=env) as third:
            assert len(list(tmp_path.glob(TEMPORARY + "*"))) == 2
            third.terminate()
            assert third.wait() == 0
        second.terminate()
        assert second.wait() == 0
    assert list(tmp_path.glob(TEMPORARY + "*")) == []


def test_only_directories_of_gateways_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / LOCK_FILE).write_text("")
    (tmp_path / f"{TEMPORARY}link").symlink_to(precious)
    being_made = tmp_path / f"{TEMPORARY}made"
    being_made.mkdir()
    with temporary_directory() as one, temporary_directory() as other:
        assert one.is_dir()
        assert other.is_dir()
        assert one != other
    assert not one.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY}link", f"{TEMPORARY}made", "precious"]
    assert (precious / LOCK_FILE).exists()
