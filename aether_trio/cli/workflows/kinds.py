"""Shows and deletes what belongs to workflows: rules, schedules, machines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from aether_trio.cli.output import print_facts, print_json, print_table
from aether_trio.cli.workflows.connection import refused_workflow
from aether_trio.cli.workflows.texts import action_text, cut, json_line, when_text
from aether_trio.client.operations.workflow import Workflow, WorkflowAnswer

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OtherKind:
    """How one kind is listed and deleted; `name` and `id` are keys of its documents."""

    plural: str
    columns: Sequence[str]
    cells: Callable[[Found], Sequence[str]]
    list: Callable[[Workflow, str, str], Awaitable[WorkflowAnswer]]
    delete: Callable[[Workflow, str, str], Awaitable[WorkflowAnswer]]
    name: str = "id"
    id: str = "id"


def _rule(one: Found) -> Sequence[str]:
    condition = f" if {one['TriggerCondition']}" if one.get("TriggerCondition") else ""
    source = one.get("SourceAgent")
    event = f"{one.get('SourceEvent', '')}{'' if source in (None, '', '*') else f' of {source}'}{condition}"
    return (
        str(one.get("RuleName", "")),
        str(one.get("Workspace", "")),
        cut(event),
        str(one.get("Priority", "")),
        "yes" if one.get("Active") else "no",
        moment_text(one.get("UpdatedAt")),
    )


def _schedule(one: Found) -> Sequence[str]:
    zone = f" {one['timezone']}" if one.get("timezone") else ""
    action = one["action"] if isinstance(one.get("action"), dict) else {}
    state = "paused" if one.get("paused") else "on" if one.get("enabled", True) else "off"
    return (
        str(one.get("id", "")),
        str(one.get("workspace", "")),
        f"{one.get('schedule_type', '')} {one.get('schedule_expr', '')}{zone}",
        f"workflow {one['workflow_id']}" if one.get("workflow_id") else action_text(action),
        state,
        moment_text(one.get("next_fire_at")),
        cut(str(one.get("last_error") or "")),
    )


def _machine(one: Found) -> Sequence[str]:
    document = one.get("definition")
    inner: Found = document if isinstance(document, dict) else one
    states = inner.get("states")
    return (
        str(one.get("id", "")),
        str(one.get("workspace", "")),
        str(inner.get("initial_state", "")),
        ", ".join(states) if isinstance(states, dict) else "",
        moment_text(one.get("updated_at")),
    )


def _webhook(one: Found) -> Sequence[str]:
    return (
        str(one.get("id", "")),
        str(one.get("workspace", "")),
        str(one.get("address", "")),
        cut(str(one.get("event", ""))),
        "yes" if one.get("active") else "no",
        moment_text(one.get("updated_at")),
    )


KINDS: Final[Mapping[str, OtherKind]] = MappingProxyType(
    {
        "rule": OtherKind(
            "rules",
            ("rule", "workspace", "event", "priority", "active", "applied"),
            _rule,
            lambda workflow, workspace, after: workflow.list_rules(workspace, after=after),
            lambda workflow, found, _: workflow.delete_rule(found),
            name="RuleName",
            id="ID",
        ),
        "schedule": OtherKind(
            "schedules",
            ("schedule", "workspace", "when", "does", "state", "next", "last error"),
            _schedule,
            lambda workflow, workspace, after: workflow.list_schedules(workspace, after=after),
            lambda workflow, found, workspace: workflow.delete_schedule(found, workspace=workspace),
        ),
        "machine": OtherKind(
            "state machines",
            ("machine", "workspace", "begins in", "states", "applied"),
            _machine,
            lambda workflow, workspace, after: workflow.list_state_machines(workspace, after=after),
            lambda workflow, found, workspace: workflow.delete_state_machine(found, workspace=workspace),
        ),
        "webhook": OtherKind(
            "webhooks",
            ("webhook", "workspace", "address", "event", "active", "applied"),
            _webhook,
            lambda workflow, workspace, after: workflow.list_webhooks(workspace, after=after),
            lambda workflow, found, workspace: workflow.delete_webhook(found, workspace=workspace),
        ),
    }
)
"""The kinds but workflows, by their names in files."""


async def list_others(workflow: Workflow, kind: str, workspace: str) -> list[Found]:
    """Return the documents of one kind of a workspace, and of all."""
    return [one async for one in _others(workflow, kind, workspace)]


async def _others(workflow: Workflow, kind: str, workspace: str) -> AsyncIterator[Found]:
    """Yield the documents of one kind, page by page."""
    after = ""
    while True:
        answer = await KINDS[kind].list(workflow, workspace, after)
        for one in json.loads(answer.data) if answer.data else []:
            if isinstance(one, dict):
                yield one
        after = answer.more_after
        if not after:
            return


async def find_other(workflow: Workflow, kind: str, name: str, workspace: str) -> Found:
    """Return the one with this name, that of the workspace first. Raises CliError."""
    how = KINDS[kind]
    found = [one async for one in _others(workflow, kind, workspace) if str(one.get(how.name)) == name]
    if not found:
        raise refused_workflow(
            f"there is no {kind} {name} in workspace {workspace}; `aether workflows list --kind {kind}` shows those there are"
        )
    return found[0]


async def delete_other(workflow: Workflow, kind: str, name: str, workspace: str) -> None:
    """Delete the one with this name. Raises CliError."""
    one = await find_other(workflow, kind, name, workspace)
    place = str(one.get("workspace") or one.get("Workspace") or workspace)
    await KINDS[kind].delete(workflow, str(one.get(KINDS[kind].id)), workspace if place == "*" else place)


def print_others(found: Sequence[Found], kind: str, workspace: str) -> None:
    """Print a table of one kind."""
    how = KINDS[kind]
    print_table(how.columns, [how.cells(one) for one in found], f"no {kind} in the workspace {workspace}")


def print_other(one: Found) -> None:
    """Print the fields of one, but those that are empty."""
    print_facts([(name.replace("_", " "), _fact(value)) for name, value in one.items() if value not in (None, "", 0)])


def print_found(found: Found, as_object: bool) -> None:
    """Print what an operation has found: as a JSON object, or its fields."""
    if as_object:
        print_json(found, indent=2)
    else:
        print_other(found)


def object_of(answer: WorkflowAnswer) -> Found:
    """Return the JSON object of an answer; an empty one if it has none."""
    found = answer.json()
    return found if isinstance(found, dict) else {}


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json_line(value, 2_000)


def moment_text(text: Any) -> str:
    """Return a moment of an answer where the reader is; "" for none."""
    try:
        return when_text(datetime.fromisoformat(text)) if isinstance(text, str) and text else ""
    except ValueError:
        return str(text)
