"""Makes commits in a SQLite file's write-ahead log durable, and keeps it short.

In the event loop SQLite writes a commit to the log and does not sync it (`synchronous=NORMAL`), so
that the loop never waits for the disk. The kernel syncs it (kernel_sync.py), or a thread (`sync`).

    commits ──▶ due? ──▶ checkpoint thread: most of the log ──▶ writer thread: the rest ──▶ the log
                                                             begins anew with the next commit

SQLite would checkpoint inside of the COMMIT that makes the log too long. The bulk is copied by
another connection, while commits go on. Under load that never ends, because each commit makes the
log longer; so the writer thread copies the rest, which is little.

Invariants: after `sync` returns, all commits before the call are durable. After a sync has failed
the log is `broken`: what the kernel has dropped may be missing in the middle of it, and SQLite
reads a log up to the first gap. Nothing is committed until `repair` has copied the whole log into
the database file.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from aether_trio.storage.data_dir_lock import is_read_for_backup

CHECKPOINT_PAGES: Final = 4096
"""Pages in the log when a checkpoint is due: 16 MiB of 4 KiB pages."""
CHECK_GROUPS: Final = 64
"""Groups between two looks at the log."""
LIMIT_BYTES: Final = 64 * 1024 * 1024
"""The log is cut at this size, although that waits for readers: they can keep it from ending."""
GROWTH_BYTES: Final = 16 * 1024 * 1024
"""A checkpoint is also due when the file is so much longer than at the last one."""


class LogBrokenError(sqlite3.OperationalError):
    """Raised when a log was neither synced nor copied into its file."""

    sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC


class WriteAheadLog:
    """The write-ahead log of one open SQLite file."""

    def __init__(self, database: Path, *, is_synced: bool) -> None:
        """Raises OSError. SQLite has made the file with the first transaction."""
        self.path = Path(f"{database}-wal")
        # SQLite has no locks on this file that closing it would give up.
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.is_synced = is_synced
        """Whether commits are to be durable; otherwise `sync` does nothing."""
        self.broken = False
        """Whether a sync has failed, and the log was not repaired since."""
        self.unsynced = False
        """Whether the writer thread has committed something that is perhaps not durable."""
        self.restarts = False
        """Whether the next commit probably begins the log anew, which syncs its header.

        Set and cleared in the writer thread, which makes that commit.
        """
        self._groups = self._groups_at_checkpoint = 0
        self._pages_per_group = 1.0
        self._size = 0
        self._longest_kept = 0
        """The size at the last attempt to cut the log that readers have kept from it."""

    def sync(self) -> None:
        """Make all commits durable. Blocks for the disk. Raises OSError."""
        if self.is_synced:
            os.fdatasync(self.descriptor)

    def repair(self, cursor: sqlite3.Cursor) -> None:
        """Copy a broken log into the database file and sync that. Raises sqlite3.Error.

        No transaction may be open. Waits for readers as long as the connection's patience.
        """
        ((busy, *_),) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if busy:
            raise LogBrokenError("the write-ahead log cannot be copied while it is being read")
        self.broken = False

    def note_group(self) -> bool:
        """Count a committed group; return whether a checkpoint is due."""
        self._groups += 1
        if self._groups % CHECK_GROUPS:
            return False
        since = self._groups - self._groups_at_checkpoint
        size = os.fstat(self.descriptor).st_size
        return since * self._pages_per_group >= CHECKPOINT_PAGES or size - self._size >= GROWTH_BYTES

    def note_checkpoint(self, pages: int, copied: int) -> None:
        """Note a checkpoint: pages in the log, and how many are in the database file now.

        Both are -1 when another process was at a checkpoint.
        """
        if pages < 0:
            return
        since = self._groups - self._groups_at_checkpoint
        if since:
            self._pages_per_group = max(pages / since, 1.0)
        self.restarts = copied == pages
        if self.restarts:
            self._groups_at_checkpoint = self._groups
        self._size = os.fstat(self.descriptor).st_size
        if self._size <= LIMIT_BYTES:
            self._longest_kept = 0

    def note_kept(self) -> None:
        """Note that a reader kept the log from being cut, and will for a while."""
        self._longest_kept = os.fstat(self.descriptor).st_size

    @property
    def is_too_long(self) -> bool:
        """Whether the log is to be cut, even if that waits for readers.

        A reader that never ends is waited for once for each GROWTH_BYTES, a backup never.
        """
        size = os.fstat(self.descriptor).st_size
        is_long = size > LIMIT_BYTES and (not self._longest_kept or size >= self._longest_kept + GROWTH_BYTES)
        return is_long and not is_read_for_backup(self.path.parent)

    def close(self) -> None:
        """Close the descriptor; the log stays SQLite's."""
        os.close(self.descriptor)
