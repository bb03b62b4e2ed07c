"""Shows workflows and their executions to people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aether_trio.cli.output import is_terminal, print_facts, print_table, say
from aether_trio.client.operations.workflow_values import (
    AppliedDefinition,
    Execution,
    ExecutionStep,
    WorkflowDefinition,
)

_SHORT: Final = 100
_ITEMS: Final = 20
"""Items that are shown without being asked for."""
KINDS: Final = ("action", "workflow", "wait", "ask", "fail", "continue_as")


def json_line(value: Any, most: int = _SHORT) -> str:
    """Return a value as JSON on one line, cut off for a terminal."""
    return cut(json.dumps(value, ensure_ascii=False), most)


def cut(text: str, most: int = _SHORT) -> str:
    """Return a text on one line, cut off for a terminal."""
    text = " ".join(text.split())
    return text if len(text) <= most or not is_terminal() else text[: most - 3] + "..."


def when_text(at: datetime | None) -> str:
    """Return a time where the reader is; "" for none."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock_text(at: datetime | None) -> str:
    """Return the time of day of an event, with milliseconds."""
    return (at or datetime.now(UTC)).astimezone().strftime("%H:%M:%S.%f")[:-3]


def span_text(seconds: float) -> str:
    """Return a duration for people: "0.25 s", "3 m 10 s", "2 d 4 h"."""
    if seconds < 60:
        return f"{max(seconds, 0):.3g} s"
    for large, name, small, second in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= large:
            whole, rest = divmod(int(seconds), large)
            return f"{whole} {name} {rest // small} {second}" if rest // small else f"{whole} {name}"
    return ""


def took_text(begun: datetime | None, ended: datetime | None) -> str:
    """Return how long something took, or takes by now; "" if it has not begun."""
    if begun is None:
        return ""
    return span_text(((ended or datetime.now(UTC)) - begun).total_seconds())


# -- definitions -----------------------------------------------------------------------------------


def print_definitions(found: Sequence[WorkflowDefinition], workspace: str) -> None:
    """Print a table of workflows."""
    rows = [
        (
            one.id,
            str(one.version),
            one.workspace,
            str(len(steps_of(one.document)) or ""),
            trigger_text(one.document),
            when_text(one.updated_at),
            cut(_text(one.document.get("description"))),
        )
        for one in found
    ]
    columns = ("workflow", "version", "workspace", "steps", "starts by", "applied", "description")
    print_table(columns, rows, f"no workflow in the workspace {workspace}; `aether workflows apply FILE` brings one")


def applied_name(one: AppliedDefinition) -> str:
    """Return what was applied; only workflows have versions that count."""
    return f"{one.kind} {one.id}" + (f" version {one.version}" if one.kind == "workflow" else "")


def print_definition(one: WorkflowDefinition) -> None:
    """Print a workflow with its inputs and steps."""
    facts = [
        ("workflow", f"{one.id} version {one.version}" + ("" if one.active else ", deleted")),
        ("workspace", "all (*)" if one.workspace == "*" else one.workspace),
        ("description", _text(one.document.get("description"))),
        ("starts by", trigger_text(one.document)),
        ("does", f"a function in Python, in workers of {worker}" if (worker := function_worker(one.document)) else ""),
        ("input", input_text(one.document)),
        ("timeout", _text(one.document.get("timeout"))),
        ("owner", one.owner),
        ("applied", when_text(one.updated_at)),
    ]
    print_facts([(name, text) for name, text in facts if text])
    if function_worker(one.document):
        return
    say("")
    rows = [(step_id(step), step_does(step), _after(step), _condition(step)) for step in steps_of(one.document)]
    print_table(("step", "does", "after", "when"), rows, "no steps")


def function_worker(document: Mapping[str, Any]) -> str:
    """Return which workers run a durable function; "" for a graph."""
    function = document.get("function")
    return _text(function.get("worker")) if isinstance(function, dict) else ""


