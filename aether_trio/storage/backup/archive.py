"""Makes a backup of a data directory, as a directory or one tar file.

    snapshots of one moment ──▶ each is copied, marked and synced ──▶ checksum ──▶ manifest, last
                                                                  ──▶ the whole gets its name

Until the end a backup lies under a name with PARTIAL in it, beside its place. A tar file on
standard output has no name that could come last; it ends with its manifest, without which
`aether restore` refuses it.

A copy has no `log_identity`: the gateway that is started on it makes a new one, and so its clients
forget the offsets of the log that the backup was taken from (gateway/restored.py).
"""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import IO, Final, cast

from aether_trio.storage.backup.manifest import (
    FORMAT,
    MANIFEST_FILE,
    BackupError,
    DatabaseEntry,
    Manifest,
    new_file,
    sha256_of,
)
from aether_trio.storage.backup.streams import PatientWriter, compressed, compression_of, patient, require
from aether_trio.storage.data_dir_lock import reading_for_backup
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite.data_files import DATABASES, RESTORING_FILE, database_file, sync_directory
from aether_trio.storage.sqlite.snapshot import copy_snapshot, open_snapshots

PARTIAL: Final = ".partial-"
LOCKED_FIRST: Final = ("log", "tasks", "state")
"""The order of the locks: the busiest file first, so that none is held while it is waited for."""
STDOUT: Final = "-"
SYNC_PAGES: Final = 2048
"""Pages that are copied between two syncs: 8 MiB."""

Progress = Callable[[str, int, int], None]
"""`progress(file, copied, all)`, in pages."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made: its manifest, and how long that took."""

    manifest: Manifest
    seconds: float


def back_up(
    data_dir: Path,
    target: str,
    *,
    made_by: str,
    node: str = "",
    not_included: Sequence[str] = (),
    progress: Progress = lambda file, copied, total: None,
    stdout: IO[bytes] | None = None,
    scratch: Path | None = None,
) -> Backup:
    """Back a data directory up to `target`.

    `target` is a directory, FILE.tar, .tar.gz or .tar.zst, or - for standard output. `scratch` is
    where one database at a time is copied to before it goes to standard output. Raises BackupError,
    StorageSetupError, OSError.
    """
    began = time.monotonic()
    files = {name: database_file(data_dir, name) for name in LOCKED_FIRST}
    missing = [file.name for file in files.values() if not file.exists()]
    if missing:
        raise BackupError(f"there is no gateway's data in {data_dir}: {', '.join(missing)} missing")
    with _writer(target, stdout, scratch) as writer:
        try:
            with reading_for_backup(data_dir), open_snapshots(_whole(data_dir, files)) as snapshots:
                entries = []
                for name in DATABASES:
                    file = writer.directory / files[name].name
                    entries.append(_copy(snapshots.connections[name], name, file, progress))
                    snapshots.connections[name].close()  # its write-ahead log may be cut
                    writer.add(file)
        except sqlite3.Error as error:
            raise StorageSetupError(f"{data_dir} could not be copied to {writer.directory}: {error}") from error
        manifest = Manifest(
            format=FORMAT,
            at_ms=snapshots.at_ms,
            made_by=made_by,
            node=node,
            source=str(data_dir.absolute()),
            databases=tuple(entries),
            not_included=tuple(not_included),
        )
        writer.finish(manifest.encode())
    return Backup(manifest, time.monotonic() - began)


def _whole(data_dir: Path, files: dict[str, Path]) -> dict[str, Path]:
    """Return the files, unless a backup was put back only in part. Raises BackupError."""
    if (data_dir / RESTORING_FILE).exists():
        raise BackupError(
            f"a backup was being put back into {data_dir}, and that was interrupted: run `aether restore` again first"
        )
    return files


def _copy(snapshot: sqlite3.Connection, name: str, file: Path, progress: Progress) -> DatabaseEntry:
    """Copy a snapshot into a new file, durably."""
    with new_file(file) as made:
        synced = 0

        def copying(copied: int, total: int) -> None:
            nonlocal synced
            # A gateway's commits wait for the disk behind a sync: of little each time.
            if copied - synced >= SYNC_PAGES:
                os.fdatasync(made.fileno())
                synced = copied
            progress(file.name, copied, total)

        copy_snapshot(snapshot, file, copying)
    with closing(sqlite3.connect(file, isolation_level=None)) as copy:
        if name == "log":
            copy.execute("DELETE FROM log_identity")
        (damage,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise BackupError(f"the database {name} is damaged, so there is no backup of it: {damage}")
        rows = copy.execute("SELECT version FROM schema_version WHERE database_name = ?", (name,)).fetchall()
    _sync(file)
    return DatabaseEntry(file.name, file.stat().st_size, sha256_of(file), rows[0][0] if rows else 0)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _DirectoryWriter:
    """Writes a backup as a directory; `directory` is where it is made."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        self._target = target

    def add(self, file: Path) -> None:
        """Keep a database file, which is in its place."""

    def finish(self, manifest: bytes) -> None:
        """Write the manifest, and give the directory its name."""
        with new_file(self.directory / MANIFEST_FILE) as file:
            file.write(manifest)
        sync_directory(self.directory)
        self.directory.rename(self._target)  # an empty directory is replaced
        sync_directory(self._target.parent)


class _TarWriter:
    """Writes a backup as a tar stream; `directory` is where one database is at a time."""

    def __init__(self, directory: Path, archive: tarfile.TarFile) -> None:
        self.directory = directory
        self._archive = archive

    def add(self, file: Path) -> None:
        """Append a database file, and remove it."""
        with file.open("rb") as opened:
            self._archive.addfile(_member(file.name, file.stat().st_size), opened)
        file.unlink()

    def finish(self, manifest: bytes) -> None:
        """Append the manifest, which says that the backup is whole."""
        self._archive.addfile(_member(MANIFEST_FILE, len(manifest)), io.BytesIO(manifest))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member


@contextmanager
def _writer(target: str, stdout: IO[bytes] | None, scratch: Path | None) -> Iterator[_DirectoryWriter | _TarWriter]:
    if target == STDOUT:
        assert stdout is not None
        with tempfile.TemporaryDirectory(prefix="aether-backup-", dir=scratch) as place:
            stream = patient(stdout)
            with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="w|", format=tarfile.PAX_FORMAT) as archive:
                try:
                    yield _TarWriter(Path(place), archive)
                except BaseException:
                    if isinstance(stream, PatientWriter):
                        stream.broken_off = True
                    raise
            stdout.flush()
        return
    path = Path(target).absolute()
    compression = compression_of(path.name)
    _refuse_existing(path, is_file=compression is not None)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=f"{path.name}{PARTIAL}", dir=path.parent))
        stack.callback(rmtree, directory, ignore_errors=True)
        if compression is None:
            yield _DirectoryWriter(directory, path)
            return
        require(compression)
        partial = directory / path.name
        with (
            new_file(partial) as file,
            compressed(file, compression) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            yield _TarWriter(directory, archive)
        # Not rename, which would replace a file that came meanwhile.
        os.link(partial, path)
        with suppress(OSError):
            partial.unlink()
        sync_directory(path.parent)


def _refuse_existing(path: Path, *, is_file: bool) -> None:
    if not path.parent.is_dir():
        raise BackupError(f"there is no directory {path.parent}; make it first")
    if not is_file and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise BackupError(f"{path} exists, and is left as it is; choose another name, or remove it")
