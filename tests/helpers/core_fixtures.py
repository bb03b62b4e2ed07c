"""Fixtures for conftest.py of folders that run a whole core in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from aether_trio.gateway.core import Core
from tests.helpers.core import World, deadlock_is_an_error, open_world
from tests.helpers.direct import Store


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with open_world(store) as opened:
        yield opened


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open() as opened:
        yield opened
