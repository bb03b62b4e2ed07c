"""Fixtures of a topic log on a database without threads (log_bench.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.helpers.core import deadlock_is_an_error
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase, open_inline
from tests.helpers.log_bench import Bench, open_bench

__all__ = ["bench", "database"]


@pytest.fixture
def database(store: Store) -> Iterator[InlineDatabase]:
    with open_inline(store, "log") as opened:
        yield opened


@pytest.fixture
async def bench(database: InlineDatabase) -> AsyncIterator[Bench]:
    async with deadlock_is_an_error(), open_bench(database) as opened:
        yield opened
