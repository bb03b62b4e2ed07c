"""Errors that keep storage from being opened, for the person who starts a gateway."""

from __future__ import annotations


class StorageSetupError(Exception):
    """Raised when a database or directory cannot be used; says what to do."""


class DirectoryInUseError(StorageSetupError):
    """Raised when another running process has locked the data directory."""


class SchemaTooNewError(StorageSetupError):
    """Raised when a newer release wrote the database, which this one would damage."""
