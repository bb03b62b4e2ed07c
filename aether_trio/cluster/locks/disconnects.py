"""Ending a session that another node holds: an order in a table, a hint, and a word that it is done.

    asker   ──▶ disconnects ──▶ hint "order" ──▶ holder ends the session, sets `done` ──▶ hint "ended" ──▶ asker

The asker looks at its order every `ask_again_s` and repeats the hint; the holder looks at all orders every few seconds, hint or not.
So hints that get lost cost seconds, and an order is carried out even when nobody waits for it any more, if its node hears of it
within ORDER_MS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease
from aether_trio.cluster.node.queries import Queries
from aether_trio.cluster.session_host import LocalSessions
from aether_trio.model.ownership import DisconnectOutcome, SessionRecord

ORDER: Final = "order"
ENDED: Final = "ended"
ORDER_MS: Final = 60_000
"""How long an order is good for."""
MAX_REASON: Final = 1000
"""Characters of a reason; the rest is cut off."""

_ORDER: Final = """
    INSERT INTO disconnects AS d (session_id, asker, reason, asked_ms) VALUES ($1, $2, $3, aether_now_ms())
    ON CONFLICT (session_id, asker) DO UPDATE SET asked_ms = excluded.asked_ms
    RETURNING d.done, EXISTS (
        SELECT FROM identity_locks h JOIN nodes n ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive
        WHERE h.session_id = $1 AND h.ended_ms IS NULL
    )
"""
# From the few orders to their holds.
_ORDERS: Final = """
    SELECT d.session_id, d.reason, d.asker FROM disconnects d JOIN identity_locks h ON h.session_id = d.session_id
    WHERE h.node_id + 0 = $1 AND h.ended_ms IS NULL AND NOT d.done AND d.asked_ms > aether_now_ms() - $2::bigint
"""
_DONE: Final = """
    UPDATE disconnects SET done = true FROM unnest($1::text[], $2::int[]) AS c (session_id, asker)
    WHERE disconnects.session_id = c.session_id AND disconnects.asker = c.asker
"""
_FORGET: Final = "DELETE FROM disconnects WHERE asked_ms < aether_now_ms() - $1::bigint"


@dataclass(frozen=True, slots=True)
class DisconnectStatistics:
    """Since start: sessions of others that this node wanted ended, and its own that it ended for others."""

    asked: int
    unconfirmed: int
    obeyed: int


class Disconnects:
    """See the module docstring. `on_order` is told, in one step, that there may be orders for this node."""

    def __init__(
        self,
        queries: Queries,
        lease: Lease,
        bus: Bus,
        sessions: LocalSessions,
        on_order: Callable[[], None],
        *,
        ask_again_s: float,
        wait_s: float,
    ) -> None:
        self._queries = queries
        self._lease = lease
        self._bus = bus
        self._sessions = sessions
        self._ask_again_s = ask_again_s
        self._wait_s = wait_s
        self._waiting: dict[str, trio.Event] = {}
        self._asked = self._unconfirmed = self._obeyed = 0
        bus.handle(ORDER, lambda _sender, _body: on_order())
        bus.handle(ENDED, self._hear_ended)

    def statistics(self) -> DisconnectStatistics:
        """What has happened so far."""
        return DisconnectStatistics(self._asked, self._unconfirmed, self._obeyed)

    async def end(self, session: SessionRecord, reason: str) -> DisconnectOutcome:
        """Have the node that holds it end a session, and wait for its word. Raises StorageUnavailable."""
        self._asked += 1
        session_id = session.session_id
        with trio.move_on_after(self._wait_s):
            while True:
                # Before the look, so that what comes after it is not missed. Two who ask share it.
                news = self._waiting.setdefault(session_id, trio.Event())
                try:
                    rows = await self._queries.fetch(_ORDER, session_id, self._lease.node_id, reason[:MAX_REASON])
                    done, live = rows[0]
                    if done or not live:
                        return DisconnectOutcome.DONE  # by its node, or it had ended before
                    self._bus.send(session.node_id, ORDER, "")
                    with trio.move_on_after(self._ask_again_s):
                        await news.wait()
                finally:
                    if self._waiting.get(session_id) is news:
                        del self._waiting[session_id]
                        news.set()
        self._unconfirmed += 1
        return DisconnectOutcome.UNCONFIRMED

    async def obey(self) -> None:
        """Carry out what others have ordered of this node. Raises StorageUnavailable."""
        rows = await self._queries.fetch(_ORDERS, self._lease.node_id, ORDER_MS)
        done = [
            (session_id, asker) for session_id, reason, asker in rows if self._sessions.disconnect(session_id, reason)
        ]
        if done:
            self._obeyed += len(done)
            await self._queries.fetch(_DONE, [one for one, _ in done], [asker for _, asker in done])
            for session_id, asker in done:
                self._bus.send(asker, ENDED, session_id)

    async def forget(self) -> None:
        """Delete what is old. Raises StorageUnavailable."""
        await self._queries.fetch(_FORGET, 2 * ORDER_MS)

    def _hear_ended(self, _sender: int, session_id: str) -> None:
        for name in list(self._waiting) if session_id == ALL else [session_id]:
            event = self._waiting.pop(name, None)
            if event is not None:
                event.set()
