"""Backups of a data directory: taken beside a gateway, restored all or nothing."""

from aether_trio.storage.backup.archive import Backup, back_up
from aether_trio.storage.backup.manifest import BackupError, Manifest
from aether_trio.storage.backup.restore import Restored, restore

__all__ = ["Backup", "BackupError", "Manifest", "Restored", "back_up", "restore"]
