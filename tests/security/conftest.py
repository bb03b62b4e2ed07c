"""A core in virtual time for the tests of this folder that want one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from tests.helpers.core import agent, connect, use_virtual_time
from tests.helpers.core_fixtures import core, world

__all__ = ["core", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = (
        "test_audit_floods",
        "test_authority_attacks",
        "test_credential_renewal",
        "test_credentials_descent",
        "test_credentials_tokens",
        "test_giving",
        "test_makers",
        "test_rules",
        "test_rules_of_tasks",
        "test_tokens",
        "test_workers",
    )
    use_virtual_time(items, Path(__file__).parent, names)


@pytest.fixture
async def creator(core: Core) -> AsyncIterator[MemoryLink]:
    async with connect(core, agent("w", "c", "1")) as opened:
        yield opened
