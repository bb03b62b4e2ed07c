"""Knows which agent implementation has registered a prefix of a resource type.

That is said of a decision in the audit, and decides nothing (reference: security.md 2.9). So a node
may learn of registrations on other nodes up to REFRESH_S late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

REFRESH_S: Final = 60.0


class ResourceOwner(NamedTuple):
    """An implementation, and the prefix of resource types that it has registered."""

    implementation: str
    prefix: str


class ResourceOwners:
    """Keeps the registered prefixes in memory; `run` reads them after changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owners: Mapping[str, str] = {}
        self._changed = AutoResetEvent()

    def changed(self) -> None:
        """Note that a registration of this node has changed, or may have."""
        self._changed.set()

    def owner_of(self, resource_type: str) -> ResourceOwner | None:
        """Return the owner of the longest prefix of a resource type, at a slash."""
        if not self._owners:
            return None
        prefix = resource_type
        while prefix:
            owner = self._owners.get(prefix)
            if owner is not None:
                return ResourceOwner(owner, prefix)
            prefix = prefix.rpartition("/")[0]
        return None

    async def run(self) -> None:
        """Read the prefixes at once, after changes, and now and then, until cancelled."""
        while True:
            try:
                found = await self._database.fetch("SELECT prefix, implementation FROM agent_prefixes")
            except StorageUnavailable:
                await trio.sleep(RETRY_DELAY_S)
                continue
            self._owners = {bytes(prefix).decode(): implementation for prefix, implementation in found}
            with trio.move_on_after(REFRESH_S if self._database.shared else math.inf):
                await self._changed.wait()
