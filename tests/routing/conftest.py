"""A core in virtual time for the tests of this folder, and a log on a database without threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.helpers.core import deadlock_is_an_error, use_virtual_time
from tests.helpers.core_fixtures import core, world
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase, open_inline
from tests.routing.parts import Bench, open_bench

__all__ = ["bench", "core", "database", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    use_virtual_time(items, Path(__file__).parent)


@pytest.fixture
def database(store: Store) -> Iterator[InlineDatabase]:
    with open_inline(store, "log") as opened:
        yield opened


@pytest.fixture
async def bench(database: InlineDatabase) -> AsyncIterator[Bench]:
    async with deadlock_is_an_error(), open_bench(database) as opened:
        yield opened
