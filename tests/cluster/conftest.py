"""A cluster on a separate schema."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cluster.nodes import HISTORY, Nodes, open_nodes
from tests.helpers.engines import PostgresEngine


@pytest.fixture
def place(postgres_engine: PostgresEngine) -> PostgresEngine:
    """An empty schema, and a connection that sees what is in it."""
    postgres_engine.outside("; ".join(HISTORY))
    return postgres_engine


@pytest.fixture
async def nodes(place: PostgresEngine) -> AsyncIterator[Nodes]:
    async with open_nodes(place.server.dsn(), place.schema) as opened:
        yield opened
