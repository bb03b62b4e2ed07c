"""Answers with the names of the reference, those of Go's structs: RuleName.

Schedules, state machines, their instances and joins have snake_case there, so they are not here.
Definitions, executions and steps are written beside their rows (services/workflows/operations.py).
What only this gateway knows, as the owner, has a name in the same form.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aether_trio.model.workflows.definition import RuleDefinition


def go_time(at_ms: int) -> str:
    """Return a moment (Unix ms) as Go prints it in JSON, in UTC."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{at_ms % 1000:03d}".rstrip("0").rstrip(".") + "Z"


def rule_answer(
    rule: RuleDefinition, *, number: int, owner: str, created_ms: int, updated_ms: int, active: bool | None = None
) -> dict[str, Any]:
    """Return a rule as operations answer it; `number` is its id.

    A destination that is a map, which the reference does not have, is answered as one.
    """
    document = rule.source
    condition = document.get("trigger_condition", "")
    return {
        "ID": number,
        "RuleName": rule.name,
        "SourceAgent": rule.source_agent,
        "SourceEvent": rule.source_event,
        "TriggerCondition": str(condition).lower() if isinstance(condition, bool) else condition,
        "TransformationStyle": rule.style,
        "DestinationTemplate": document.get("destination_template", ""),
        "Workspace": rule.workspace,
        "Priority": rule.priority,
        "Active": rule.active if active is None else active,
        "CreatedAt": go_time(created_ms),
        "UpdatedAt": go_time(updated_ms),
        "Owner": owner,
    }
