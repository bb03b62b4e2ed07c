"""What a backup says of itself: its moment, its files, and their checksums.

A backup has the database files and, as its last file, the manifest. So a copy that was cut off has
no manifest and is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from aether_trio.storage.sqlite.data_files import DATABASES

MANIFEST_FILE: Final = "aether-backup.json"
FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
DATABASE_FILES: Final = tuple(f"{name}.db" for name in DATABASES)


class BackupError(Exception):
    """Raised when a backup cannot be made or put back; says what to do."""


class DatabaseEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One database file of a backup."""

    file: str
    size: int
    sha256: str
    schema_version: int


class Manifest(msgspec.Struct, frozen=True):
    """The contents of MANIFEST_FILE. `at_ms` is the moment of all databases (Unix ms)."""

    format: int
    at_ms: int
    made_by: str
    node: str
    source: str
    databases: tuple[DatabaseEntry, ...]
    not_included: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all database files."""
        return sum(entry.size for entry in self.databases)

    def encode(self) -> bytes:
        """Return the text of the manifest's file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest. Raises BackupError."""
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"{where}: {MANIFEST_FILE} cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise BackupError(
            f"{where} has format {manifest.format}, and this release reads format {FORMAT}: "
            f"use the release that made it ({manifest.made_by}), or a newer one"
        )
    if sorted(entry.file for entry in manifest.databases) != sorted(DATABASE_FILES):
        raise BackupError(f"{where}: its manifest does not name the files {', '.join(DATABASE_FILES)}")
    return manifest


def sha256_of(path: Path) -> str:
    """Return the checksum of a file as hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Make a file (mode 0600) that is durable after the block. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
