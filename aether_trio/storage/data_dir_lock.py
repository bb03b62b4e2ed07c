"""Locks a data directory for one gateway, and makes temporary data directories.

The lock is flock(2) on an open file. The kernel frees it however the process ends, so no stale lock
has to be removed and no pid compared. The pid inside the file is only for the error text.

A temporary directory lies in the system's (TMPDIR) under a name that begins with TEMPORARY, and
goes when its gateway ends. That of a killed gateway has no lock any more, so the next gateway of
the same user that makes a temporary directory removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from aether_trio.storage.errors import DirectoryInUseError, StorageSetupError

logger = structlog.get_logger("aether.storage")

LOCK_FILE: Final = "gateway.lock"
TEMPORARY: Final = "aether-ephemeral-"
BACKUP_FILE: Final = "backup.lock"
"""Locked, shared, while a backup reads the databases beside it; alone, while one is put back."""
PATIENCE_S: Final = 5.0
"""How long a backup waits for the look of a gateway whether there is one."""
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextlib.contextmanager
def lock_directory(path: Path | str) -> Iterator[Path]:
    """Lock the data directory `path` until the block ends; make it if missing.

    Its mode is 0700. Raises DirectoryInUseError when another process has the lock,
    StorageSetupError when the directory cannot be used.
    """
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, _LOCK_FLAGS, 0o600)
    except OSError as exc:
        raise StorageSetupError(
            f"cannot use the data directory {directory}: {exc.strerror}. "
            "Choose another with --data-dir, or run without one with --ephemeral."
        ) from exc
    try:
        _take(descriptor, directory)
        _make_private(descriptor, directory)
        yield directory
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a locked data directory (mode 0700) until the block ends.

    First removes those that killed gateways of this user left. Raises StorageSetupError.
    """
    _remove_leftovers()
    for _ in range(TRIES):
        try:
            directory = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        except OSError as exc:
            raise StorageSetupError(
                f"cannot make a temporary directory in {tempfile.gettempdir()}: {exc.strerror}. "
                "Name another place in TMPDIR, or keep the data with --data-dir."
            ) from exc
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_directory(directory))
            except (DirectoryInUseError, FileNotFoundError):
                continue
            # Until it is locked, another gateway that removes leftovers may have taken it for one.
            if not (directory / LOCK_FILE).exists():
                continue
            try:
                yield directory
            finally:
                _remove(directory)
            return
    raise StorageSetupError(f"cannot keep a temporary directory in {tempfile.gettempdir()}: other processes remove it.")


TRIES: Final = 10


def _remove_leftovers() -> None:
    with contextlib.suppress(OSError):
        for directory in Path(tempfile.gettempdir()).glob(TEMPORARY + "*"):
            with contextlib.suppress(OSError, DirectoryInUseError):
                status = directory.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                    _remove_leftover(directory)


def _remove_leftover(directory: Path) -> None:
    # Without O_CREAT: a directory that has no lock yet is being made.
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(directory)
        logger.info("the data of an ephemeral gateway that was killed is removed", directory=str(directory))
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as exc:
        logger.warning("a temporary directory cannot be removed and is left", directory=str(directory), reason=str(exc))


@contextlib.contextmanager
def reading_for_backup(directory: Path) -> Iterator[None]:
    """Tell a directory's gateway that a long reader is a backup.

    Raises OSError, and DirectoryInUseError while a backup is put back there.
    """
    with _opened_backup_file(directory) as descriptor:
        until = time.monotonic() + PATIENCE_S
        while not _locks(descriptor, fcntl.LOCK_SH):
            if time.monotonic() > until:
                raise DirectoryInUseError(f"a backup is being put back into {directory}: try again when it is.")
            time.sleep(0.01)
        yield


@contextlib.contextmanager
def without_backups(directory: Path) -> Iterator[None]:
    """Let no backup begin in the block. Raises OSError, DirectoryInUseError."""
    with _opened_backup_file(directory) as descriptor:
        if not _locks(descriptor, fcntl.LOCK_EX):
            raise DirectoryInUseError(f"a backup is being made of {directory}: wait until it has ended.")
        yield


@contextlib.contextmanager
def _opened_backup_file(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory / BACKUP_FILE, _LOCK_FLAGS, 0o600)
    try:
        _make_private(descriptor, directory)
        yield descriptor
    finally:
        os.close(descriptor)


def _locks(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_read_for_backup(directory: Path) -> bool:
    """Say whether a backup reads the databases in a directory."""
    try:
        descriptor = os.open(directory / BACKUP_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locks(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Give a file that root has made to the owner of its directory."""
    if os.geteuid() == 0:
        owner = directory.stat()
        with contextlib.suppress(OSError):  # a file system without owners
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _make_private(descriptor: int, directory: Path) -> None:
    with contextlib.suppress(OSError):  # of another user
        os.fchmod(descriptor, 0o600)
    give_to_owner(descriptor, directory)


def keep_private(file: Path) -> None:
    """Let only this user read a database file; make it (mode 0600) if missing.

    The directory may be open to other users, and the file older than its mode. Raises OSError, but
    not for files of another user, whose modes this user may not change.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # Not through an open file: closing it gives up the locks that this process has on it.
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            path = file.with_name(name)
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                path.chmod(mode & ~0o077)


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        raise DirectoryInUseError(
            f"the data directory {directory} is in use by another gateway"
            f"{f' (pid {holder})' if holder else ''}. Stop that one, or choose another directory with --data-dir."
        ) from exc
    # a full disk must not keep the gateway from starting and serving reads
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
