"""The streams of backups: gzip by Python, Zstandard by the program zstd, pipes."""

from __future__ import annotations

import errno
import gzip
import io
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final, cast

from aether_trio.storage.backup.manifest import BackupError

GZIP_LEVEL: Final = 3
SUFFIXES: Final = {".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"}
"""The endings of names that are one file, and how it is compressed; other names are directories."""
_OTHER_FILES: Final = (".zip", ".7z", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".tbz", ".tbz2", ".txz", ".tzst", ".db")
"""The endings of names that were not meant for a directory."""
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ENDS_S: Final = 60.0
STALL_S: Final = 300.0
"""How long a reader of a backup may take nothing, while logs grow: a person may type a password."""


def compression_of(name: str) -> str | None:
    """Return the compression of a file of this name; None for a directory's name.

    Raises BackupError for the name of a file that is not made.
    """
    found = next((how for suffix, how in SUFFIXES.items() if name.endswith(suffix)), None)
    if found is None and name.endswith(_OTHER_FILES):
        raise BackupError(f"{name} is no name for a backup: a file ends in .tar, .tar.gz or .tar.zst")
    return found


def require(compression: str) -> None:
    """Raise BackupError when a compression cannot be made here."""
    if compression == "zstd" and shutil.which("zstd") is None:
        raise BackupError("a name that ends in .tar.zst needs the program zstd; install it, or use .tar.gz")


@contextmanager
def compressed(file: IO[bytes], compression: str) -> Iterator[IO[bytes]]:
    """Yield a stream whose bytes go to `file` compressed. Raises OSError, BackupError."""
    if compression == "gzip":
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=GZIP_LEVEL, mtime=0) as packed:
            yield cast("IO[bytes]", packed)
    elif compression == "zstd":
        with _program(["zstd", "-q", "-T0", "-c"], stdin=subprocess.PIPE, stdout=file) as process:
            assert process.stdin is not None
            yield process.stdin
            process.stdin.close()
    else:
        yield file


class PatientWriter:
    """Writes to a pipe or another open file while something takes the bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self.broken_off = False
        """Whether nothing more is written: what an archive buffers must not wait for its reader."""

    def write(self, data: bytes) -> int:
        """Write all of the bytes. Raises OSError, also when nothing takes them."""
        left = memoryview(b"" if self.broken_off else data)
        while left:
            if not self._poll.poll(STALL_S * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing has read the backup for {STALL_S:g} s")
            # So much has room in a pipe that poll(2) says to have some.
            left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]
        return len(data)


def patient(file: IO[bytes]) -> PatientWriter | IO[bytes]:
    """Return a stream to the same file that does not wait for ever for its reader."""
    try:
        file.flush()
        return PatientWriter(file.fileno())
    except io.UnsupportedOperation:  # in memory
        return file


@contextmanager
def decompressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the bytes of a file, decompressed if need be. Raises BackupError."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file))
    first = buffered.peek(4)[:4]
    if first.startswith(_GZIP_MAGIC):
        with gzip.GzipFile(fileobj=buffered, mode="rb") as unpacked:
            yield cast("IO[bytes]", unpacked)
    elif first == _ZSTD_MAGIC:
        require("zstd")
        if not buffered.seekable():
            raise BackupError("Zstandard is not read from a pipe: put `zstd -dc |` in front of this command")
        os.lseek(buffered.fileno(), 0, os.SEEK_SET)  # seek() may only move within the buffer
        with _program(["zstd", "-q", "-dc"], stdin=buffered, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            while process.stdout.read(65536):  # the padding of the archive, so that zstd can end
                pass
    else:
        yield buffered


@contextmanager
def _program(
    command: list[str], *, stdin: int | IO[bytes], stdout: int | IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        except BrokenPipeError:  # it has ended, and says why
            _drop_input(process)
        except BaseException:
            process.kill()
            _drop_input(process)  # or its broken pipe would be the error
            raise
        code = process.wait(_ENDS_S)
        if code:
            assert process.stderr is not None
            raise BackupError(f"{command[0]} has failed: {process.stderr.read(2000).decode(errors='replace').strip()}")


def _drop_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):  # what was not written yet
            process.stdin.close()
