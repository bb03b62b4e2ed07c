"""Databases to test on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aether_trio.storage.sqlite import SqliteDatabase, open_sqlite
from tests.storage.programs import CREATE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.db"


@pytest.fixture(params=["file", "memory"])
async def database(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[SqliteDatabase]:
    async with open_sqlite(path if request.param == "file" else None) as opened:
        await opened.execute(CREATE)
        yield opened


@pytest.fixture
async def file_database(path: Path) -> AsyncIterator[SqliteDatabase]:
    async with open_sqlite(path) as opened:
        await opened.execute(CREATE)
        yield opened
