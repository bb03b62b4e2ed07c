"""One gateway per data directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aether_trio.storage import data_dir_lock
from aether_trio.storage.data_dir_lock import TRIES, lock_directory, temporary_directory
from aether_trio.storage.errors import DirectoryInUseError, StorageSetupError


def test_the_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "deep" / "data") as directory:
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_second_holder_is_refused_and_told_who_and_what_to_do(tmp_path: Path) -> None:
    expected = rf"in use by another gateway \(pid {os.getpid()}\)\. Stop that"
    with lock_directory(tmp_path), pytest.raises(DirectoryInUseError, match=expected), lock_directory(tmp_path):
        pass
    with lock_directory(tmp_path):
        pass


def test_a_killed_holder_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom aether_trio.storage.data_dir_lock import lock_directory\n"
        "with lock_directory(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUseError, match=f"pid {holder.pid}"), lock_directory(tmp_path):
            pass
        holder.kill()
    with lock_directory(tmp_path):
        pass


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = r"file/data: .*Choose another with --data-dir"
    with pytest.raises(StorageSetupError, match=expected), lock_directory(tmp_path / "file" / "data"):
        pass


@pytest.mark.parametrize("where", ["_take", "_make_private"])
def test_a_temporary_directory_is_made_anew_when_another_gateway_takes_it_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    called, taken = getattr(data_dir_lock, where), 0

    def late(descriptor: int, directory: Path) -> Any:
        """Another gateway has the lock first, and removes the directory."""
        nonlocal taken
        taken += 1
        if taken < TRIES:
            shutil.rmtree(directory)
        return called(descriptor, directory)

    monkeypatch.setattr(data_dir_lock, where, late)
    with temporary_directory() as directory:
        assert directory.is_dir()
        assert taken == TRIES
        assert list(tmp_path.iterdir()) == [directory]
    assert list(tmp_path.iterdir()) == []
