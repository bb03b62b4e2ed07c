"""Callers that write and read during failures, compared with what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.storage.base import CommitUnknown, Fetch, Program, StorageUnavailable
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresDatabase, open_postgres
from tests.helpers.postgres import PostgresServer
from tests.storage.programs import CREATE, LONG_S, ids, pair


@dataclass
class Load:
    """Callers that write pairs of rows, and what they were told."""

    database: PostgresDatabase
    written: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    reads: int = 0
    _number: int = 0
    _stop: bool = False

    async def write(self) -> None:
        while not self._stop:
            self._number += 1
            number = self._number
            try:
                await self.database.run(pair(number))
            except CommitUnknown:
                self.unknown.add(number)
            except StorageUnavailable:
                self.refused.add(number)
                await trio.sleep(0.01)
            else:
                self.written.add(number)

    async def read(self) -> None:
        def program() -> Program[None]:
            before = yield Fetch("SELECT count(*) FROM items")
            after = yield Fetch("SELECT count(*) FROM items")
            assert before == after

        while not self._stop:
            try:
                await self.database.read(program)
            except StorageUnavailable:
                await trio.sleep(0.01)
            else:
                self.reads += 1

    async def more(self, count: int = 30) -> None:
        """Until so many more programs have been written, and a read or two answered."""
        written, reads = len(self.written), self.reads
        with trio.fail_after(LONG_S):
            while len(self.written) < written + count or self.reads < reads + 2:
                await trio.sleep(0.002)

    async def run(self, weather: Callable[[], Awaitable[None]]) -> None:
        """Write and read through this; then compare what was said with what is there."""
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(self.write)
            for _ in range(3):
                nursery.start_soon(self.read)
            await self.more()
            await weather()
            await self.more()
            self._stop = True
        rows = {*await ids(self.database)}
        assert rows == {-one for one in rows}
        there = {one for one in rows if one > 0}
        assert self.written <= there
        assert there <= self.written | self.unknown
        assert not there & self.refused


async def no_connection_is_half_used(database: PostgresDatabase, server: PostgresServer) -> None:
    """Check that every kept connection is idle, outside a transaction, and counted."""
    states = server.psql(
        "SELECT state, count(*) FROM pg_stat_activity WHERE application_name LIKE 'aether-%' GROUP BY 1"
    )
    assert states.startswith("idle|")
    assert "\n" not in states
    assert 0 < int(states.removeprefix("idle|")) <= database.statistics().connections


PATIENT = PostgresLimits(patience_s=LONG_S)


@asynccontextmanager
async def proxied(
    server: PostgresServer, limits: PostgresLimits = PATIENT
) -> AsyncIterator[tuple[PostgresDatabase, FaultProxy]]:
    server.psql("DROP SCHEMA IF EXISTS aether CASCADE")
    async with open_fault_proxy(f"127.0.0.1:{server.port}") as proxy:
        dsn = server.dsn(port=int(proxy.address.rpartition(":")[2]))
        with trio.fail_after(LONG_S):
            async with open_postgres(dsn, limits=limits) as opened:
                database = await opened.database("scratch")
                await database.execute(CREATE)
                try:
                    yield database, proxy
                finally:
                    proxy.cut_all()
