"""A full disk or a database that is away costs no audit row that is not counted.

The writer runs on real engines: a SQLite file without room, a PostgreSQL server that stops.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from aether_trio.model.clock import SystemClock
from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.heads import HeadSigner
from aether_trio.services.audit.sources import StoredLog, open_postgres_log, open_sqlite_log
from aether_trio.services.audit.trees import begin_tree
from aether_trio.services.audit.verify import Verification
from aether_trio.services.audit.writer import AuditPolicy, AuditWriter
from aether_trio.storage.base import Database
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import open_postgres
from aether_trio.storage.sqlite.database import open_sqlite
from tests.helpers.postgres import PostgresServer
from tests.services.audit.conftest import event
from tests.storage.postgres.test_failures import fragile, fragile_server
from tests.storage.programs import pragma

__all__ = ["fragile", "fragile_server"]

LIMIT_S = 300.0
QUEUE_BYTES = 200_000
"""About 150 rows."""


@asynccontextmanager
async def writing(database: Database) -> AsyncIterator[tuple[AuditWriter, HeadSigner]]:
    clock = SystemClock(trio.current_time)
    key = SigningKey.generate()
    now_ms = clock.now_ms()
    queue = database.separate_queue(locking=True)
    tree = await queue.run(lambda: begin_tree("n", "audit/n", key.public_raw, now_ms))
    writer = AuditWriter(database, clock, tree, AuditPolicy(), first_batch=1, queue_bytes=QUEUE_BYTES)
    await writer.prepare()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield writer, HeadSigner(database, clock, tree, key)
            nursery.cancel_scope.cancel()


async def through_an_outage(
    database: Database, begin: Callable[[], Awaitable[Any]], end: Callable[[], Awaitable[Any]]
) -> int:
    """Put rows before, during and after; return how many of them were put."""
    put = 0
    async with writing(database) as (writer, signer):

        def more(count: int) -> None:
            nonlocal put
            for _ in range(count):
                writer.put(event(put, metadata={"n": "x" * 200}))
                put += 1

        more(10)
        await writer.flush()
        assert await signer.sign()
        await begin()
        more(10)
        while not writer.failing:
            more(1)
            await trio.sleep(0.1)
        more(500)
        assert writer.lost > 0
        assert writer.waiting < 500
        await end()
        while writer.failing or writer.waiting:
            await trio.sleep(0.1)
        more(10)
        await writer.flush()
        assert await signer.sign()
        assert signer.problem is None
    return put


def check(log: StoredLog, put: int) -> None:
    """Every row is there once and in order, or counted; nothing else is found."""
    assert list(Verification(log).run()) == []
    rows = [row for chunk in log.rows(0, 2**62) for row in chunk]
    names = [row[9] for row in rows if row[5] == "kv_put"]
    numbers = [int(name.removeprefix("key-")) for name in names]
    assert numbers == sorted(set(numbers))
    lost = sum(json.loads(row[23])["count"] for row in rows if row[5] == "audit_gap")
    assert lost > 0
    assert len(numbers) + lost == put


async def test_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    async with open_sqlite(file, name="tasks") as database:

        async def fill() -> None:
            [(pages,)] = await database.run(pragma("page_count"))
            await database.run(pragma(f"max_page_count={pages}"))

        async def make_room() -> None:
            await database.run(pragma("max_page_count=1000000"))

        put = await through_an_outage(database, fill, make_room)
    with open_sqlite_log(file) as log:
        check(log, put)


async def test_a_server_that_stops(fragile: PostgresServer) -> None:
    async with open_postgres(fragile.dsn(), limits=PostgresLimits(patience_s=0.5)) as server:
        database = await server.database("tasks")
        put = await through_an_outage(
            database, lambda: trio.to_thread.run_sync(fragile.stop), lambda: trio.to_thread.run_sync(fragile.start)
        )
    with open_postgres_log(fragile.dsn(), "aether") as log:
        check(log, put)
