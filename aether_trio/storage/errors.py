"""Errors that keep storage from being opened. After that it raises base.StorageUnavailable.

The person who started the gateway reads these errors: the text names the file and says what to do.
"""

from __future__ import annotations


class StorageSetupError(Exception):
    """A database or data directory cannot be used; `str()` is fit to be the last line before exit."""


class DirectoryInUseError(StorageSetupError):
    """Another running process owns the data directory."""


class SchemaTooNewError(StorageSetupError):
    """A newer release wrote the file; to go on would damage what that release relies on."""
