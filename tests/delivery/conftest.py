"""A core in virtual time for this folder, and a log without threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.core import use_virtual_time
from tests.helpers.core_fixtures import core, world
from tests.helpers.log_fixtures import bench, database

__all__ = ["bench", "core", "database", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    use_virtual_time(items, Path(__file__).parent, subfolders=False)
