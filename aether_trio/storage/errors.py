"""Errors that keep storage from being opened.

Once it is open, it raises base.StorageUnavailable. The person who started the gateway reads these
errors: the text names the file and says what to do.
"""

from __future__ import annotations


class StorageSetupError(Exception):
    """A database or directory cannot be used; `str()` may be the last line at exit."""


class DirectoryInUseError(StorageSetupError):
    """Another running process owns the data directory."""


class SchemaTooNewError(StorageSetupError):
    """A newer release wrote the file; going on would damage its data."""
