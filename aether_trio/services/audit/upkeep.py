"""Deletes audit rows that are too old, thins heads, and makes partitions ahead.

The tree keeps a frontier that stands for the rows that went, so the rest stays provable.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.services.audit.heads import HeadSigner
from aether_trio.services.audit.trees import AUDIT_LOG, forget_page
from aether_trio.services.audit.writer import AuditWriter
from aether_trio.storage.base import Database, StorageUnavailable

logger = structlog.get_logger("aether.audit")

UPKEEP_S: Final = 3600.0
DAY_MS: Final = 24 * 3600 * 1000


class AuditUpkeep:
    """Deletes rows that are too old, thins old heads, makes partitions."""

    def __init__(
        self, database: Database, clock: Clock, writer: AuditWriter, signer: HeadSigner, retention_days: int
    ) -> None:
        self._shared = database.shared
        self._database = database.separate_queue(locking=True)
        self._clock = clock
        self._writer = writer
        self._signer = signer
        self._retention_ms = retention_days * DAY_MS

    async def run(self) -> None:
        """Sweep every hour until cancelled."""
        while True:
            await trio.sleep(UPKEEP_S)
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.info("old audit rows are deleted later, as storage fails", reason=str(error))

    async def sweep(self) -> int:
        """Delete what is too old; return how many rows. Raises StorageUnavailable."""
        await self._writer.prepare()
        gone = await self._forget(self._retention_ms) if self._retention_ms else 0
        await self._signer.thin()
        return gone

    async def forget(self, older_than_days: int) -> int:
        """Delete rows that are older than so many days, one at least; return how many.

        Raises StorageUnavailable.
        """
        return await self._forget(max(older_than_days, 1) * DAY_MS)

    async def _forget(self, age_ms: int) -> int:
        now_ms = self._clock.now_ms()
        before_ms = now_ms - age_ms
        if self._shared:
            # Tables are dropped whole, so rows go with the last of their table.
            ended = [
                one.upper_ms for one in await self._database.read(AUDIT_LOG.partitions) if one.upper_ms <= before_ms
            ]
            if not ended:
                return 0
            before_ms = max(ended)
        gone = 0
        for (number,) in await self._database.fetch("SELECT tree FROM audit_trees ORDER BY tree"):
            forget = partial(
                forget_page,
                number,
                before_ms,
                self._writer.tree,
                now_ms,
                self._signer.sign_floor,
                keeps_rows=self._shared,
            )
            while page := await self._database.run(forget):
                gone += page
        if self._shared:
            await AUDIT_LOG.drop_older(self._database, before_ms)
        return gone
