"""A core in virtual time for the tests of this folder that want one."""

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
            "test_assignments",
            "test_workers",
            "test_unclaimed",
            "test_deadlines",
            "test_timer",
            "test_abandoned",
            "test_create",
            "test_dead_letters",
            "test_input_consumer",
            "test_conversations",
            "test_assignment_numbers",
            "test_unfinished",
            "test_retention",
            "test_sessions",
            "test_query",
            "test_repeated_operations",
            "test_cancelled_children",
            "test_child_events",
            "test_event_subscriptions",
        ),
    )
