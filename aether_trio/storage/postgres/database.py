"""The PostgreSQL engine: a Database over asyncpg, on an asyncio loop in trio.

    trio: run/read ──▶ PostgresJob ──▶ PostgresWriter (writer.py) ──▶ Pool ──▶ asyncpg ──▶ primary
          rescheduled ◀──────────────  PostgresReader (reader.py) ──▶ Pool ──▶ asyncpg ──▶ primary

Both sides live in one thread (trio_loop.py). All logical databases ("state", "log", "tasks")
lie in one schema and share one pool, as connections are what a PostgreSQL server runs out
of first, and `schema_version` has a row for each.

Cancellation: a caller that is cancelled while it waits for room has done nothing. Once its program
is queued, the program runs, and only the result is lost. No query is cancelled.

Outages: a lost connection, a stalled one (stalls.py), a restart or a failover is a pause of up to
`patience_s`, because programs are pure and run again on another connection. A longer outage is
StorageUnavailable, or CommitUnknown when a COMMIT was sent, its answer was lost, and the server
could not be asked in that time whether it has taken effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import Abandoned, Database, ProgramFactory, Statement, StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.connections import LOCKING, SCHEMA, Kind, PostgresLimits, connect
from aether_trio.storage.postgres.errors import is_outage, setup_error
from aether_trio.storage.postgres.migrate import migrate
from aether_trio.storage.postgres.pool import Pool
from aether_trio.storage.postgres.reader import PostgresReader
from aether_trio.storage.postgres.stalls import StallWatch
from aether_trio.storage.postgres.statements import PostgresJob, statement_job
from aether_trio.storage.postgres.trio_loop import TrioLoop, open_loop
from aether_trio.storage.postgres.writer import PostgresWriter
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES

T = TypeVar("T")

# waiting programs of one logical database; further callers wait for room
QUEUE_PROGRAMS: Final = 1024
CLOSE_S: Final = 10.0  # for accepted programs, at the end; then their connections are cut
LOOK_CONNECT_S: Final = 2.0  # for the connection that asks about stalled ones
RETRY_S: Final = 0.2  # between two attempts to reach the server at the start


@dataclass(frozen=True, slots=True)
class PostgresStatistics:
    """The counters of one logical database since it was opened.

    `failing` is true from a group that the server did not take until the next one that it took.
    `rows` does not count the writes of a Fetch. `connections` are those of the whole process;
    `stalls` counts those of them that were cut because they had stalled.
    """

    groups: int
    programs: int
    rows: int
    largest_group: int
    queued: int
    failed_groups: int
    failing: bool
    last_error: str
    conflicts: int
    losses: int
    connections: int
    stalls: int


class PostgresDatabase(Database):
    """One logical database of a PostgresServer, made by its `database`."""

    shared = True

    def __init__(self, name: str, server: PostgresServer, *, locking: bool = False) -> None:
        self.name = name
        self._server = server
        self._room = trio.Semaphore(QUEUE_PROGRAMS)
        self._failed = AutoResetEvent()
        pool = server.appenders if name in LOCKING else server.writers
        self.writer = PostgresWriter(
            name, pool, server.spawn, server.loop, self._deliver, server.limits, locking=locking
        )
        self.reader = PostgresReader(name, server.readers, server.spawn, self._deliver, server.limits)

    async def run(self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None) -> T:
        job = PostgresJob(program, "", abandoned)
        job.pending = CURRENT_SESSION_WRITES.get()
        result: T = await self._submit(job, self.writer.put)
        return result

    async def run_keyed(
        self, program: ProgramFactory[T], key: str, abandoned: Abandoned[T] | None = None, *, also: str = ""
    ) -> T:
        job = PostgresJob(program, key, abandoned, also)
        job.pending = CURRENT_SESSION_WRITES.get()
        result: T = await self._submit(job, self.writer.put)
        return result

    async def write(self, statement: Statement) -> Any:
        job = statement_job(statement)
        job.pending = CURRENT_SESSION_WRITES.get()
        return await self._submit(job, self.writer.put)

    async def read(self, program: ProgramFactory[T]) -> T:
        result: T = await self._submit(PostgresJob(program), self.reader.put)
        return result

    def separate_queue(self, *, locking: bool = False) -> PostgresDatabase:
        return self._server.queue(self.name, locking=locking)

    def statistics(self) -> PostgresStatistics:
        writer = self.writer
        return PostgresStatistics(
            groups=writer.groups,
            programs=writer.programs,
            rows=writer.rows,
            largest_group=writer.largest_group,
            queued=QUEUE_PROGRAMS - self._room.value,
            failed_groups=writer.failed_groups,
            failing=writer.failing,
            last_error=writer.last_error,
            conflicts=writer.conflicts,
            losses=writer.losses,
            connections=self._server.connections,
            stalls=self._server.watch.cuts,
        )

    async def wait_failed(self) -> None:
        """Wait for a group that the server did not take. For one task at a time."""
        await self._failed.wait()

    @property
    def idle(self) -> bool:
        """Whether no accepted program waits or runs."""
        return self.writer.idle and self.reader.idle

    async def _submit(self, job: PostgresJob, put: Callable[[PostgresJob], None]) -> Any:
        job.fence = self._server.fence()
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        if self._server.closed:
            self._room.release()
            raise trio.ClosedResourceError(f"the {self.name} database is closed")
        job.begin()
        if job.recognized:  # it shares its transaction with no other job
            self._server.loop.start_now(partial(put, job))
        else:
            put(job)
        return await job.outcome()  # which is there at once when the server is away

    def _deliver(self, jobs: Sequence[PostgresJob]) -> None:
        if self.writer.failing:
            self._failed.set()
        for job in jobs:
            self._room.release()
            if not job.undecided:
                job.over()
            job.answer()


class PostgresServer:
    """This process's connections to a PostgreSQL server; made by `open_postgres`."""

    def __init__(self, dsn: str, schema: str, limits: PostgresLimits, loop: TrioLoop) -> None:
        self.dsn = dsn
        self.schema = schema
        self.limits = limits
        self.closed = False
        self._fence: Callable[[], str] = lambda: ""
        self.loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_done = trio.Event()
        self._databases: list[PostgresDatabase] = []
        self.watch = StallWatch(self._connect_to_look, self.spawn, loop, slow_s=limits.slow_s, look_s=limits.look_s)
        """Watches all pools of this process."""
        self.writers = self._pool("writer", limits.writers)
        self.appenders = self._pool("appender", limits.appenders)
        self.readers = self._pool("reader", limits.readers)

    def fence(self) -> str:
        """Return the query that each write transaction begins with now; "" for none."""
        return self._fence()

    def fence_writes(self, fence: Callable[[], str]) -> None:
        """Begin each write transaction with the query `fence()` from now on.

        The query raises FENCED when this process may not write.
        """
        self._fence = fence

    async def _connect_to_look(self) -> Any:
        limits = replace(self.limits, connect_s=min(self.limits.connect_s, LOOK_CONNECT_S))
        return await connect(self.dsn, "look", self.schema, limits)

    def _pool(self, kind: Kind, most: int) -> Pool:
        limits = self.limits
        return Pool(
            partial(connect, self.dsn, kind, self.schema, limits),
            self.spawn,
            self.loop,
            most=most,
            keep=limits.keep,
            idle_s=limits.idle_s,
            patience_s=limits.patience_s,
            watch=self.watch,
        )

    async def database(self, name: str) -> PostgresDatabase:
        """Bring a logical database up to date; serve it until the server is closed.

        Nodes that start together take turns. The names of migrations.py have a schema, other names
        none. Waits up to `patience_s` for a server that is not there yet. Raises StorageSetupError,
        also when the server has no connection left.
        """
        give_up = trio.current_time() + self.limits.patience_s
        while True:
            try:
                await self.loop.run(migrate(self.dsn, self.schema, name, self.limits))
                break
            except StorageSetupError:
                raise
            except Exception as exc:
                if not is_outage(exc) or trio.current_time() >= give_up:
                    raise setup_error(self.dsn, exc) from exc
            await trio.sleep(RETRY_S)
        database = self.queue(name)
        try:
            for pool in (database.writer.pool, self.readers):
                await self.loop.run(self._have_one(pool))
        except StorageUnavailable as exc:
            raise StorageSetupError(f"the {name} database cannot be opened: {exc}.") from exc
        return database

    @staticmethod
    async def _have_one(pool: Pool) -> None:
        """Open the first connection of a writer or reader pool, unless the pool has one."""
        if not pool.size:
            pool.release(await pool.acquire())

    def queue(self, name: str, *, locking: bool = False) -> PostgresDatabase:
        """Make another write queue of a logical database, as `separate_queue` says."""
        database = PostgresDatabase(name, self, locking=locking)
        self._databases.append(database)
        return database

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine on the asyncio side; the end of the server waits for it."""
        task: asyncio.Task[None] = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Each job is answered in any case; this defect ends the block that opened the server.
            self.loop.call_exception_handler({"message": "a task of the engine failed", "exception": error})
        if self.closed:
            self._look_done()

    def _look_done(self) -> None:
        if all(database.idle for database in self._databases):
            self._all_done.set()

    async def close(self) -> None:
        """Refuse new programs, finish the accepted ones, and close the connections."""
        self.closed = True
        with trio.CancelScope(shield=True):
            self._look_done()
            with trio.move_on_after(CLOSE_S):
                await self._all_done.wait()
            await self.loop.run(self._close())

    @property
    def connections(self) -> int:
        """How many connections this process has, those being opened included."""
        return self.writers.size + self.appenders.size + self.readers.size

    async def _close(self) -> None:
        self.watch.close()
        for pool in (self.writers, self.appenders, self.readers):
            await pool.close()
        while self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def open_postgres(
    dsn: str, *, schema: str = "aether", limits: PostgresLimits | None = None
) -> AsyncIterator[PostgresServer]:
    """Use the PostgreSQL server of a URL until the block ends.

    The first `database` connects. The URL may name several hosts, whose primary is used, and TLS
    (`sslmode`, `sslrootcert`, ...), as for libpq. Leaving the block commits accepted programs, for
    at most CLOSE_S.
    """
    if not SCHEMA.fullmatch(schema):
        raise StorageSetupError(f"{schema!r} cannot be the name of a schema here: use small letters, digits and _.")
    raised: BaseException | None = None
    try:
        async with open_loop() as loop:
            server = PostgresServer(dsn, schema, limits or PostgresLimits(), loop)
            try:
                yield server
            except BaseException as exc:
                raised = exc
                raise
            finally:
                await server.close()
    except BaseExceptionGroup as group:
        if raised is None or not _is_all(group, raised):
            raise
        # The loop is a nursery, an implementation detail.
        raise raised from raised.__cause__


def _is_all(group: BaseException, error: BaseException) -> bool:
    """Whether an exception group, or a group in a group, holds just this one object."""
    while group is not error:
        if not isinstance(group, BaseExceptionGroup) or len(group.exceptions) > 1:
            return False
        (group,) = group.exceptions
    return True
