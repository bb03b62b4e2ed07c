"""What goes wrong between nodes. All of it is StorageUnavailable to whoever does not care: nothing was done, try again later."""

from __future__ import annotations

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.errors import FencedError

__all__ = ["FencedError", "LeaseLost"]


class LeaseLost(StorageUnavailable):
    """This node holds no lease now and could not get one in time; it goes on trying."""
