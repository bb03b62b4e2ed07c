"""Calls asyncpg from trio tasks; opens a cluster node's PostgreSQL connections.

A coroutine runs on the asyncio loop of the PostgreSQL server's engine while the trio task waits. A
call of asyncpg is never cancelled, because a cancelled query leaves a busy connection. When the
trio task is cancelled, it continues at once; the coroutine runs to its end.
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

CONNECT_S: Final = 2.0  # less than a lease's grace, in which a node tries repeatedly
AGAIN_S: Final = 0.2  # between two attempts of `retry_at_start`


async def run_in_asyncio(
    server: PostgresServer, work: Coroutine[Any, Any, T], discard: Callable[[T], object] | None = None
) -> T:
    """Run an asyncio coroutine from trio; `discard` gets a cancelled caller's result."""
    waiting: trio.lowlevel.Task | None = trio.lowlevel.current_task()

    async def run() -> None:
        nonlocal waiting
        result: outcome.Outcome[T]
        try:
            result = outcome.Value(await work)
        except Exception as exc:
            result = outcome.Error(exc)
        except asyncio.CancelledError as exc:  # not by this task: its caller has to know
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
    """Open a READ COMMITTED connection of a cluster node. An asyncio function."""
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


async def run_repeatable(pool: Pool, limit_s: float, tries: int, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run a repeatable function of a connection, again on another if it is lost.

    An asyncio function. It runs again, at most `tries` times, also after a conflict with another
    transaction. Statements sent over a lost connection are over before the pool's next work begins.
    Raises StorageUnavailable, also as FencedError, and RefusedError when the server refuses the
    values.
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
                raise RefusedError(f"PostgreSQL refuses a statement of the cluster: {describe(exc)}") from exc
            if kind not in {PostgresFault.CONNECTION, PostgresFault.CONFLICT} or tries <= 0:
                raise StorageUnavailable(f"a statement of the cluster failed: {describe(exc)}") from exc
            if kind is PostgresFault.CONNECTION:
                pool.discard_idle()
        else:
            pool.release(connection)
            return result


async def open_connection_from_trio(server: PostgresServer, role: str, *settings: str) -> Any:
    """Open a READ COMMITTED connection of a cluster node, from a trio task."""
    return await run_in_asyncio(server, open_connection(server, role, *settings), _terminate)


async def retry_at_start(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Call `work` until it succeeds; StorageUnavailable after `patience_s` of outage."""
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


async def close_connection(server: PostgresServer, connection: Any) -> None:
    """Close a PostgreSQL connection; terminate it when the server does not answer."""

    async def close() -> None:
        try:
            await connection.close(timeout=CONNECT_S)
        except Exception:  # the connection is given up in either case
            connection.terminate()

    await run_in_asyncio(server, close())


def _terminate(connection: Any) -> None:
    connection.terminate()
