"""Ends sessions when the credentials that let them in expire.

One task for all sessions of a gateway, and one entry of a heap for each session that expires. An
entry's deadline is monotonic, so a calendar that is set back keeps no session alive. A calendar
that is set forward is noticed within CHECK_S, and then all entries are compared with it.

Invariant: a session ends at most CHECK_S after its `expires_ms`, by either clock. One that is
renewed is watched again; the entry of its earlier end then ends nothing.
"""

from __future__ import annotations

import heapq
from typing import Final, NamedTuple

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session

CHECK_S: Final = 1.0
STEP_MS: Final = 250
"""A calendar that gains less than this over the monotonic clock was not set forward."""
EXPIRED: Final = "the credential of this session has expired; connect again with a new one"
_SLICE: Final = 64
"""Ends of sessions in one turn of the event loop."""
_SPARE: Final = 256


class _Expiring(NamedTuple):
    deadline: float
    session_id: str
    expires_ms: int


class SessionExpiry:
    """Watches the sessions of a gateway that expire; `run` ends them."""

    def __init__(self, registry: SessionRegistry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._heap: list[_Expiring] = []
        self._earlier = AutoResetEvent()
        self._offset_ms = self._offset()
        self._compact_at = _SPARE
        self.ended = 0
        """How many sessions were ended since the start."""

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, session: Session) -> None:
        """End a registered session at its `expires_ms`; at once if that has passed."""
        if not session.expires_ms:
            return
        left_ms = session.expires_ms - self._clock.now_ms()
        if left_ms <= 0:
            self._end(session)
            return
        entry = _Expiring(self._clock.monotonic() + left_ms / 1000, session.session_id, session.expires_ms)
        heapq.heappush(self._heap, entry)
        if len(self._heap) >= self._compact_at:
            # Clients that reconnect leave entries of ended sessions behind.
            self._heap = [one for one in self._heap if self._registry.session(one.session_id) is not None]
            heapq.heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _SPARE
        if self._heap and self._heap[0] is entry:
            self._earlier.set()

    async def run(self) -> None:
        """End sessions as they expire, until cancelled."""
        while True:
            if not self._heap:
                await self._earlier.wait()
            for count, due in enumerate(self._take_due()):
                session = self._registry.session(due.session_id)
                if session is not None and session.expires_ms == due.expires_ms:
                    self._end(session)
                if count % _SLICE == _SLICE - 1:
                    await trio.lowlevel.checkpoint()
            if self._heap:
                left_s = self._heap[0].deadline - self._clock.monotonic()
                with trio.move_on_after(min(max(left_s, 0.0), CHECK_S)):
                    await self._earlier.wait()

    def _end(self, session: Session) -> None:
        self.ended += session.ending is None
        session.end(Status.UNAUTHENTICATED, EXPIRED)

    def _take_due(self) -> list[_Expiring]:
        """Remove the entries that are due from the heap, and return them."""
        offset_ms = self._offset()
        if offset_ms > self._offset_ms + STEP_MS:
            now_ms, monotonic = self._clock.now_ms(), self._clock.monotonic()
            self._heap = [
                one._replace(deadline=min(one.deadline, monotonic + (one.expires_ms - now_ms) / 1000))
                for one in self._heap
            ]
            heapq.heapify(self._heap)
            self._offset_ms = offset_ms
        self._offset_ms = min(self._offset_ms, offset_ms)
        due: list[_Expiring] = []
        now = self._clock.monotonic()
        while self._heap and self._heap[0].deadline <= now:
            due.append(heapq.heappop(self._heap))
        return due

    def _offset(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic() * 1000
