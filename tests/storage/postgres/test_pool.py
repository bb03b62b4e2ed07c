"""The pool of connections alone, with connections and a clock that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.pool import Pool

PATIENCE_S = 60.0


class Connection:
    def __init__(self) -> None:
        self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True


class Loop:
    """A loop for a pool, whose time and timers the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        handle = asyncio.get_running_loop().call_later(1e6, lambda: None)
        self.timers.append((when, lambda: None if handle.cancelled() else callback(*args)))
        return handle

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> asyncio.Handle:
        return self.call_at(self.now + delay, callback, *args)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [callback for when, callback in self.timers if when <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for callback in due:
            callback()


class Server:
    """Gives `room` connections, and then says that it has no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.refused = 0

    async def connect(self) -> Connection:
        if not self.room:
            self.refused += 1
            raise asyncpg.TooManyConnectionsError("sorry, too many clients already")
        self.room -= 1
        return Connection()


def pool_on(server: Server, loop: Loop) -> Pool:
    return Pool(
        server.connect, asyncio.get_running_loop().create_task, loop, most=4, keep=1, idle_s=1e6, patience_s=PATIENCE_S
    )


async def settle(until: Callable[[], bool]) -> None:
    while not until():
        await asyncio.sleep(0)


def test_a_server_with_no_more_connections_is_not_away_for_those_who_share_what_there_is() -> None:
    async def main() -> None:
        server, loop = Server(1), Loop()
        pool = pool_on(server, loop)
        only = await pool.acquire()
        second = asyncio.ensure_future(pool.acquire())
        await settle(lambda: server.refused > 0)
        pool.release(only)
        assert await second is only
        loop.pass_time(10 * PATIENCE_S)
        # The last attempt to connect has failed, ages ago; but what there is works.
        third = asyncio.ensure_future(pool.acquire())
        await asyncio.sleep(0)
        assert not third.done()
        pool.release(only)
        assert await third is only
        await pool.close()

    asyncio.run(main())


def test_a_server_with_no_connection_at_all_is_said_so_with_what_to_do() -> None:
    async def main() -> None:
        server, loop = Server(0), Loop()
        pool = pool_on(server, loop)
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: server.refused > 0)
        loop.pass_time(PATIENCE_S)
        with pytest.raises(
            StorageUnavailable, match=r"no connection within 60 s: the server has no connection left. Raise"
        ):
            await waiting
        with pytest.raises(StorageUnavailable, match=r"^the server has no connection left"):
            await pool.acquire()
        await pool.close()

    asyncio.run(main())


def test_a_connection_that_comes_back_broken_is_no_sign_of_life() -> None:
    async def main() -> None:
        server, loop = Server(1), Loop()
        pool = pool_on(server, loop)
        only = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: server.refused > 0)
        pool.release(only, healthy=False)
        loop.pass_time(PATIENCE_S)
        with pytest.raises(StorageUnavailable):
            await waiting
        await pool.close()

    asyncio.run(main())
