"""Ends stalled connections: those whose answer never arrives.

The network keeps such a connection open and drops its data. From here it looks like a statement
that is slow, or waits for a lock; but a server process that is at work does not wait for its
client. So another connection is opened, and asks about those that have not answered for a while:

    in use for `slow_s` ──▶ does its process wait for the client? ──▶ no: ask again in `look_s`
                                     │ yes: since when, and how many bytes have passed
                                     └──▶ unchanged at the next look ──▶ ended, there and here

It is asked twice, as the first look may find an answer that is just arriving. A connection that is
cut here is lost like any other. When the server is not reached on a new connection either, the
lease (cluster/node/lease.py) and the limits on time end the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import structlog

from aether_trio.storage.postgres.errors import describe
from aether_trio.storage.postgres.statements import within

logger = structlog.get_logger("aether.storage")

ANSWER_S: Final = 2.0
"""How long a look waits for its answer."""

SLOWEST_BYTES_PER_S: Final = 256 * 1024
"""A slower connection than this is taken for a stalled one."""

_LOOK: Final = """
    SELECT pid, backend_start, state_change FROM pg_stat_activity
    WHERE pid = ANY($1::int[]) AND wait_event_type = 'Client' AND datname = current_database() AND usename = current_user
"""
# Only processes that have not changed since the look: they are found first, and then ended.
_END: Final = """
    WITH same AS MATERIALIZED (
        SELECT a.pid FROM unnest($1::int[], $2::timestamptz[], $3::timestamptz[]) AS s (pid, backend_start, state_change)
        JOIN pg_stat_activity a ON a.pid = s.pid AND a.backend_start = s.backend_start AND a.state_change = s.state_change
        WHERE a.wait_event_type = 'Client'
    )
    SELECT pid FROM same WHERE pg_terminate_backend(pid)
"""
_BYTES_PASSED: Final = struct.Struct("=120xQQ")
"""tcpi_bytes_acked and tcpi_bytes_received of struct tcp_info (linux/tcp.h)."""


class Use(NamedTuple):
    """Since when (loop's time) a connection is in use, and its bytes at that time."""

    since: float
    passed: tuple[int, ...]


class WatchedPool(Protocol):
    """A pool of connections whose connections in use StallWatch watches."""

    @property
    def in_use(self) -> Mapping[Any, Use]:
        """The pool's connections that are in use."""


class _Sight(NamedTuple):
    """The state of a slow connection at one look; stalled if equal at the next."""

    pid: int
    backend_start: Any
    state_change: Any
    passed: tuple[int, ...]


class StallWatch:
    """Ends stalled connections of its `pools`; works while one is in use for long."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        loop: Any,
        *,
        slow_s: float,
        look_s: float,
    ) -> None:
        self._connect = connect
        self._spawn = spawn
        self._loop = loop
        self._slow_s = slow_s
        self._look_s = look_s
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.pools: list[WatchedPool] = []
        self.looks = self.cuts = 0

    def began(self, connection: Any) -> Use:
        """Note that a connection is handed out now."""
        self._touch()
        return Use(self._loop.time(), bytes_passed(connection))

    def _touch(self) -> None:
        if self._timer is None and self._task is None and not self._closed:
            self._timer = self._loop.call_later(self._slow_s, self._expire)

    def close(self) -> None:
        """Stop watching the pools' connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _expire(self) -> None:
        self._timer = None
        if self._slow():
            self._task = self._spawn(self._look_on())
        elif self._in_use():
            self._touch()

    def _in_use(self) -> bool:
        return any(pool.in_use for pool in self.pools)

    def _slow(self) -> dict[Any, Use]:
        latest = self._loop.time() - self._slow_s
        return {one: use for pool in self.pools for one, use in pool.in_use.items() if use.since <= latest}

    async def _look_on(self) -> None:
        """Look for stalled connections every `look_s` while one is in use for long."""
        connection: Any = None
        before: dict[Any, _Sight] = {}
        try:
            while slow := self._slow():
                try:
                    if connection is None:
                        connection = await self._connect()
                    before = await within(connection, ANSWER_S, partial(self._look, connection, slow, before))
                except Exception as exc:  # the server is away, or all connections to it stall
                    logger.debug("stalled connections could not be looked for", reason=describe(exc))
                    before = {}
                    if connection is not None:
                        connection.terminate()
                        connection = None
                await asyncio.sleep(self._look_s)
        finally:
            if connection is not None:
                connection.terminate()
            self._task = None
            if self._in_use():
                self._touch()

    async def _look(self, connection: Any, slow: Mapping[Any, Use], before: Mapping[Any, _Sight]) -> dict[Any, _Sight]:
        by_pid = {one.get_server_pid(): one for one in slow if not one.is_closed()}
        rows = await connection.fetch(_LOOK, list(by_pid))
        self.looks += 1
        now = {
            by_pid[pid]: _Sight(pid, started, changed, bytes_passed(by_pid[pid]))
            for pid, started, changed in rows
            if changed is not None
        }
        stuck = [
            sight
            for one, sight in now.items()
            if before.get(one) == sight and self._is_overdue(slow[one], sight.passed)
        ]
        if stuck:
            columns = [list(column) for column in zip(*(sight[:3] for sight in stuck), strict=True)]
            ended = await connection.fetch(_END, *columns)
            for (pid,) in ended:
                by_pid[pid].terminate()
                self.cuts += 1
            if ended:
                logger.warning(
                    "stalled connections to PostgreSQL were ended; new ones are made", connections=len(ended)
                )
        return now

    def _is_overdue(self, use: Use, passed: tuple[int, ...]) -> bool:
        """Whether all that was sent would have arrived by now, even over a slow network."""
        sent = passed[0] - use.passed[0] if passed and use.passed else 0
        return bool(self._loop.time() >= use.since + self._slow_s + sent / SLOWEST_BYTES_PER_S)


def bytes_passed(connection: Any) -> tuple[int, ...]:
    """Return the bytes that the server has acknowledged and sent, if counted."""
    raw = connection._transport.get_extra_info("socket")  # asyncpg has no public way to its socket
    if raw is None or raw.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return ()
    try:
        return _BYTES_PASSED.unpack(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_PASSED.size))
    except (OSError, struct.error):  # it has just been closed; or a kernel older than 4.1
        return ()
