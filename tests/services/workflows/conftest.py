"""A core in virtual time for the tests of this folder that want one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.core import use_virtual_time
from tests.helpers.core_fixtures import core, world

__all__ = ["core", "world"]


PAST = ("test_diagrams_served", "test_foretold", "test_timeline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = (
        "test_budgets", "test_embedded", "test_advancing", "test_families", "test_admission", "test_flow_at_random", "test_forgotten", "test_forks", "test_executions_at_random", "test_intake", "test_joins_at_random", "test_joins_served", "test_machines_served", "test_owners",
        "test_reactions", "test_redriving", "test_relay", "test_rule_operations", "test_schedules_served", "test_task_events", "test_kv_events", "test_unanswered", "test_waits",
        "test_execution_cost", "test_runs_hostile", "test_old_ids",
    )  # fmt: skip
    use_virtual_time(items, Path(__file__).parent, names)
    use_virtual_time(items, Path(__file__).parent, PAST)
