"""Gateways on a schema of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cluster.across.fabric import Fabric, open_fabric
from tests.helpers.engines import PostgresEngine


@pytest.fixture
async def fabric(postgres_engine: PostgresEngine) -> AsyncIterator[Fabric]:
    async with open_fabric(postgres_engine) as opened:
        yield opened
