"""A cluster on a separate schema."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.cluster.nodes import HISTORY, Nodes, open_nodes
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer, open_postgres_server


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[PostgresServer]:
    """One on a TCP port, which a test may break."""
    with open_postgres_server(tcp=True) as server:
        yield server


@pytest.fixture
def place(postgres_engine: PostgresEngine) -> PostgresEngine:
    """An empty schema, and a connection that sees what is in it."""
    postgres_engine.outside("; ".join(HISTORY))
    return postgres_engine


@pytest.fixture
async def nodes(place: PostgresEngine) -> AsyncIterator[Nodes]:
    async with open_nodes(place.server.dsn(), place.schema) as opened:
        yield opened
