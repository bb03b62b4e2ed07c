"""A cluster on a separate schema."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.cluster.nodes import HISTORY, Nodes, open_nodes
from tests.helpers.engines import PostgresEngine, open_postgres_engine
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession


@pytest.fixture
def place(postgres_server: PostgresServer, postgres_session: PostgresSession) -> Iterator[PostgresEngine]:
    """An empty schema, and a connection that sees what is in it."""
    with open_postgres_engine(postgres_server, postgres_session) as opened:
        opened.outside("; ".join(HISTORY))
        yield opened


@pytest.fixture
async def nodes(place: PostgresEngine) -> AsyncIterator[Nodes]:
    async with open_nodes(place.server.dsn(), place.schema) as opened:
        yield opened
