"""Databases to test on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aether_trio.storage.base import Database
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from tests.helpers.engines import Engine, SmallSqliteEngine, SqliteEngine
from tests.storage.programs import CREATE


@pytest.fixture
def new_schemas() -> bool:
    """Tests of migrations and of tables of their own need a schema that has nothing."""
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.db"


@pytest.fixture(params=["file", "memory"])
async def sqlite_database(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[SqliteDatabase]:
    async with open_sqlite(path if request.param == "file" else None) as opened:
        await opened.execute(CREATE)
        yield opened


@pytest.fixture
async def file_database(path: Path) -> AsyncIterator[SqliteDatabase]:
    async with open_sqlite(path) as opened:
        await opened.execute(CREATE)
        yield opened


@pytest.fixture
async def database(engine: Engine) -> AsyncIterator[Database]:
    async with engine.open() as opened:
        await opened.execute(CREATE)
        yield opened


@pytest.fixture(params=["file", "memory", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    yield from make_engine(request, tmp_path)


def make_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_engine")
    else:
        kind = SmallSqliteEngine if "small" in request.param else SqliteEngine
        yield kind(tmp_path if "file" in request.param else None)
