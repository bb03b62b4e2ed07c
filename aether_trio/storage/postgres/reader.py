"""Runs read-only programs on PostgreSQL, each on one connection and one snapshot.

Most reads are one statement, which needs no BEGIN and COMMIT: they would triple the round trips. A
generator does not say how many statements it will yield, so the first one is run without a
transaction. If another one follows, the program is run again from its start in a transaction
(programs are pure). Its code is remembered, so this happens once for each program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, Final

import asyncpg

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.errors import PostgresFault, describe, fault
from aether_trio.storage.postgres.pool import Pool, Spawn
from aether_trio.storage.postgres.statements import PostgresJob, drive, roll_back, run_statement, within

MAX_TRIES: Final = 3


class PostgresReader:
    """Runs as many reads at a time as there are connections (asyncio)."""

    def __init__(
        self,
        name: str,
        pool: Pool,
        spawn: Spawn,
        deliver: Callable[[Sequence[PostgresJob]], None],
        limits: PostgresLimits,
    ) -> None:
        self._name = name
        self._pool = pool
        self._spawn = spawn
        self._deliver = deliver
        self._limits = limits
        self._several: set[CodeType] = set()
        self._running = 0

    @property
    def idle(self) -> bool:
        """Whether no read runs."""
        return not self._running

    def put(self, job: PostgresJob) -> None:
        """Start a read in the next turn of the asyncio loop."""
        self._running += 1
        self._spawn(self._answer(job))

    async def _answer(self, job: PostgresJob) -> None:
        try:
            await self._run(job)
        except Exception as exc:
            # a defect of the engine: answer, so that the caller does not wait for ever
            job.fail(StorageUnavailable(f"{self._name}: {describe(exc)}"), exc)
        finally:
            self._running -= 1
        self._deliver([job])

    async def _run(self, job: PostgresJob) -> None:
        tries = 0
        while True:
            try:
                connection = await self._pool.acquire()
            except StorageUnavailable as exc:
                return job.fail(StorageUnavailable(f"{self._name}: {exc}"), exc)
            try:
                job.value = await within(connection, self._limits.transaction_s, lambda: self._read(connection, job))  # noqa: B023  # awaited here
            except Exception as exc:
                kind = fault(exc, connection)
                if isinstance(exc, asyncpg.ReadOnlySQLTransactionError):
                    kind = PostgresFault.PROGRAM  # it tried to write
                healthy = kind is not PostgresFault.CONNECTION and await roll_back(connection)
                self._pool.release(connection, healthy=healthy)
                tries += 1
                if kind is PostgresFault.PROGRAM:
                    job.error = exc
                elif kind in {PostgresFault.CONNECTION, PostgresFault.CONFLICT} and tries < MAX_TRIES:
                    if kind is PostgresFault.CONNECTION:
                        self._pool.discard_idle()
                    continue
                else:
                    job.fail(StorageUnavailable(f"{self._name}: {describe(exc)}"), exc)
            else:
                self._pool.release(connection)
            return None

    async def _read(self, connection: Any, job: PostgresJob) -> Any:
        program = job.factory()
        code: CodeType = program.gi_code  # type: ignore[attr-defined]  # a Program is a generator object
        try:
            if code not in self._several:
                result = await run_statement(connection, next(program), job)
                program.send(result)
                self._several.add(code)
        except StopIteration as stop:
            return stop.value
        finally:
            program.close()
        await connection.execute("BEGIN")
        value = await drive(connection, job)
        await connection.execute("COMMIT")
        return value
