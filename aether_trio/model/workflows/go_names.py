"""Answers with the names of the reference, those of Go's structs: RuleName.

Schedules, state machines, their instances and joins have snake_case there, so they are not here.
Definitions, executions and steps are written beside their rows
(services/workflows/operations/workflow_operations.py). What only this gateway knows, as the owner,
has a name in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aether_trio.model.workflows.definition import Json


def go_time(at_ms: int) -> str:
    """Return a moment (Unix ms) as Go prints it in JSON, in UTC."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{at_ms % 1000:03d}".rstrip("0").rstrip(".") + "Z"


def rule_answer(
    document: Mapping[str, Json], *, number: int, owner: str, created_ms: int, updated_ms: int, active: bool
) -> dict[str, Any]:
    """Return a rule as operations answer it.

    `document` is its canonical one, `number` its id.
    A destination that is a map, which the reference does not have, is answered as one.
    """
    condition = document.get("trigger_condition", "")
    return {
        "ID": number,
        "RuleName": document["rule_name"],
        "SourceAgent": document.get("source_agent") or "*",
        "SourceEvent": document["source_event"],
        "TriggerCondition": str(condition).lower() if isinstance(condition, bool) else condition,
        "TransformationStyle": document.get("transformation_style") or "template-yaml",
        "DestinationTemplate": document["destination_template"],
        "Workspace": document["workspace"],
        "Priority": document.get("priority", 0),
        "Active": active,
        "CreatedAt": go_time(created_ms),
        "UpdatedAt": go_time(updated_ms),
        "Owner": owner,
    }
