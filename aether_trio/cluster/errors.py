"""Errors between nodes.

All of them are StorageUnavailable: nothing was done, and a caller may try again later.
"""

from __future__ import annotations

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.errors import FencedError

__all__ = ["FencedError", "LeaseLost"]


class LeaseLost(StorageUnavailable):
    """This node has no lease now, and could not get one in time; it goes on trying."""
