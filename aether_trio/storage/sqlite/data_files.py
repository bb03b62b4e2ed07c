"""The database files of a data directory: all are there, or none is yet.

    no file, or files that were being made ──▶ NEW_FILE is made ──▶ databases are made ──▶ it goes
    some files, others missing or empty    ──▶ refused: data was lost, and the rest depends on it

NEW_FILE tells a first start that was killed from a directory that has lost a file: SQLite makes a
missing database without a word, and a gateway with a new log beside old tasks would give old
offsets out again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aether_trio.storage.errors import StorageSetupError

DATABASES: Final = ("state", "log", "tasks")
"""The logical databases of a gateway, in the order in which they are opened."""
NEW_FILE: Final = "databases.new"
EMPTY_BYTES: Final = 1
"""SQLite takes a file of one byte for an empty one, too."""
RESTORING_FILE: Final = "databases.restoring"
"""A backup is being put back (storage/backup/restore.py)."""


def database_file(directory: Path, name: str) -> Path:
    """Return the file of a logical database in a data directory."""
    return directory / f"{name}.db"


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def complete_files(directory: Path) -> Iterator[None]:
    """Check the files of a locked data directory; open the databases in the block.

    Raises StorageSetupError, which names a lost file and says what to do.
    """
    if (directory / RESTORING_FILE).exists():
        raise StorageSetupError(
            f"a backup was being put back into {directory}, and that was interrupted. "
            f"Run `aether restore BACKUP --data-dir {directory} --force` again."
        )
    new_file = directory / NEW_FILE
    is_new = new_file.exists()
    if not is_new:
        lost = {name: problem for name in DATABASES if (problem := _problem(database_file(directory, name)))}
        left = [
            path.name for name in DATABASES for path in _files(directory, name) if path.stat().st_size > EMPTY_BYTES
        ]
        if lost and left:
            raise _lost(directory, lost, left)
        is_new = bool(lost)
        if is_new:
            try:
                os.close(os.open(new_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                sync_directory(directory)
            except OSError as error:
                raise _unusable(directory, error) from error
    yield
    if is_new:
        try:
            sync_directory(directory)
            new_file.unlink(missing_ok=True)
            sync_directory(directory)
        except OSError as error:
            raise _unusable(directory, error) from error


def _files(directory: Path, name: str) -> list[Path]:
    """Return a database file and its write-ahead log, as far as they exist."""
    file = database_file(directory, name)
    return [path for path in (file, file.with_name(f"{file.name}-wal")) if path.exists()]


def _problem(file: Path) -> str:
    try:
        return "" if file.stat().st_size > EMPTY_BYTES else "empty"
    except FileNotFoundError:
        return "missing"


def _lost(directory: Path, lost: dict[str, str], left: list[str]) -> StorageSetupError:
    files = " and ".join(f"{database_file(directory, name)} is {problem}" for name, problem in lost.items())
    return StorageSetupError(
        f"{files}, while {' and '.join(left)} {'has' if len(left) == 1 else 'have'} data that belongs to it.\n"
        f"  to go on from a backup     aether restore BACKUP --data-dir {directory} --force\n"
        f"  to start without data      move {directory} away, or choose another with --data-dir"
    )


def _unusable(directory: Path, error: OSError) -> StorageSetupError:
    return StorageSetupError(
        f"cannot write in the data directory {directory}: {error.strerror}. "
        "Choose another with --data-dir, or run without one with --ephemeral."
    )
