"""A closed core on either engine, as `aether serve` opens one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aether_trio.gateway.core import Core
from tests.helpers.core import World
from tests.helpers.core_fixtures import world

__all__ = ["world"]


@pytest.fixture
async def closed(world: World) -> AsyncIterator[Core]:
    async with world.open(access={"default": "closed"}) as core:
        yield core
