"""Puts a backup into a data directory: all of it, or nothing.

    unpack beside the data ──▶ checksums are right ──▶ RESTORING_FILE ──▶ old files go aside
    ──▶ new files come ──▶ RESTORING_FILE goes

The data directory may be a mount point, so files are renamed and not the directory. A gateway that
is started while RESTORING_FILE is there refuses (sqlite/data_files.py). At no moment are old and
new databases mixed. The lock of the data directory is held all the time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import IO, Final, Self

from aether_trio.storage.backup.manifest import (
    CHUNK_BYTES,
    DATABASE_FILES,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    BackupError,
    Manifest,
    new_file,
    read_manifest,
)
from aether_trio.storage.backup.streams import decompressed
from aether_trio.storage.data_dir_lock import (
    BACKUP_FILE,
    LOCK_FILE,
    give_to_owner,
    lock_directory,
    without_backups,
)
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite.connection import APPLICATION_ID
from aether_trio.storage.sqlite.data_files import NEW_FILE, RESTORING_FILE, sync_directory

MAX_HEADER_BYTES: Final = 64 * 1024
"""Of what a tar file may say of one member, as its long name."""
SHOWN: Final = 100
STAGE: Final = "restoring-"
ASIDE: Final = "before-restore-"
_IGNORED: Final = frozenset({LOCK_FILE, BACKUP_FILE, "lost+found"})
_KEYS: Final = "audit*.key"
"""The signing key goes aside: the audit tree that it has signed since would be written twice."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that was put back; `aside` is where the files of before are."""

    manifest: Manifest
    aside: Path | None
    seconds: float


def restore(source: str, data_dir: Path, *, force: bool = False, stdin: IO[bytes] | None = None) -> Restored:
    """Put the backup `source` (a directory, a file, or -) into a data directory.

    With `force` the data that is there is moved aside. Raises BackupError, StorageSetupError,
    OSError.
    """
    began = time.monotonic()
    if source != "-" and not Path(source).exists():
        raise BackupError(f"there is no backup {source}")
    with lock_directory(data_dir) as directory, without_backups(directory):
        old = _old_files(directory)
        _refuse_data(directory, old, force=force)
        for left in filter(_is_stage, directory.iterdir()):
            rmtree(left)
        stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=directory))
        try:
            try:
                with _opened(source, stdin) as members:
                    manifest = _unpack(members, stage, directory, source)
            # tarfile has ValueError and OverflowError for headers that make no sense.
            except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
                text = str(error)[:200]
                raise BackupError(f"{source} cannot be read, it may have been cut off: {text}") from None
            _check(stage, manifest, source)
            sync_directory(stage)
            aside = _swap(directory, stage, old)
        finally:
            rmtree(stage, ignore_errors=True)
    return Restored(manifest, aside, time.monotonic() - began)


def _old_files(directory: Path) -> list[Path]:
    found = [path for name in DATABASE_FILES for path in directory.glob(f"{name}*")]
    return sorted([*found, *directory.glob(_KEYS), *directory.glob(NEW_FILE)])


def _refuse_data(directory: Path, old: list[Path], *, force: bool) -> None:
    if force:
        return
    if (directory / RESTORING_FILE).exists():
        raise BackupError(f"a restore into {directory} was interrupted: run it again with --force")
    if old:
        raise BackupError(
            f"{directory} has a gateway's data ({', '.join(path.name for path in old[:3])}): "
            "choose an empty directory, or have that data moved aside with --force"
        )
    others = sorted(path.name for path in directory.iterdir() if path.name not in _IGNORED and not _is_stage(path))
    if others:
        raise BackupError(f"{directory} is not empty ({', '.join(others[:3])}): choose another, or use --force")


def _is_stage(path: Path) -> bool:
    """Whether a restore that was killed has left a directory, and it alone."""
    if not path.name.startswith(STAGE) or path.is_symlink() or not path.is_dir():
        return False
    return all(one.name.removesuffix("-journal") in DATABASE_FILES for one in path.iterdir())


