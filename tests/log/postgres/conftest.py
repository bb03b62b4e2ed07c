"""The log on a real PostgreSQL, in real time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aether_trio.storage.base import Database
from tests.helpers.engines import PostgresEngine


@pytest.fixture
async def log_database(postgres_engine: PostgresEngine) -> AsyncIterator[Database]:
    async with postgres_engine.open("log") as database:
        yield database
