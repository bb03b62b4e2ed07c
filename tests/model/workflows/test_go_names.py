"""Answers have the names of the reference, and are documents again."""

from __future__ import annotations

import json

import pytest

from aether_trio.model.workflows.definition import RuleDefinition
from aether_trio.model.workflows.go_names import go_time, rule_answer
from aether_trio.services.workflows.documents.reader import read_json


def test_moments() -> None:
    assert [go_time(ms) for ms in (0, 1_500, 1_700_000_000_000, 1_700_000_000_010)] == [
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:00:01.5Z",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.01Z",
    ]


@pytest.mark.parametrize(
    "destination", ["agent: x\narguments: {n: '{{ .input.n }}'}\n", {"agent": "x", "payload": {"$expr": "input"}}]
)
@pytest.mark.parametrize("condition", ["input.n == 1", "", True])
def test_a_rule_is_a_document_again(destination: object, condition: object) -> None:
    rule, _ = read_json(
        "rule",
        {
            "rule_name": "r",
            "source_event": "e",
            "source_agent": "a",
            "workspace": "w",
            "priority": 3,
            "trigger_condition": condition,
            "destination_template": destination,
        },
    )
    assert isinstance(rule, RuleDefinition)
    answer = rule_answer(rule.source, number=7, owner="us::me::1", created_ms=1_000, updated_ms=2_000, active=True)
    assert answer == {
        "ID": 7,
        "RuleName": "r",
        "SourceAgent": "a",
        "SourceEvent": "e",
        "TriggerCondition": "true" if condition is True else condition,
        "TransformationStyle": "template-yaml",
        "DestinationTemplate": destination,
        "Workspace": "w",
        "Priority": 3,
        "Active": True,
        "CreatedAt": "1970-01-01T00:00:01Z",
        "UpdatedAt": "1970-01-01T00:00:02Z",
        "Owner": "us::me::1",
    }
    again, ignored = read_json("rule", json.dumps(answer))
    assert ignored == ["/Owner"]
    assert isinstance(again, RuleDefinition)
    assert again.destination.paths() == rule.destination.paths()
    assert (again.name, again.priority, again.workspace) == ("r", 3, "w")
