"""What can stop storage from being opened. Everything after that is base.StorageUnavailable.

These errors are read by the person who started the gateway: the text names the file and says what to do.
"""

from __future__ import annotations


class StorageSetupError(Exception):
    """A database or data directory cannot be used. `str()` is fit to be the last line before exit."""


class DirectoryInUseError(StorageSetupError):
    """Another running process owns the data directory."""


class SchemaTooNewError(StorageSetupError):
    """The file was written by a newer release; going on would damage what that release relies on."""