def steps_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a document, with their keys in lower case."""
    steps = document.get("steps")
    found = steps if isinstance(steps, list) else []
    return [{str(key).lower(): value for key, value in one.items()} for one in found if isinstance(one, dict)]


def step_id(step: Mapping[str, Any]) -> str:
    """Return the id of a step."""
    return _text(step.get("id"))


def step_does(step: Mapping[str, Any]) -> str:
    """Return what a step of a document does, in a few words."""
    kind = next((one for one in KINDS if step.get(one) is not None), "")
    work = step.get(kind)
    fields = {str(key).lower(): value for key, value in work.items()} if isinstance(work, dict) else {}
    text = _does(kind, fields, work)
    if (each := step.get("for_each")) is not None:
        items = each.get("items", each) if isinstance(each, dict) else each
        text += f", for each of {cut(_text(items), 60)}"
    if (loop := step.get("while")) is not None:
        text += f", while {cut(_text(loop.get('condition') if isinstance(loop, dict) else loop), 60)}"
    return text


def action_text(fields: Mapping[str, Any]) -> str:
    """Return what an action does, in a few words."""
    kind = fields.get("type") or "message"
    if kind == "emit_event":
        return f"event {_text(fields.get('event_name'))}"
    if kind == "create_task":
        return f"task {_text(fields.get('task_type'))} for {_text(fields.get('target_implementation'))}"
    return f"{_text(fields.get('agent'))}: {_text(fields.get('tool_name'))}".removesuffix(": ")


def _wait(fields: Mapping[str, Any], work: Any) -> str:
    for name in ("signal", "event"):
        if fields.get(name):
            return f"waits for {name} {_text(fields[name])}"
    if fields.get("until"):
        return f"waits until {_text(fields['until'])}"
    return f"waits {_text(fields.get('duration') or work)}"


def _does(kind: str, fields: Mapping[str, Any], work: Any) -> str:
    match kind:
        case "action":
            return action_text(fields)
        case "workflow":
            return f"workflow {_text(work)}"
        case "wait":
            return _wait(fields, work)
        case "ask":
            return f"asks: {cut(_text(fields.get('question') or work), 60)}"
        case "fail":
            return f"fails: {cut(_text(fields.get('message') or work), 60)}"
        case "continue_as":
            return f"goes on as {_text(fields.get('workflow')) or 'a new execution'}"
    return "computes"


def _after(step: Mapping[str, Any]) -> str:
    after = step.get("depends_on")
    names = [after] if isinstance(after, str) else after
    text = ", ".join(map(_text, names)) if isinstance(names, list) else ""
    join = step.get("join")
    return f"{join} of {text}" if text and join not in (None, "all") else text


def _condition(step: Mapping[str, Any]) -> str:
    return cut(_text(step.get("when")), 60)


def trigger_text(document: Mapping[str, Any]) -> str:
    """Return which event starts a workflow; "" for none."""
    trigger = document.get("trigger")
    if not isinstance(trigger, dict) or not trigger.get("event"):
        return ""
    condition = f" if {cut(_text(trigger['condition']), 60)}" if trigger.get("condition") else ""
    return f"event {_text(trigger['event'])}{condition}"


def input_text(document: Mapping[str, Any]) -> str:
    """Return what a workflow's input is, in the words of the shorthand."""
    names = []
    properties, required = input_properties(document)
    for name, schema in properties.items():
        kind = schema.get("type", "any") if isinstance(schema, dict) else "any"
        names.append(f"{name}: {kind if isinstance(kind, str) else 'any'}{'' if name in required else '?'}")
    return ", ".join(names)


