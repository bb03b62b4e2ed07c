"""Nodes that lease work from one PostgreSQL database, in real time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aether_trio.queues import lease_scheduler
from tests.helpers.engines import PostgresEngine
from tests.queues.leased.work_nodes import WorkNodes, open_work_nodes


@pytest.fixture
async def nodes(postgres_engine: PostgresEngine) -> AsyncIterator[WorkNodes]:
    async with open_work_nodes(postgres_engine) as opened:
        yield opened


@pytest.fixture
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll for messages that no notification announced five times a second."""
    monkeypatch.setattr(lease_scheduler, "POLL_S", 0.2)
