"""Deletes ids that are too old to come again, a page at a time.

Each id is one of something that may come twice, such as an event. Many of them grow old at once, as
a gateway writes thousands a second; other writes wait for a page only.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database

PAGE: Final = 1_000
EVERY_MS: Final = 3600 * 1000
"""How often it is looked for old ids."""


class OldIds:
    """Deletes old ids of a table that has `at_ms`; `column` is its primary key."""

    def __init__(self, database: Database, clock: Clock, table: str, column: str, *, kept_ms: int) -> None:
        self._database = database
        self._clock = clock
        self._kept_ms = kept_ms
        self._sql = (
            f"DELETE FROM {table} WHERE {column} IN "  # noqa: S608
            f"(SELECT {column} FROM {table} WHERE at_ms < $1 ORDER BY at_ms LIMIT {PAGE})"
        )
        self._next_ms = 0

    async def forget(self) -> None:
        """Delete a page of old ids, if it is time to. Raises StorageUnavailable.

        To be called now and then, such as with each page of new ids: it is time to again at once
        as long as there are more old ones.
        """
        now_ms = self._clock.now_ms()
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + EVERY_MS  # no other task does the same meanwhile
        try:
            more = await self._database.execute(self._sql, now_ms - self._kept_ms) == PAGE
        except BaseException:
            self._next_ms = 0
            raise
        if more:
            self._next_ms = 0
