"""Stores when each identity was last seen, and the history of its last session.

Ends of sessions are written in batches; those that are not written yet are read from memory. After
a kill -9 a live session has the time of the end before: the time is information, and never a lock.
Clients choose the names, so a name is forgotten some time after its last session.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.ownership import SessionHistory
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Execute, Program, StorageUnavailable, Value
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.expiry import sweep_forever
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.presence")

MAX_WAITING = 50_000
"""Ended sessions that wait for storage; beyond it the oldest are dropped."""

SWEEP_PAGE = 500
SWEEP_INTERVAL_S = 60.0  # seconds between two sweeps, which delete old rows

# A node may write an end late; it must not overwrite a later end that another node has written.
# Epochs start again when an identity has had no lock for a day, hence half a day in ms.
_WRITE = """INSERT INTO presence (identity, last_seen_ms, session_id, initial_connection_ms, reconnections, lock_epoch)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (identity) DO UPDATE SET last_seen_ms = excluded.last_seen_ms,
    session_id = excluded.session_id, initial_connection_ms = excluded.initial_connection_ms,
    reconnections = excluded.reconnections, lock_epoch = excluded.lock_epoch
    WHERE excluded.lock_epoch >= presence.lock_epoch OR excluded.last_seen_ms > presence.last_seen_ms + 43200000"""


class LastSeenRecord(NamedTuple):
    """When the last session of an identity ended, and under which lock epoch."""

    last_seen_ms: int
    history: SessionHistory
    lock_epoch: int = 0


class LastSeenStore:
    """Writes and reads when identities were last seen; keeps it `keep_s` (0: forever)."""

    def __init__(self, database: Database, clock: Clock, *, keep_s: float = 0.0) -> None:
        self._keep_ms = int(keep_s * 1000)
        self._database = database
        self._clock = clock
        self._waiting: dict[str, LastSeenRecord] = {}
        self._writing: dict[str, LastSeenRecord] = {}
        self._work = AutoResetEvent()
        self._flushing = trio.Lock()

    def ended(self, session: Session) -> None:
        """Record the end of a session, to be written soon."""
        name = session.identity.text
        self._waiting.pop(name, None)
        if len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        epoch = session.lock.epoch if session.lock else 0
        self._waiting[name] = LastSeenRecord(self._clock.now_ms(), session.history, epoch)
        self._work.set()

    async def seen(self, identity: str) -> LastSeenRecord | None:
        """Return when an identity was last seen, or None. Raises StorageUnavailable."""
        found = self._waiting.get(identity) or self._writing.get(identity)
        if found is not None:
            return found
        rows = await self._database.fetch(
            "SELECT last_seen_ms, session_id, initial_connection_ms, reconnections FROM presence WHERE identity = $1",
            identity,
        )
        if not rows:
            return None
        last_seen_ms, session_id, initial_ms, reconnections = rows[0]
        return LastSeenRecord(last_seen_ms, SessionHistory(session_id, initial_ms, reconnections))

    async def user_seen_ms(self, user_id: str) -> int:
        """Return when the last session of any window of a user ended (Unix ms), or 0."""
        prefix = f"us::{user_id}::"
        unwritten = chain(self._waiting.items(), self._writing.items())
        waiting = [seen.last_seen_ms for name, seen in unwritten if name.startswith(prefix)]
        # The windows of a user are a range: identities order by their bytes, and ";" follows ":".
        rows = await self._database.fetch(
            "SELECT MAX(last_seen_ms) FROM presence WHERE identity >= $1 AND identity < $2", prefix, f"us::{user_id}:;"
        )
        return max([*waiting, rows[0][0] or 0])

    async def recall(self, identity: str, session_id: str) -> SessionHistory | None:
        """Return the history of a session, if it was the identity's last one."""
        found = await self.seen(identity)
        return found.history if found is not None and found.history.session_id == session_id else None

    async def run(self) -> None:
        """Write the ends of sessions to storage until cancelled."""
        while True:
            if not self._waiting:
                await self._work.wait()
            await retry_while_unavailable(self.flush, "writing the ends of sessions", logger)

    async def sweep_forever(self) -> None:
        """Delete identities that were last seen too long ago. Runs until cancelled."""
        if self._keep_ms:
            await sweep_forever(self._database, self._clock, self._sweep_page, SWEEP_PAGE, SWEEP_INTERVAL_S)

    def _sweep_page(self, now_ms: int, rows: int) -> Program[int]:
        count: int = yield Execute(
            "DELETE FROM presence WHERE identity IN ("
            "SELECT identity FROM presence WHERE last_seen_ms < $1 ORDER BY last_seen_ms LIMIT $2)",
            (now_ms - self._keep_ms, rows),
        )
        return count

    async def flush_at_end(self) -> None:
        """Write the ends of sessions that wait, or log that they are lost."""
        try:
            await self.flush()
        except StorageUnavailable as error:
            logger.warning("last-seen times that waited at stop are lost: storage is unavailable", reason=str(error))

    async def flush(self) -> None:
        """Write the ends of sessions that wait. Raises StorageUnavailable; they wait on."""
        async with self._flushing:
            if not self._waiting:
                return
            self._writing, self._waiting = self._waiting, {}
            try:
                await self._write()
            except BaseException:
                self._waiting = {**self._writing, **self._waiting}
                raise
            finally:
                self._writing = {}

    async def _write(self) -> None:
        await in_halves(
            [
                (
                    name,
                    seen.last_seen_ms,
                    seen.history.session_id,
                    seen.history.initial_connection_ms,
                    seen.history.reconnections,
                    seen.lock_epoch,
                )
                for name, seen in self._writing.items()
                if not name.startswith("ta::")  # a name that is used once
            ],
            self._write_rows,
            lambda row, error: logger.error(
                "storage refused the last-seen time of an identity; it is not written",
                identity=row[0],
                reason=str(error),
            ),
        )

    async def _write_rows(self, rows: Sequence[tuple[Value, ...]]) -> Sequence[None]:
        await self._database.executemany(_WRITE, rows)
        return ()
