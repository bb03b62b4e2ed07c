"""A pool of connections to PostgreSQL, with patience for short outages.

    acquire ──▶ an idle open one, else a new one (up to `most`), else wait for `patience_s`
    release ──▶ to the caller that waits longest, else idle; broken ones are closed and forgotten

When an attempt to connect fails, one task goes on trying, with growing pauses. Meanwhile callers
wait `patience_s`, counted from the beginning of the outage: a short outage is only a pause, and in
a long one callers get the error at once. A connection that is released in good order shows that
there is no outage, even when an attempt to connect has failed (the server may have no more
connections to give).

Invariants: at most `most` connections exist, those being opened included; a connection has one user
at a time; a connection that is handed out is not known to be closed and is in no transaction.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.errors import explain
from aether_trio.storage.postgres.lost_commits import LostProcesses
from aether_trio.storage.postgres.stalls import StallWatch, Use

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.5  # also about the time to notice that the server is back
CLOSE_S: Final = 2.0  # for closing a connection in order; then its socket is cut

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Pool:
    """A pool of connections to PostgreSQL; described at the top of this file."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        spawn: Spawn,
        loop: Any,
        *,
        most: int,
        keep: int,
        idle_s: float,
        patience_s: float,
        watch: StallWatch | None = None,
    ) -> None:
        self._connect = connect
        self._watch = watch
        if watch is not None:
            watch.pools.append(self)
        self._spawn = spawn
        self.most = most
        self._keep = keep
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._loop = loop
        self._idle: deque[tuple[Any, float]] = deque()
        self.in_use: dict[Any, Use] = {}
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._opening = 0
        self._opens: set[asyncio.Task[None]] = set()
        self._down_since: float | None = None
        self._random = random.Random()  # noqa: S311  # spreads the nodes' attempts
        self._reaper: asyncio.TimerHandle | None = None
        self.closed = False
        self.opened = 0
        self.last_error = ""
        self.lost = LostProcesses()
        """Server processes of lost connections that may still commit; a writer ends them first."""

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return len(self._idle) + len(self.in_use) + self._opening

    @property
    def down(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._down_since is not None

    async def acquire(self) -> Any:
        """Take a connection until `release`. Raises StorageUnavailable."""
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                self._hand(connection)
                return connection
        if self.closed:
            raise StorageUnavailable("the database is closed")
        now = self._loop.time()
        give_up = (now if self._down_since is None else self._down_since) + self._patience_s
        if give_up <= now:
            raise StorageUnavailable(self._outage())
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._grow()
        timer = self._loop.call_at(give_up, self._give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()

    def release(self, connection: Any, *, healthy: bool = True) -> None:
        """Give a connection back; not `healthy` if lost or maybe in a transaction."""
        self.in_use.pop(connection, None)
        if not healthy or connection.is_closed() or self.closed:
            connection.terminate()
            self._grow()
        else:
            self._down_since = None
            self._place(connection)

    def _hand(self, connection: Any) -> None:
        self.in_use[connection] = Use(0.0, ()) if self._watch is None else self._watch.began(connection)

    def discard_idle(self) -> None:
        """Close idle connections: the server has gone, or is the primary no longer."""
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        """Close idle connections in order, and cut those in use."""
        self.closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(StorageUnavailable("the database is closed"))
        for task in self._opens:
            task.cancel()  # no caller has its connection yet
        for connection in self.in_use:
            connection.terminate()
        while self._idle:
            await _close(self._idle.pop()[0])

    def _place(self, connection: Any) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._hand(connection)
                waiter.set_result(connection)
                return
        self._idle.append((connection, self._loop.time()))
        if self._reaper is None:
            self._reaper = self._loop.call_later(self._idle_s, self._reap)

    def _give_up(self, waiter: asyncio.Future[Any]) -> None:
        if not waiter.done():
            reason = self._outage() if self.down else "every connection is in use"
            waiter.set_exception(StorageUnavailable(f"no connection within {self._patience_s:g} s: {reason}"))

    def _outage(self) -> str:
        known = self.last_error.startswith("the server ")
        return self.last_error if known else f"the server is away: {self.last_error}"

    def _grow(self) -> None:
        """Open connections for callers in line, one at a time during an outage."""
        wanted = sum(not waiter.done() for waiter in self._waiting)
        while (
            not self.closed and self._opening < wanted and self.size < self.most and not (self.down and self._opening)
        ):
            self._opening += 1
            task = self._spawn(self._open())
            self._opens.add(task)
            task.add_done_callback(self._opens.discard)

    async def _open(self) -> None:
        connection = None
        try:
            connection = await self._connected()
        finally:
            self._opening -= 1
        if connection is not None:
            if self.closed:
                connection.terminate()
            else:
                self.opened += 1
                self._place(connection)
        self._grow()

    async def _connected(self) -> Any:
        """Connect without a time limit; None when closed, or another task goes on trying."""
        pause_s = FIRST_PAUSE_S
        while not self.closed:
            try:
                connection = await self._connect()
            except Exception as exc:
                self.last_error = explain(exc)
                if self._down_since is None:
                    self._down_since = self._loop.time()
                elif self._opening > 1:
                    return None
                await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                self._down_since = None
                return connection
        return None

    def _reap(self) -> None:
        """Close connections that have been idle for too long, the oldest first."""
        self._reaper = None
        oldest = self._loop.time() - self._idle_s
        while self._idle and self.size > self._keep and self._idle[0][1] <= oldest:
            self._spawn(_close(self._idle.popleft()[0]))
        if self._idle:
            self._reaper = self._loop.call_later(self._idle_s, self._reap)


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_S)
    except Exception:  # it was going away anyhow
        connection.terminate()
