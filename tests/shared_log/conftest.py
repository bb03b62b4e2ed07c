"""The log on a real PostgreSQL, in real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aether_trio.storage.base import Database
from tests.helpers.engines import PostgresEngine, open_postgres_engine
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession


@pytest.fixture
def postgres_engine(postgres_server: PostgresServer, postgres_session: PostgresSession) -> Iterator[PostgresEngine]:
    with open_postgres_engine(postgres_server, postgres_session) as opened:
        yield opened


@pytest.fixture
async def log_database(postgres_engine: PostgresEngine) -> AsyncIterator[Database]:
    async with postgres_engine.open("log") as database:
        yield database
