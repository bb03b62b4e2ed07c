"""One gateway per data directory, held by a kernel lock.

The lock is flock(2) on an open file: the kernel frees it however the process ends, so there is no stale lock to clean
up and no pid to guess about. The pid inside the file is only for the error text.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aether_trio.storage.errors import DirectoryInUseError, StorageSetupError

LOCK_FILE: Final = "gateway.lock"


@contextlib.contextmanager
def lock_directory(path: Path | str) -> Iterator[Path]:
    """Create `path` when missing (mode 0700: it holds other people's messages) and own it until the block ends.

    Raises DirectoryInUseError when another process owns it, StorageSetupError when it cannot be used at all.
    """
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StorageSetupError(
            f"cannot use the data directory {directory}: {exc.strerror}. "
            "Choose another with --data-dir, or run without one with --ephemeral."
        ) from exc
    try:
        _take(descriptor, directory)
        yield directory
    finally:
        os.close(descriptor)


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        raise DirectoryInUseError(
            f"the data directory {directory} is in use by another gateway"
            f"{f' (pid {holder})' if holder else ''}. Stop that one, or choose another directory with --data-dir."
        ) from exc
    with contextlib.suppress(OSError):  # a full disk must not keep the gateway from starting and serving reads
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
