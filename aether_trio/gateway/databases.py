"""Opens the databases of a gateway: files in a directory, or PostgreSQL.

storage.database unset ──▶ SQLite: one file per logical database in the data directory, which is
                           locked against a second gateway; a temporary directory for
                           gateway.ephemeral
postgresql://...       ──▶ PostgreSQL: one schema. Its packages (the extra "cluster") are
                           imported only in this case
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from aether_trio.config import Settings
from aether_trio.log.topic_log import PROBE_S
from aether_trio.log.topic_sql import probe_write
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.data_dir_lock import lock_directory, temporary_directory
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite.connection import Synchronous
from aether_trio.storage.sqlite.data_files import complete_files, database_file
from aether_trio.storage.sqlite.database import open_sqlite

if TYPE_CHECKING:
    from aether_trio.storage.postgres.database import PostgresServer


logger = structlog.get_logger("aether.core")


class Statistics(Protocol):
    """The statistics that every storage engine has."""

    @property
    def failing(self) -> bool:
        """Whether the last group of writes failed."""
        ...


class OpenDatabase(Database, Protocol):
    """An open Database with its statistics."""

    def statistics(self) -> Statistics: ...

    async def wait_failed(self) -> None:
        """Wait for a group that was not written, since this returned last."""
        ...


@dataclass(frozen=True, slots=True)
class Databases:
    """The open databases of one gateway: state, log and tasks."""

    state: OpenDatabase
    log: OpenDatabase
    tasks: OpenDatabase
    server: PostgresServer | None = None
    """Where other gateways may work as well (membership.py); None for files."""


@contextmanager
def starting(failed: str) -> Iterator[Callable[[], None]]:
    """Turn StorageUnavailable into StorageSetupError until the yielded call is made."""
    started = False

    def done() -> None:
        nonlocal started
        started = True

    try:
        yield done
    except Exception as error:
        reason: BaseException = error
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        if started or not isinstance(reason, StorageUnavailable):
            raise
        raise StorageSetupError(f"{failed}: {reason}.") from error


@asynccontextmanager
async def open_databases(settings: Settings) -> AsyncIterator[Databases]:
    """Open a gateway's databases until the block ends. Raises StorageSetupError."""
    async with (
        _open_postgres(settings, settings.storage.database)
        if settings.storage.database
        else _open_sqlite(settings) as databases
    ):
        yield databases


@asynccontextmanager
async def _open_sqlite(settings: Settings) -> AsyncIterator[Databases]:
    storage = settings.storage
    ephemeral = settings.gateway.ephemeral
    synchronous: Synchronous = "FULL" if storage.synchronous == "full" else "NORMAL"
    if ephemeral:
        synchronous = "OFF"  # it does not outlive a crash anyhow
    async with AsyncExitStack() as stack:
        owned = temporary_directory() if ephemeral else lock_directory(Path(settings.gateway.data_dir))
        directory = stack.enter_context(owned)

        async def open_database(name: str) -> OpenDatabase:
            return await stack.enter_async_context(
                open_sqlite(database_file(directory, name), name=name, readers=storage.readers, synchronous=synchronous)
            )

        with complete_files(directory):
            databases = Databases(
                state=await open_database("state"), log=await open_database("log"), tasks=await open_database("tasks")
            )
        yield databases


@asynccontextmanager
async def _open_postgres(settings: Settings, dsn: str) -> AsyncIterator[Databases]:
    try:
        from aether_trio.storage.postgres.database import open_postgres
    except ImportError as exc:
        raise StorageSetupError(
            f"a PostgreSQL database needs the extra packages of aether-trio[cluster]: {exc}."
        ) from exc
    async with open_postgres(dsn, schema=settings.storage.schema) as server:
        yield Databases(
            state=await server.database("state"),
            log=await server.database("log"),
            tasks=await server.database("tasks"),
            server=server,
        )


async def probe_while_failing(name: str, database: OpenDatabase) -> None:
    """Write to a failing database until it works again; log failure and recovery.

    Runs until cancelled. Clients that readiness turned away write nothing, so only this probe finds
    out that the database works again.
    """
    while True:
        await database.wait_failed()
        reported = False
        while database.statistics().failing:
            await trio.sleep(PROBE_S)
            try:
                await database.run(probe_write)
            except StorageUnavailable as error:
                if not reported:
                    logger.error("the gateway cannot write to a database", database=name, reason=str(error))
                reported = True
        if reported:
            logger.info("the gateway can write to a database again", database=name)
