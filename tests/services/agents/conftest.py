"""A core in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.core import use_virtual_time
from tests.helpers.core_fixtures import core, world

__all__ = ["core", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    use_virtual_time(
        items,
        Path(__file__).parent,
        (
            "test_registry",
            "test_started_by_messages",
            "test_orchestrators",
            "test_agents_that_end",
            "test_started_by_tasks",
            "test_random",
        ),
    )
