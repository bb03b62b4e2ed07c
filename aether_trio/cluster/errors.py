"""Errors of a cluster node without a lease: nothing was done; try again later."""

from __future__ import annotations

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.errors import FencedError

__all__ = ["FencedError", "LeaseLost"]


class LeaseLost(StorageUnavailable):
    """This cluster node has no lease and did not get one in time; it goes on trying."""
