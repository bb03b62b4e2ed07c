"""From a trio task to asyncpg: run a coroutine on the engine's asyncio loop and wait for it.

Nothing of asyncpg is ever cancelled, because a cancelled query leaves a connection that is still busy with it. A caller that
is cancelled goes on at once; its coroutine runs to its end, and `discard` is given what nobody waits for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import outcome
import trio

from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.storage.postgres.connections import connect
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import FencedError, PostgresFault, describe, explain, fault, is_outage
from aether_trio.storage.postgres.pool import Pool
from aether_trio.storage.postgres.statements import roll_back, within

T = TypeVar("T")

CONNECT_S: Final = 2.0  # less than a lease's grace, so that a node tries more than once in it
AGAIN_S: Final = 0.2


async def call(server: PostgresServer, work: Coroutine[Any, Any, T], discard: Callable[[T], object] | None = None) -> T:
    """The result of `work`, or what it raised."""
    waiting: trio.lowlevel.Task | None = trio.lowlevel.current_task()

    async def run() -> None:
        nonlocal waiting
        result: outcome.Outcome[T]
        try:
            result = outcome.Value(await work)
        except Exception as exc:
            result = outcome.Error(exc)
        except asyncio.CancelledError as exc:  # by somebody else than us: whoever waits is to know
            result = outcome.Error(StorageUnavailable("a statement was cancelled"))
            result.error.__cause__ = exc
        task, waiting = waiting, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)
        elif discard is not None and isinstance(result, outcome.Value):
            discard(result.value)

    def forget(_: Any) -> trio.lowlevel.Abort:
        nonlocal waiting
        waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    server.spawn(run())
    result: T = await trio.lowlevel.wait_task_rescheduled(forget)
    return result


async def open_connection(server: PostgresServer, role: str, *settings: str) -> Any:
    """A connection of the cluster's own: READ COMMITTED, named for pg_stat_activity. An asyncio function."""
    limits = replace(server.limits, connect_s=min(server.limits.connect_s, CONNECT_S), silence_s=8.0)
    connection = await connect(server.dsn, "writer", server.schema, limits)
    try:
        wanted = (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
            f"SET application_name = 'aether-{role}'",
            *settings,
        )
        await within(connection, limits.connect_s, partial(connection.execute, "; ".join(wanted)))
    except BaseException:
        connection.terminate()
        raise
    return connection


async def run_again(pool: Pool, limit_s: float, tries: int, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """`work` on a connection of `pool`, on another one when that is lost or another transaction was first: it may be done twice.

    What was sent over a lost connection has been done, or never will be, by the moment in which the next work of this pool begins.
    An asyncio function. Raises StorageUnavailable, of which FencedError is one kind, and RefusedError if the server does not take what it
    was given.
    """

    async def alone(connection: Any) -> T:
        if pool.lost:
            await pool.lost.end_all(connection)
        return await work(connection)

    while True:
        connection = await pool.acquire()
        try:
            result: T = await within(connection, limit_s, partial(alone, connection))
        except Exception as exc:
            kind = fault(exc, connection)
            if kind is PostgresFault.CONNECTION:
                pool.lost.add(connection)
            pool.release(connection, healthy=kind is not PostgresFault.CONNECTION and await roll_back(connection))
            tries -= 1
            if kind is PostgresFault.FENCED:
                raise FencedError(describe(exc)) from exc
            if kind is PostgresFault.PROGRAM:
                raise RefusedError(f"cluster: {describe(exc)}") from exc
            if kind not in {PostgresFault.CONNECTION, PostgresFault.CONFLICT} or tries <= 0:
                raise StorageUnavailable(f"cluster: {describe(exc)}") from exc
            if kind is PostgresFault.CONNECTION:
                pool.discard_idle()
        else:
            pool.release(connection)
            return result


async def connected(server: PostgresServer, role: str, *settings: str) -> Any:
    """`open_connection`, for a trio task."""
    return await call(server, open_connection(server, role, *settings), _terminate)


async def at_first(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """What `work` returns, which is tried again while the server is away: as long as a node is not there yet, a restart is only a pause.

    Raises StorageUnavailable when that takes longer.
    """
    give_up = trio.current_time() + patience_s
    while True:
        try:
            return await work()
        except Exception as exc:
            if not is_outage(exc):
                raise
            if trio.current_time() >= give_up:
                raise StorageUnavailable(explain(exc)) from exc
        await trio.sleep(AGAIN_S)


async def say_goodbye(server: PostgresServer, connection: Any) -> None:
    """Close a connection, politely if it can be done soon."""

    async def close() -> None:
        try:
            await connection.close(timeout=CONNECT_S)
        except Exception:  # it was going away anyhow
            connection.terminate()

    await call(server, close())


def _terminate(connection: Any) -> None:
    connection.terminate()
