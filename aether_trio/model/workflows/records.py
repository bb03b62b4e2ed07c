"""Compiles the documents of rules, schedules and state machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aether_trio.model.workflows.compiling import (
    EVENT_SCOPE,
    NOTHING,
    TEMPLATE_MARK,
    Compiler,
    ReadScope,
    Tools,
    digest_of,
    json_text,
)
from aether_trio.model.workflows.definition import (
    Action,
    BusEvent,
    EvaluationError,
    Json,
    MachineDefinition,
    MachineState,
    MachineTransition,
    Path,
    RuleDefinition,
    ScheduleDefinition,
    Value,
)
from aether_trio.model.workflows.flow_documents import compile_flow
from aether_trio.model.workflows.machines import quick_lap
from aether_trio.model.workflows.reading import (
    Fields,
    Findings,
    any_token,
    kind_of,
    name,
    prose,
    quoted,
    token,
)
from aether_trio.model.workflows.shapes import ANY, ListShape, MapShape, ScalarShape, Shape
from aether_trio.model.workflows.sources import doubt_about
from aether_trio.model.workflows.values import EXPRESSION_KEY, TemplateValue, YamlTemplateValue

MAX_STATES: Final = 1_000
MAX_TRANSITIONS: Final = 1_000
MISS_POLICIES: Final = ("skip", "fire_once", "fire_all")
SCHEDULE_TYPES: Final = ("cron", "interval", "once", "event_delayed")
RULE_KEYS: Final = (
    "kind",
    "id",
    "rule_name",
    "description",
    "source_event",
    "source_agent",
    "workspace",
    "trigger_condition",
    "transformation_style",
    "destination_template",
    "priority",
    "flow",
    "active",
    "created_at",
    "updated_at",
)
SCHEDULE_KEYS: Final = (
    "kind",
    "id",
    "name",
    "description",
    "workspace",
    "schedule_type",
    "schedule_expr",
    "action",
    "workflow_id",
    "input",
    "enabled",
    "miss_policy",
    "max_concurrent",
    "timezone",
    "jitter",
    "event",
    "next_fire_at",
    "last_fired_at",
    "active_task_id",
    "created_at",
    "updated_at",
)
MACHINE_KEYS: Final = (
    "kind",
    "id",
    "name",
    "description",
    "workspace",
    "initial_state",
    "states",
    "bus",
    "active",
    "created_at",
    "updated_at",
)
STATE_KEYS: Final = ("on", "entry_action", "exit_action", "terminal", "timeout", "timeout_action", "description")
TRANSITION_KEYS: Final = ("to", "when", "assign", "action")
BUS_KEYS: Final = ("event", "key", "send", "creates", "source_agent")

_SHOWN_ONLY: Final = frozenset({"kind", "created_at", "updated_at", "next_fire_at", "last_fired_at", "active_task_id"})
"""Fields that an answer has, and a definition that was made of the answer."""
_COMPUTED: Final = "\ue000"
"""Stands for what a template prints; no template has this character."""
_PRINTS: Final = re.compile(r"\{\{[^\n]*?\}\}")
_BRANCHES: Final = re.compile(
    r"\{\{-?\s*(?:if|else|range|with|end|define|block|template|break|continue|/\*|\$\w+\s*:?=)|-\}\}|\{\{-"
)
_FITTING: Final[dict[str, Json]] = {
    **dict.fromkeys(("agent", "tool_name", "workspace", "task_type", "target_implementation", "event_name"), "x"),
    **dict.fromkeys(("idempotency_key", "correlation_id", "name"), "x"),
    **dict.fromkeys(("correlation_key", "member_key", "join"), "nil"),
    **dict.fromkeys(("window", "timeout", "linger"), "1s"),
}
"""What stands for a computed value in a check; other fields may be absent."""
_TEXT: Final = ScalarShape("a text")
_SCHEDULE_FIELDS: Final[dict[str, Shape]] = {
    "schedule_id": _TEXT,
    "schedule_name": _TEXT,
    "fired_at": ANY,
    "slot": ANY,
    "backfill": ANY,
}
_SCHEDULE_SHAPE: Final = MapShape({"id": _TEXT, "name": _TEXT, "fired_at": ANY, "slot": ANY})
_SCHEDULE_SCOPE: Final = ReadScope(names={"schedule": _SCHEDULE_SHAPE, "trigger": MapShape(_SCHEDULE_FIELDS)})
_DELAYED_SCOPE: Final = ReadScope(
    names={
        "schedule": _SCHEDULE_SHAPE,
        "trigger": MapShape(
            {**_SCHEDULE_FIELDS, "event": MapShape({"data": ANY, "source": EVENT_SCOPE.names["source"]})},
        ),
    },
)
_MACHINE_SCOPE: Final = ReadScope(
    names={
        "data": ANY,
        "input": ANY,
        "event": _TEXT,
        "source": ANY,
        "machine": MapShape({"id": _TEXT, "instance": _TEXT, "workspace": _TEXT, "state": _TEXT}),
    },
)


def canonical(fields: Fields, **settled: Json) -> dict[str, Json]:
    """Return the canonical document of fields: without what only answers have."""
    source = {key: value for key, value in fields.values.items() if key not in _SHOWN_ONLY}
    return source | settled


def compile_rule(compiler: Compiler, value: Json, path: Path) -> RuleDefinition:
    """Compile a rule. Its id is a number that the gateway gives: none is read."""
    fields = Fields(value, path, compiler.findings, RULE_KEYS, "the rule", casings=True)
    title = fields.text("rule_name", check=name, required=True)
    if title:
        fields.what = f"rule {quoted(title)}"
    condition = fields.get("trigger_condition")
    fields.text("description", check=prose)
    source = {key: one for key, one in canonical(fields).items() if key not in {"id", "active"}}
    source |= {"active": fields.flag("active", True), "workspace": fields.text("workspace", "*", check=any_token)}
    destination, workspaces = _destination(compiler, fields, _destination_scope(fields))
    event = fields.text("source_event", check=name, required=True)
    if doubt := doubt_about(event, keys=True):
        compiler.findings.warn(fields.at("source_event"), f"{fields.what}: {doubt}")
    return RuleDefinition(
        name=title,
        source_event=event,
        destination=destination,
        source_agent=fields.text("source_agent", "*", check=any_token),
        workspace=source["workspace"],
        condition=compiler.field_condition(fields, "trigger_condition", EVENT_SCOPE),
        condition_source=condition.strip() if isinstance(condition, str) else "",
        style=fields.choice("transformation_style", ("template-yaml",), "template-yaml"),
        priority=fields.whole("priority", 0, least=-(10**9), most=10**9),
        flow=compile_flow(compiler, fields, EVENT_SCOPE),
        active=source["active"],
        workspaces=workspaces,
        source=source,
        digest=digest_of(source),
    )


def _destination_scope(fields: Fields) -> ReadScope:
    """Return what a destination reads: all `events`, if several may lead to it."""
    flow = fields.get("flow")
    if isinstance(flow, dict) and {"debounce", "batch"} & {str(key).lower() for key in flow}:
        return EVENT_SCOPE.having(events=ListShape(MapShape(dict(EVENT_SCOPE.names))))
    return EVENT_SCOPE


def _destination(compiler: Compiler, fields: Fields, scope: ReadScope) -> tuple[Value, tuple[str, ...]]:
    """Compile a destination: a template of YAML, or a map with templates.

    Return it, and the workspaces that it names.
    """
    value, path = fields.get("destination_template"), fields.at("destination_template")
    what = f"{fields.what}, destination_template"
    if isinstance(value, dict):
        compiler.action(_static(value), path, scope, what, computed=False, joins=True)
        return compiler.tree(value, path, scope, what), _named_workspaces(value)
    if value is None or value == "":
        fields.text("destination_template", required=True)
        return NOTHING, ()
    if not isinstance(value, str):
        fields.error("destination_template", f"{what} has to be a text or a map, and is {kind_of(value)}")
        return NOTHING, ()
    if EXPRESSION_KEY in value:
        fields.error("destination_template", f"{what} is a template, and {EXPRESSION_KEY} is for one that is a map")
        return NOTHING, ()
    template = compiler.template(value, path, scope, what)
    if not isinstance(template, TemplateValue):
        return NOTHING, ()
    named = _check_text(compiler, value, path, what)
    return YamlTemplateValue(value, template.compiled, compiler.tools.read_yaml, what), named


def _check_text(compiler: Compiler, source: str, path: Path, what: str) -> tuple[str, ...]:
    """Check what a template says for every event; return the workspaces it names.

    One with branches and loops is not checked.
    """
    if _BRANCHES.search(source):
        return ()
    text = _PRINTS.sub(lambda match: _COMPUTED * len(match[0]), source)
    if TEMPLATE_MARK in text:
        return ()  # an action over several lines
    try:
        tree = compiler.tools.read_yaml(text, lambda scalar, plain: scalar)
    except (ValueError, RecursionError) as exc:
        message = getattr(exc, "message", None) or str(exc)
        line, column = getattr(exc, "line", 0), getattr(exc, "column", 0)
        compiler.findings.error(path, f"{what} is not YAML: {message}", line=line, column=column)
        return ()
    if _is_computed(tree):
        return ()
    compiler.action(_static(tree), path, EVENT_SCOPE, what, computed=False, joins=True)
    return _named_workspaces(tree)


def _named_workspaces(tree: Json) -> tuple[str, ...]:
    """Return the workspaces that a destination names, and those of its join."""
    actions = [tree] if isinstance(tree, dict) else []
    for action in tuple(actions):
        if isinstance(join := action.get("join"), dict):
            actions += [one for key in ("on_complete", "on_timeout") if isinstance(one := join.get(key), dict)]
    named = (action.get("workspace") for action in actions)
    return tuple(dict.fromkeys(one for one in named if isinstance(one, str) and one and not _is_computed(one)))


def _is_computed(value: Json) -> bool:
    if isinstance(value, str):
        return TEMPLATE_MARK in value or _COMPUTED in value
    return isinstance(value, dict) and EXPRESSION_KEY in value


def _static(tree: Json) -> Json:
    """Return a destination in which something right stands for what is computed."""
    if isinstance(tree, list):
        return [_static(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if _is_computed(tree.get("type")):
        return {"agent": "x"}  # which keys it needs is not known
    static = {}
    for key, one in tree.items():
        if not _is_computed(key):
            static[key] = _FITTING.get(key) if _is_computed(one) else _static(one)
    return static


def read_action(document: Json, tools: Tools, what: str) -> Action:
    """Make an action of what a rule's destination gave for an event.

    Raises EvaluationError, which says all that is wrong with it.
    """
    findings = Findings(strict=False)
    action = Compiler(findings, tools).action(document, (), EVENT_SCOPE, what, computed=False, joins=True)
    if findings.errors:
        raise EvaluationError("; ".join(problem.text() for problem in findings.errors[:5]))
    return action


def compile_schedule(compiler: Compiler, value: Json, path: Path) -> ScheduleDefinition:
    """Compile a schedule; `tools.check_schedule` checks its expression."""
    fields = Fields(value, path, compiler.findings, SCHEDULE_KEYS, "the schedule", casings=True)
    identifier = fields.text("id", check=token)
    title = fields.text("name", check=name)
    if identifier or title:
        fields.what = f"schedule {quoted(identifier or title)}"
    if not identifier and not title:
        fields.text("id", required=True)
    fields.text("description", check=prose)
    kind = fields.choice("schedule_type", SCHEDULE_TYPES)
    expression = fields.text("schedule_expr", required=True)
    timezone = fields.text("timezone")
    if not fields.has("schedule_type"):
        fields.text("schedule_type", required=True)
    elif kind and expression:
        problem = compiler.tools.check_schedule(kind, expression, timezone)
        if problem is not None:
            at = fields.at(problem.field)
            compiler.findings.error(at, f"{fields.what}: {problem.message}", line=1, column=problem.column)
    action = None
    given = fields.get("action")
    if isinstance(given, str):
        given = json_text(compiler.findings, given, fields.at("action"), f"{fields.what}, action")
    scope = _DELAYED_SCOPE if kind == "event_delayed" else _SCHEDULE_SCOPE
    if given:
        action = compiler.action(given, fields.at("action"), scope, f"{fields.what}, action")
    workflow = fields.text("workflow_id", check=token)
    if action is None and not workflow and not compiler.findings.count:
        compiler.findings.error(fields.path, f"{fields.what} needs an action or a workflow_id")
    if fields.has("input") and not workflow:
        fields.error("input", f"{fields.what} has an input, but no workflow_id that takes it")
    event = fields.text("event", check=name)
    if event and kind != "event_delayed":
        fields.error("event", f"{fields.what}: an event is for schedule_type event_delayed")
    if doubt := doubt_about(event, keys=False):
        compiler.findings.warn(fields.at("event"), f"{fields.what}: {doubt}")
    if kind == "event_delayed" and not event:
        compiler.findings.warn(fields.path, f"{fields.what} never fires: event_delayed needs an event")
    workspace = fields.text("workspace", "*", check=any_token)
    source = canonical(fields, workspace=workspace)
    if given:
        source["action"] = given
    return ScheduleDefinition(
        id=identifier,
        schedule_type=kind,
        schedule_expr=expression,
        name=title,
        workspace=workspace,
        action=action,
        workflow_id=workflow,
        input=compiler.field_tree(fields, "input", scope),
        enabled=fields.flag("enabled", True),
        # What an event has planned is not lost for an outage, unless the document says so.
        miss_policy=fields.choice("miss_policy", MISS_POLICIES, "fire_all" if kind == "event_delayed" else "skip"),
        max_concurrent=fields.whole("max_concurrent", 0),
        timezone=timezone,
        jitter_ms=compiler.duration(fields, "jitter"),
        event=event,
        source=source,
        digest=digest_of(source),
    )


def compile_machine(compiler: Compiler, value: Json, path: Path, preset: Mapping[str, Json]) -> MachineDefinition:
    """Compile a state machine. `preset`: the id and workspace that its record has."""
    fields = Fields(value, path, compiler.findings, MACHINE_KEYS, "the machine", casings=True)
    record = Fields(preset, (), compiler.findings, ("id", "workspace", "version"), "the machine")
    identifier = record.text("id", check=token) or fields.text("id", check=token)
    if not identifier:
        identifier = fields.text("name", check=token)
        if not identifier and not fields.has("name") and not fields.has("id") and not record.has("id"):
            fields.text("id", required=True)
    workspace = record.text("workspace", check=any_token) or fields.text("workspace", "*", check=any_token)
    names = [one for one, _, _ in fields.mapping("states", most=MAX_STATES)] if fields.has("states") else []
    if not names:
        fields.text("states", required=True)
    states = {
        one: _state(compiler, one, state, at, names) for one, state, at in fields.mapping("states", most=MAX_STATES)
    }
    initial = fields.text("initial_state", check=name, required=True)
    if initial and names and initial not in states:
        fields.error(
            "initial_state", f"the machine begins in {quoted(initial)}{compiler.findings.hint(initial, names)}"
        )
    bus = fields.get("bus")
    entries = [(bus, fields.at("bus"))] if isinstance(bus, dict) else fields.entries("bus", most=MAX_TRANSITIONS)
    events = {event for state in states.values() for event in state.on}
    subscriptions = tuple(_bus_event(compiler, one, at, events) for one, at in entries)
    if not compiler.findings.count:
        _warn_of_states(compiler, fields, states, initial)
        if compiler.findings.strict:  # a stored one goes on, with longer timeouts
            _check_laps(compiler, fields, states)
    source = {key: one for key, one in canonical(fields).items() if key not in {"name", "active"}}
    source |= {"id": identifier, "workspace": workspace}
    return MachineDefinition(
        id=identifier,
        initial_state=initial,
        states=states,
        workspace=workspace,
        description=fields.text("description", check=prose),
        bus=subscriptions,
        source=source,
        digest=digest_of(source),
    )


def _state(compiler: Compiler, title: str, value: Json, path: Path, names: list[str]) -> MachineState:
    what = f"state {quoted(title)}"
    fields = Fields({} if value is None else value, path, compiler.findings, STATE_KEYS, what)
    if not title:
        compiler.findings.error(path, "a state's name is empty")
    fields.text("description", check=prose)
    on: dict[str, tuple[MachineTransition, ...]] = {}
    for event, one, at in fields.mapping("on", most=MAX_TRANSITIONS):
        alternatives = (
            [(entry, (*at, index)) for index, entry in enumerate(one)] if isinstance(one, list) else [(one, at)]
        )
        transitions = [
            _transition(compiler, entry, place, f"{what}, event {quoted(event)}", names)
            for entry, place in alternatives
        ]
        for index, transition in enumerate(transitions[:-1]):
            if transition.when is None:
                compiler.findings.warn(
                    alternatives[index + 1][1],
                    f"{what}, event {quoted(event)}: this is never taken, as the one before has no condition",
                )
                break
        on[event] = tuple(transitions)
    timeout_action = fields.text("timeout_action", check=name)
    if timeout_action and timeout_action not in names:
        fields.error(
            "timeout_action", f"{what} goes to {quoted(timeout_action)}{compiler.findings.hint(timeout_action, names)}"
        )
    if timeout_action and not fields.has("timeout"):
        fields.error("timeout_action", f"{what} has a timeout_action, but no timeout")
    return MachineState(
        name=title,
        on=on,
        entry_action=_machine_action(compiler, fields, "entry_action"),
        exit_action=_machine_action(compiler, fields, "exit_action"),
        terminal=fields.flag("terminal"),
        timeout_ms=compiler.duration(fields, "timeout"),
        timeout_action=timeout_action,
    )


def _machine_action(compiler: Compiler, fields: Fields, key: str) -> Action | None:
    if not fields.get(key):  # Go's documents have an empty action for none
        return None
    return compiler.action(fields.get(key), fields.at(key), _MACHINE_SCOPE, f"{fields.what}, {key}")


def _transition(compiler: Compiler, value: Json, path: Path, what: str, names: list[str]) -> MachineTransition:
    if isinstance(value, str):
        value_fields = Fields({"to": value}, path, compiler.findings, TRANSITION_KEYS, what)
        value_fields.keys.clear()
    else:
        value_fields = Fields(value, path, compiler.findings, TRANSITION_KEYS, what)
    to = value_fields.text("to", check=name, required=True)
    if to and to not in names:
        value_fields.error("to", f"{what} goes to {quoted(to)}{compiler.findings.hint(to, names)}")
    return MachineTransition(
        to=to,
        when=compiler.field_condition(value_fields, "when", _MACHINE_SCOPE),
        assign=compiler.field_map(value_fields, "assign", _MACHINE_SCOPE),
        action=_machine_action(compiler, value_fields, "action"),
    )


def _bus_event(compiler: Compiler, value: Json, path: Path, events: set[str]) -> BusEvent:
    fields = Fields(value, path, compiler.findings, BUS_KEYS, "the machine, bus")
    event = fields.text("event", check=name, required=True)
    if not fields.has("key"):
        fields.text("key", required=True)
    if doubt := doubt_about(event, keys=False):
        compiler.findings.warn(fields.at("event"), f"the machine, bus: {doubt}")
    send = fields.text("send", check=name)
    reached = send or event
    if reached and reached not in events and not fields.get("creates"):
        key = "send" if send else "event"
        fields.error(
            key, f"the machine, bus: no state has the event {quoted(reached)}{compiler.findings.hint(reached, events)}"
        )
    source = fields.get("key")
    return BusEvent(
        event=event,
        key=compiler.field_expression(fields, "key", EVENT_SCOPE) or NOTHING,
        key_source=source if isinstance(source, str) else "",
        send=send,
        creates=fields.flag("creates"),
        source_agent=fields.text("source_agent", "*", check=any_token),
    )


def lap_problem(states: Mapping[str, MachineState], title: str) -> tuple[str, list[str]]:
    """Return what is wrong with a quick circle of timeouts, and its states."""
    lap = quick_lap(states, title)
    if not lap:
        return "", []
    took_ms = sum(states[one].timeout_ms for one in lap[:-1])
    shown = lap if len(lap) <= 12 else [*lap[:10], "…", lap[-1]]
    way = " → ".join(quoted(one)[1:-1] for one in shown)
    text = (
        f"its timeouts lead to itself within {took_ms} ms, again and again ({way}): that has to take a second at least"
    )
    return f"state {quoted(title)}: {text}", lap


def _check_laps(compiler: Compiler, fields: Fields, states: Mapping[str, MachineState]) -> None:
    told: set[str] = set()
    for title in states:
        problem, lap = ("", []) if title in told else lap_problem(states, title)
        told.update(lap)
        if problem:
            compiler.findings.error((*fields.at("states"), title, "timeout"), problem)


def _warn_of_states(compiler: Compiler, fields: Fields, states: Mapping[str, MachineState], initial: str) -> None:
    reached = {initial}
    open_ = [initial]
    while open_:
        state = states[open_.pop()]
        targets = {one.to for transitions in state.on.values() for one in transitions}
        if state.timeout_action:
            targets.add(state.timeout_action)
        if not state.terminal:
            open_ += targets - reached
            reached |= targets
    at = fields.at("states")
    for title, state in states.items():
        if title not in reached:
            compiler.findings.warn((*at, title), f"state {quoted(title)} is never reached")
        elif state.terminal and state.on:
            compiler.findings.warn((*at, title), f"state {quoted(title)} is terminal, so its events are never taken")
        elif not state.terminal and not state.on and not state.timeout_action:
            compiler.findings.warn((*at, title), f"state {quoted(title)} is never left, and is not terminal")