@contextmanager
def _opened(source: str, stdin: IO[bytes] | None) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    """Yield the members of a backup: name, size and content of each, in order."""
    path = Path(source)
    if source != "-" and path.is_dir():
        yield _files_of(path)
        return
    with path.open("rb") if source != "-" else _borrowed(stdin) as file, decompressed(file) as stream:
        yield _members_of(stream, source)


@contextmanager
def _borrowed(stdin: IO[bytes] | None) -> Iterator[IO[bytes]]:
    assert stdin is not None
    yield stdin


def _files_of(directory: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    for name in (*DATABASE_FILES, MANIFEST_FILE):
        path = directory / name
        if path.exists():
            if not path.is_file():
                raise BackupError(f"{path} is no file: this is no backup of ours")
            with path.open("rb") as file:
                yield name, path.stat().st_size, file


def _members_of(stream: IO[bytes], source: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                name = member.name[:SHOWN]
                raise BackupError(f"{source} has a member {name!r} that is no file: it is no backup of ours")
            yield member.name, member.size, content


class _Member(tarfile.TarInfo):
    """A header of an archive; what belongs to it and is read into memory has a bound."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {member.size} bytes")
        return member


def _unpack(members: Iterator[tuple[str, int, IO[bytes]]], stage: Path, directory: Path, source: str) -> Manifest:
    """Write the members of a backup into `stage` and compare their checksums."""
    text: bytes | None = None
    found: dict[str, tuple[int, str]] = {}
    for name, size, content in members:
        if name == MANIFEST_FILE and size <= MAX_MANIFEST_BYTES:
            text = content.read(MAX_MANIFEST_BYTES)
        elif name in DATABASE_FILES and name not in found:
            found[name] = _write(content, stage / name, directory)
        else:
            raise BackupError(f"{source} has a file {name[:SHOWN]!r} that does not belong into a backup")
    if text is None:
        raise BackupError(f"{source} is no whole backup: it has no {MANIFEST_FILE}")
    manifest = read_manifest(text, source)
    for entry in manifest.databases:
        size, checksum = found.get(entry.file, (0, ""))
        if not checksum:
            raise BackupError(f"{source} is no whole backup: {entry.file} is missing")
        if (size, checksum) != (entry.size, entry.sha256):
            raise BackupError(f"{source} is damaged: {entry.file} has not the checksum that its manifest names")
    return manifest


def _write(content: IO[bytes], path: Path, directory: Path) -> tuple[int, str]:
    """Write a member of a data directory durably; return its size and checksum."""
    hashed, size = hashlib.sha256(), 0
    with new_file(path) as file:
        give_to_owner(file.fileno(), directory)
        while chunk := content.read(CHUNK_BYTES):
            hashed.update(chunk)
            file.write(chunk)
            size += len(chunk)
    return size, hashed.hexdigest()


def _check(stage: Path, manifest: Manifest, source: str) -> None:
    """Make sure that the files are databases of a gateway."""
    for entry in manifest.databases:
        try:
            with closing(sqlite3.connect(stage / entry.file, isolation_level=None)) as connection:
                (owner,) = connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.Error as error:
            raise BackupError(f"{source}: {entry.file} is no database: {error}") from None
        if owner != APPLICATION_ID:
            raise BackupError(f"{source}: {entry.file} is no database of a gateway")


def _swap(directory: Path, stage: Path, old: list[Path]) -> Path | None:
    """Move the old files aside, and the new ones in; return where the old are."""
    marker = directory / RESTORING_FILE
    os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_directory(directory)
    aside: Path | None = None
    if old:
        aside = Path(tempfile.mkdtemp(prefix=f"{ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}-", dir=directory))
        for path in old:
            path.rename(aside / path.name)
        sync_directory(aside)
        sync_directory(directory)
    for name in DATABASE_FILES:
        if (directory / name).exists():
            raise StorageSetupError(f"{directory / name} has come while the backup was put back.")
        (stage / name).rename(directory / name)
    sync_directory(directory)
    marker.unlink()
    sync_directory(directory)
    return aside
