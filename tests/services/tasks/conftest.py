"""A core in virtual time for the tests of this folder that want one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.core import use_virtual_time
from tests.helpers.core_fixtures import core, world

__all__ = ["core", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for name in ("delivery", "handlers"):
        use_virtual_time(items, folder / name)
    names = (
        "test_timer", "test_workers", "test_unclaimed", "test_deadlines", "test_abandoned", "test_unfinished",
        "test_retention", "test_left_clients", "test_cancelled_children", "test_child_events",
    )  # fmt: skip
    use_virtual_time(items, folder, names)
