"""Changes access data without a gateway, for `--offline` and `aether init`.

The databases are those of the settings: files, which must not be in use by a gateway, or
PostgreSQL, whose nodes notice a change within seconds. Changes are committed and audited like those
of a gateway.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from aether_trio.config import Settings
from aether_trio.gateway.audit import open_audit
from aether_trio.gateway.databases import open_databases, starting
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.services.access.changes import AccessChanges, NoPeers
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.storage.base import Database

__all__ = ["OfflineAccess", "open_offline"]


@dataclass(frozen=True, slots=True)
class OfflineAccess:
    """The access data of a gateway that is not running."""

    settings: Settings
    clock: Clock
    database: Database
    changes: AccessChanges


@asynccontextmanager
async def open_offline(settings: Settings) -> AsyncIterator[OfflineAccess]:
    """Open the access data until the block ends. Raises StorageSetupError."""
    clock = SystemClock(trio.current_time)
    with starting("the access data cannot be opened, as storage does not answer") as done:
        async with (
            open_databases(settings) as databases,
            open_audit(settings, clock, databases.tasks, random.SystemRandom()) as audit,
        ):
            changes = AccessChanges(databases.tasks, clock, NoPeers(), LeaseGate(), audit.writer)
            await changes.start()
            done()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(changes.run)
                yield OfflineAccess(settings, clock, databases.tasks, changes)
                nursery.cancel_scope.cancel()
