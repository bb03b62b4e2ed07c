"""Ends sessions of other cluster nodes: a request row, a notification, an answer.

    asker ─▶ row ─▶ "disconnect" ─▶ node ends its session, sets `done` ─▶ "ended" ─▶ asker

The asker reads its request every `ask_again_s` and repeats the notification; the other node reads
all requests every few seconds, and carries out those of the last REQUEST_MS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.cluster.session_host import LocalSessions
from aether_trio.model.ownership import DisconnectOutcome, SessionRecord

DISCONNECT: Final = "disconnect"
ENDED: Final = "ended"
REQUEST_MS: Final = 60_000  # how long a request is valid
MAX_REASON: Final = 1000  # characters of a reason; the rest is cut off

_REQUEST: Final = """
    INSERT INTO disconnects AS d (session_id, asker, reason, asked_ms) VALUES ($1, $2, $3, aether_now_ms())
    ON CONFLICT (session_id, asker) DO UPDATE SET asked_ms = excluded.asked_ms
    RETURNING d.done, EXISTS (
        SELECT FROM identity_locks h JOIN nodes n ON n.node_id = h.node_id AND n.epoch = h.node_epoch AND n.alive
        WHERE h.session_id = $1 AND h.ended_ms IS NULL
    )
"""
# From the few requests to their locks.
_REQUESTS: Final = """
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
    """Counters of requests to end sessions of other nodes (`asked`) since start.

    `unconfirmed` of them were not answered in time; `carried_out` were for other nodes.
    """

    asked: int
    unconfirmed: int
    carried_out: int


class Disconnects:
    """Asks other cluster nodes to end their sessions, and does what they ask for.

    `on_request` is called in one step when there may be requests to this node.
    """

    def __init__(
        self,
        queries: QueryPool,
        lease: Lease,
        bus: Bus,
        sessions: LocalSessions,
        on_request: Callable[[], None],
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
        self._asked = self._unconfirmed = self._carried_out = 0
        bus.handle(DISCONNECT, lambda _sender, _body: on_request())
        bus.handle(ENDED, self._on_ended)

    def statistics(self) -> DisconnectStatistics:
        """Return the counters of requests to end sessions since start."""
        return DisconnectStatistics(self._asked, self._unconfirmed, self._carried_out)

    async def end(self, session: SessionRecord, reason: str) -> DisconnectOutcome:
        """Ask a session's node to end the session, and wait; raises StorageUnavailable."""
        self._asked += 1
        session_id = session.session_id
        with trio.move_on_after(self._wait_s):
            while True:
                # Before the statement, so that no answer after it is missed. Two askers share it.
                news = self._waiting.setdefault(session_id, trio.Event())
                try:
                    rows = await self._queries.fetch(_REQUEST, session_id, self._lease.node_id, reason[:MAX_REASON])
                    done, live = rows[0]
                    if done or not live:
                        return DisconnectOutcome.DONE  # by its node, or it had ended before
                    self._bus.send(session.node_id, DISCONNECT, "")
                    with trio.move_on_after(self._ask_again_s):
                        await news.wait()
                finally:
                    if self._waiting.get(session_id) is news:
                        del self._waiting[session_id]
                        news.set()
        self._unconfirmed += 1
        return DisconnectOutcome.UNCONFIRMED

    async def carry_out(self) -> None:
        """End this node's sessions that others want ended; raises StorageUnavailable."""
        rows = await self._queries.fetch(_REQUESTS, self._lease.node_id, REQUEST_MS)
        done = [
            (session_id, asker) for session_id, reason, asker in rows if self._sessions.disconnect(session_id, reason)
        ]
        if done:
            self._carried_out += len(done)
            await self._queries.fetch(_DONE, [one for one, _ in done], [asker for _, asker in done])
            for session_id, asker in done:
                self._bus.send(asker, ENDED, session_id)

    async def forget(self) -> None:
        """Delete old requests to end sessions. Raises StorageUnavailable."""
        await self._queries.fetch(_FORGET, 2 * REQUEST_MS)

    def _on_ended(self, _sender: int, session_id: str) -> None:
        for name in list(self._waiting) if session_id == ALL else [session_id]:
            event = self._waiting.pop(name, None)
            if event is not None:
                event.set()
