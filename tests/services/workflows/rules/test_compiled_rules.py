"""Compiled rules in memory: how many, and which are compiled elsewhere."""

from __future__ import annotations

import json

import pytest

from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.services.workflows.documents.not_compiled import LARGE_BYTES, NotCompiledError
from aether_trio.services.workflows.rules.compiled_rules import CompiledRules
from aether_trio.services.workflows.stored.rule_rows import StoredRule


def stored(number: int, **more: object) -> StoredRule:
    document = {
        "rule_name": f"r{number}",
        "source_event": "made",
        "workspace": "w",
        "destination_template": {"agent": "hand", "tool_name": "use"},
        **more,
    }
    return StoredRule(
        id=number,
        workspace="w",
        name=f"r{number}",
        document=json.dumps(document).encode(),
        digest="",
        active=True,
        owner="ag::w::a::b",
        created_ms=1,
        updated_ms=1,
        changed=number,
        source_event="made",
        source_agent="",
        priority=0,
        equalities="[]",
    )


def test_the_latest_used_rules_are_kept() -> None:
    rules = CompiledRules(2)
    first = rules.compiled(stored(1))
    rules.compiled(stored(2))
    assert rules.compiled(stored(1)) is first
    rules.compiled(stored(3))
    assert len(rules) == 2
    assert rules.find(1, 1) is first
    assert rules.find(2, 2) is None
    assert rules.find(1, 2) is None  # it was changed


def test_a_rule_that_is_not_understood_is_kept_without_frames() -> None:
    """Each time it is asked for, the error has passed the frames of that time alone."""
    rules = CompiledRules(2)
    depths = []
    with pytest.raises(DefinitionErrors, match="trigger_condition"):
        rules.compiled(stored(1, trigger_condition="]"))
    for _ in range(3):
        with pytest.raises(DefinitionErrors, match="trigger_condition") as caught:
            rules.find(1, 1)
        depths.append(len(caught.traceback))
    assert depths == [2, 2, 2]


async def test_a_large_rule_is_compiled_elsewhere() -> None:
    rules = CompiledRules(2)
    large = stored(1, description="x" * LARGE_BYTES)
    with pytest.raises(NotCompiledError) as caught:
        rules.compiled(large)
    assert len(rules) == 0
    await caught.value.prepare()
    assert len(rules) == 1
    assert rules.compiled(large) is rules.find(1, 1)