def input_properties(document: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Print an execution with its steps, and how to answer what it asks."""
    function = document.get("function")
    inputs = function.get("input") if isinstance(function, dict) else document.get("inputs")
    if not isinstance(inputs, dict):
        return {}, set()
    properties = inputs.get("properties")
    if isinstance(properties, dict):
        needed = inputs.get("required")
        return properties, set(needed) if isinstance(needed, list) else set()
    shorthand = {name: text for name, text in inputs.items() if isinstance(text, str) and not name.startswith("$")}
    if len(shorthand) < len(inputs):
        return {}, set()
    kinds = {name: {"type": text.removesuffix("?")} for name, text in shorthand.items()}
    return kinds, {name for name, text in shorthand.items() if not text.endswith("?")}


# -- executions ------------------------------------------------------------------------------------


def print_executions(found: Sequence[Execution], empty: str) -> None:
    """Print a table of executions."""
    rows = [
        (
            one.execution_id,
            f"{one.workflow} v{one.version}",
            one.status,
            when_text(one.started_at),
            took_text(one.started_at, one.completed_at),
            cut(one.error),
        )
        for one in found
    ]
    print_table(("execution", "workflow", "status", "started", "took", "error"), rows, empty)


def print_execution(one: Execution, *, items: bool = False) -> None:
    """Print an execution with its steps, and how to answer its questions."""
    print_facts([(name, text) for name, text in execution_facts(one) if text])
    shown, hidden = _shown_steps(one, items)
    if shown:
        say("")
        with_items = any(step.items for step in shown)
        columns = ["step", "status", *(["items"] if with_items else []), "attempt", "took", "details"]
        rows = []
        for step in shown:
            cells = [_step_name(step), step.status]
            if with_items:
                cells.append(counts_text(step.items))
            attempt = str(step.attempt) if step.attempt else ""
            rows.append([*cells, attempt, took_text(step.started_at, step.completed_at), details_text(step)])
        print_table(columns, rows, "")
    if hidden and is_terminal():
        say(f"{hidden} items are not shown; --items shows up to 1,000", err=True)
    if is_terminal():
        for step in one.steps:
            if step.waits_for.get("for") == "answer":
                say(f"\nanswer with: aether workflows answer {one.execution_id} {step.name}", err=True, lines=True)


def print_step(execution: Execution, step: ExecutionStep) -> None:
    """Print one step or item with its input and result."""
    facts = [
        ("step", _step_name(step)),
        ("execution", execution.execution_id),
        ("does", step.kind),
        ("status", step.status),
        ("items", counts_text(step.items)),
        ("attempt", str(step.attempt) if step.attempt else ""),
        ("task", step.task_id),
        ("worker", step.worker),
        ("started", when_text(step.started_at)),
        ("took", took_text(step.started_at, step.completed_at)),
        ("waits for", waits_text(step.waits_for)),
        ("error", f"{step.error_type}: {step.error}" if step.error_type and step.error else step.error),
        ("input", "" if step.input is None else json_line(step.input, 2_000)),
        ("result", "" if step.result is None else json_line(step.result, 2_000)),
    ]
    print_facts([(name, text) for name, text in facts if text])


def execution_facts(one: Execution) -> list[tuple[str, str]]:
    """Return an execution's facts for people; a text is "" for what there is not."""
    took = took_text(one.started_at, one.completed_at)
    waiting = [_queue_text(one.waits_for)] if one.waits_for else _waiting(one)
    return [
        ("execution", one.execution_id),
        ("workflow", f"{one.workflow} version {one.version} in {one.workspace}"),
        ("status", f"{one.status} {'after' if one.has_ended else 'for'} {took}" if took else one.status),
        ("started", when_text(one.started_at)),
        ("part of", one.parent_id),
        ("fork of", f"{one.forked_from} from step {one.forked_at}" if one.forked_from else ""),
        ("forks", ", ".join(one.forks[:3]) + (f" and {len(one.forks) - 3} more" if len(one.forks) > 3 else "")),
        ("input", json_line(one.input) if one.input not in (None, {}) else ""),
        ("result", "" if one.result is None else json_line(one.result)),
        ("usage", ", ".join(f"{name} {total:g}" for name, total in one.usage.items())),
        ("error" if one.status != "paused" else "paused", cut(one.error, 400)),
        ("waits for", "; ".join(waiting[:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")),
    ]


def _queue_text(waits: Mapping[str, Any]) -> str:
    """Return what a queued execution waits for."""
    keys = [str(key) for key in waits.get("keys") or () if key]
    text = "further starts, which it takes in" if waits.get("for") == "more" else "its turn"
    return text + (f", with the key {cut(', '.join(keys))}" if keys else "")


def _waiting(one: Execution) -> list[str]:
    """Return what steps wait for, with the items of a step that wait for the same."""
    texts: dict[tuple[str, str], list[str]] = {}
    for step in one.steps:
        if text := waits_text(step.waits_for):
            texts.setdefault((step.step, text), []).append(step.name)
    found = []
    for (step_name, text), names in texts.items():
        found.append(f"{names[0]}: {text}" if len(names) == 1 else f"{len(names)} items of {step_name}: {text}")
    return found


def _shown_steps(one: Execution, items: bool) -> tuple[list[ExecutionStep], int]:
    """Return the steps to show, and how many items are left out."""
    shown: list[ExecutionStep] = []
    hidden = taken = 0
    for step in one.steps:
        if step.item is None or step.compensates or items:
            shown.append(step)
        elif taken < _ITEMS and (step.status == "failed" or step.waits_for.get("for") == "answer"):
            taken += 1
            shown.append(step)
        else:
            hidden += 1
    return shown, hidden


def _step_name(step: ExecutionStep) -> str:
    return f"{step.name} (undone)" if step.compensates else step.name


def counts_text(items: Mapping[str, int]) -> str:
    """Return counts of items as "31/100, 2 failed"."""
    if not items:
        return ""
    rest = [
        f"{items[name]} {name}" for name in ("running", "waiting", "failed", "cancelled", "skipped") if items.get(name)
    ]
    return ", ".join([f"{items.get('completed', 0)}/{sum(items.values())}", *rest])


def details_text(step: ExecutionStep) -> str:
    """Return a step's error, what it waits for, or who works on it."""
    if waits := waits_text(step.waits_for):
        return waits
    if step.error:
        return cut(step.error, 200)
    return f"by {step.worker}" if step.worker else ""


def waits_text(waits: Mapping[str, Any]) -> str:
    """Return what a step waits for, in words."""
    until = until_text(_text(waits.get("until")))
    match waits.get("for"):
        case "answer":
            of = f" from {_text(waits['of'])}" if waits.get("of") else ""
            return f"an answer{of}: {cut(_text(waits.get('question')), 80)}{until and f', {until}'}"
        case "signal" | "event" as kind:
            return f"{kind} {_text(waits.get(kind))}{until and f', {until}'}"
        case "time":
            return until or "a time"
        case "retry":
            why = cut(_text(waits.get("error")), 100)
            return f"its next attempt{until and f', {until}'}" + (f": {why}" if why else "")
        case "worker":
            return f"a worker of {_text(waits.get('pool'))}"
        case "execution":
            return f"execution {_text(waits.get('execution_id'))}"
    return ""


def until_text(moment: str) -> str:
    """Return a moment of the wire as "until 2026-11-29 18:00:00"; "" for none."""
    try:
        return f"until {when_text(datetime.fromisoformat(moment))}" if moment else ""
    except ValueError:
        return ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
