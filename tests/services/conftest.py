"""A core in virtual time, or the database of state, for tests that want one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aether_trio.storage.base import Database
from tests.helpers.clocks import ManualClock
from tests.helpers.core import use_virtual_time
from tests.helpers.core_fixtures import core, world
from tests.helpers.engines import Engine

__all__ = ["core", "world"]
VIRTUAL = ("test_credentials_jwks", "test_last_seen", "test_progress", "test_sessions", "test_topics")
VIRTUAL_AGENTS = (
    "agents_that_end", "crash_loops", "ended_processes", "hostile_reports", "listed_agents", "orchestrators", "random", "registry", "resource_owners", "started_by_messages",
    "started_by_tasks",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    use_virtual_time(items, Path(__file__).parent, VIRTUAL, subfolders=False)
    use_virtual_time(items, Path(__file__).parent / "agents", [f"test_{name}" for name in VIRTUAL_AGENTS])
    use_virtual_time(items, Path(__file__).parent / "audit", ["test_trail", "test_writer"])
    use_virtual_time(items, Path(__file__).parent / "workspaces")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def database(engine: Engine) -> AsyncIterator[Database]:
    async with engine.open("state") as opened:
        yield opened
