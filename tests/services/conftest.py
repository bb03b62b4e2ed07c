"""A core in virtual time for the tests of this folder that want one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aether_trio.core import Core
from tests.helpers.core import World, deadlock_is_an_error, open_world, use_virtual_time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    use_virtual_time(items, Path(__file__).parent, ("test_progress", "test_sessions", "test_workspaces"))


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as opened:
        yield opened


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open() as opened:
        yield opened
