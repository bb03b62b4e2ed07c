"""A URL with several hosts: the engine follows the primary.

With a synchronous standby no accepted write is lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import trio

from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import open_postgres
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.storage.load import Load
from tests.storage.programs import CREATE, LONG_S


@pytest.fixture
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and its synchronous hot standby."""
    with open_postgres_server(tcp=True) as primary, open_postgres_server(tcp=True, standby_of=primary) as standby:
        primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.psql("SELECT pg_reload_conf()")
        while primary.psql("SELECT sync_state FROM pg_stat_replication") != "sync":
            pass
        yield primary, standby


@pytest.mark.parametrize("standby_first", [False, True])
async def test_the_primary_dies_under_load_and_the_standby_is_promoted(
    pair: tuple[PostgresServer, PostgresServer], standby_first: bool
) -> None:
    primary, standby = pair
    hosts = [f"127.0.0.1:{one.port}" for one in (pair[::-1] if standby_first else pair)]
    dsn = f"postgresql://postgres@{','.join(hosts)}/postgres"

    async def weather() -> None:
        await trio.to_thread.run_sync(lambda: primary.stop(signum=signal.SIGKILL))
        await trio.sleep(0.2)
        await trio.to_thread.run_sync(standby.psql, "SELECT pg_promote()")

    async with open_postgres(dsn, limits=PostgresLimits(patience_s=LONG_S)) as server:
        database = await server.database("scratch")
        await database.execute(CREATE)
        load = Load(database)
        await load.run(weather)
        assert not load.refused
        assert await database.fetch("SHOW port") == [(str(standby.port),)]
