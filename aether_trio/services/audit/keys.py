"""The file of a node's signing key, made with mode 0600 when there is none.

The key names the node's tree, so two processes never use one file: a file that another process has
locked is left to it, and the next one is taken (audit.key, audit-2.key, ...), as when two nodes of
one machine share a directory.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aether_trio.services.audit.checkpoints import KEY_BYTES, SigningKey
from aether_trio.storage.errors import StorageSetupError

KEY_FILE: Final = "audit.key"
_FILES: Final = 64
_BEGIN: Final = "aether-audit-key-1"


@contextmanager
def open_signing_key(path: Path) -> Iterator[SigningKey]:
    """Yield the key in `path` or the next free file; keep it locked until the end.

    Raises StorageSetupError.
    """
    descriptor, used = _open_free(path)
    try:
        yield _read_or_make(descriptor, used)
    finally:
        os.close(descriptor)


def _open_free(path: Path) -> tuple[int, Path]:
    for number in range(1, _FILES + 1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            candidate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(candidate, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageSetupError(
                f"cannot use the audit log's key file {candidate}: {error.strerror}. Name another in audit.signing_key."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return descriptor, candidate
    raise StorageSetupError(f"{_FILES} processes use the audit key files beside {path}: name one in audit.signing_key.")


def _read_or_make(descriptor: int, path: Path) -> SigningKey:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StorageSetupError(f"the audit log's key file {path} is no file.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StorageSetupError(
            f"the audit log's key file {path} may be read by other users (mode {stat.S_IMODE(status.st_mode):o}): "
            f"chmod 600 {path}, or remove it for a new key and tree."
        )
    text = os.pread(descriptor, 4096, 0)
    if not text:
        key = SigningKey.generate()
        os.pwrite(descriptor, f"{_BEGIN}\n{base64.b64encode(key.seed).decode()}\n".encode(), 0)
        os.fsync(descriptor)
        return key
    lines = text.decode("ascii", "replace").split("\n")
    try:
        seed = base64.b64decode(lines[1], validate=True) if lines[0] == _BEGIN and len(lines) > 1 else b""
    except (binascii.Error, ValueError):
        seed = b""
    if len(seed) != KEY_BYTES:
        raise StorageSetupError(f"the audit log's key file {path} has no key in it; remove it for a new key and tree.")
    return SigningKey.from_seed(seed)
