"""One gateway per database, held by a lock in it. For as long as a gateway does not work with others on the same database.

The lock is an advisory lock of a session that does nothing else: the server frees it however that session ends, so there is nothing to
clean up. When the session is lost (a restart of the server) the lock is taken again at once; when somebody else was faster, this
gateway ends, as two of them would not know of each other's sessions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio

from aether_trio.cluster.aio import call, connected, say_goodbye
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres import PostgresServer
from aether_trio.storage.postgres_errors import describe, where

logger = structlog.get_logger("aether.cluster")

TAKE_S: Final = 5.0
"""Before the lock counts as somebody else's: a gateway that was killed just now may still seem to have it."""

RETRY_S: Final = 0.2
PROBE_S: Final = 5.0
"""A session may be lost without a word; meanwhile everything else notices by itself."""

_TAKE: Final = "SELECT pg_try_advisory_lock(hashtextextended('aether single node ' || $1, 0))"


@asynccontextmanager
async def single_node(server: PostgresServer) -> AsyncIterator[None]:
    """Be the only gateway on this database and schema until the block ends.

    Raises StorageSetupError, when entering and, should the lock be lost to somebody else, in the block.
    """
    held = await _take(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep, server, held, name="single-node")
        yield
        nursery.cancel_scope.cancel()


async def _take(server: PostgresServer) -> Any:
    """A connection that has the lock. Raises StorageSetupError when another one has it, or what connecting raises."""
    give_up = trio.current_time() + TAKE_S
    connection = await connected(server, "single-node")
    try:
        while not await call(server, connection.fetchval(_TAKE, server.schema)):
            if trio.current_time() >= give_up:
                raise StorageSetupError(
                    f"the database {where(server.dsn)} is in use by another gateway. Stop that one, or choose another database "
                    "with --database, or another schema in it with --set storage.schema=NAME."
                )
            await trio.sleep(RETRY_S)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _keep(server: PostgresServer, connection: Any) -> None:
    """Watch the session that has the lock, and take it again when it is lost. Runs until cancelled."""
    try:
        while True:
            await trio.sleep(PROBE_S)
            try:
                await call(server, connection.execute("SELECT 1"))
                continue
            except Exception as exc:
                logger.warning("the lock of this database is lost", reason=describe(exc))
            connection.terminate()
            connection = await _take_again(server)
            logger.info("the lock of this database is held again")
    finally:
        with trio.move_on_after(RETRY_S, shield=True):
            await say_goodbye(server, connection)


async def _take_again(server: PostgresServer) -> Any:
    while True:
        try:
            return await _take(server)
        except StorageSetupError:
            raise
        except Exception:  # the server is away, which everything else says as well
            await trio.sleep(RETRY_S)
