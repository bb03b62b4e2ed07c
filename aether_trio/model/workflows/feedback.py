"""Finds definitions that start each other without an end.

A rule or workflow *feeds* another if it emits an event, or has a task whose end is an event, that
the other takes. A task of a known type feeds those that take the creation, begin or completion of
tasks, unless their condition wants another type. What is computed when an event comes (a name by a
template) is not known here.

A workflow also starts those that its steps call, itself perhaps. A step that may be left out, as it
or one before it has a condition, ends such a circle, and does not count.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    CallWorkflow,
    ContinueAs,
    Definition,
    Fail,
    Graph,
    Json,
    RuleDefinition,
    Step,
)
from aether_trio.model.workflows.reading import quoted

ENGINE: Final = "workflow-engine"
"""The source agent of events that rules and workflows emit."""
MAX_CIRCLES: Final = 20
_EVENT_NAME: Final = re.compile(r"(?m)^[\s-]*[\"']?event_name[\"']?\s*:\s*[\"']?([^\s\"'{}#,]+)[\"']?\s*,?\s*(?:#.*)?$")

_OF_EVERY_TASK: Final = frozenset({"task.created", "task.running", "task.completed"})
"""Events that each task has, if it is not cancelled and does not fail."""
_TASK: Final = "\0task "
"""What stands before the type of tasks in a node; no event has such a name."""
_TASK_TYPE: Final = ("input", "task_type")
RUN_TASK: Final = "workflow_run"
STEP_TASK: Final = "workflow"
"""The types of the tasks of executions, and of steps that name an agent."""

_Node: TypeAlias = int | tuple[str, str]
"""A definition by its index, or an event by its name and the workspace of those that take it."""


@dataclass(frozen=True, slots=True)
class _Participant:
    """What starts a definition, and which events it emits; `event` "" is none."""

    title: str
    event: str
    agent: str
    workspace: str
    emits: frozenset[str]
    tasks: frozenset[str] = frozenset()
    """The types of the tasks that it creates."""
    types: tuple[str, ...] = ()
    """The types of which the task must be one whose event it takes; () for any."""
    calls: frozenset[str] = frozenset()
    """The workflows that it calls, whatever happens."""


def feeding_circles(definitions: Sequence[Definition]) -> Iterator[tuple[int, str]]:
    """Yield circles: the index of the first definition, and a text that names all."""
    participants = {
        index: one for index, definition in enumerate(definitions) if (one := _participant(definition)) is not None
    }
    # An event of a workspace stands between those that emit it and those that take it.
    follows: dict[_Node, list[_Node]] = {}
    workspaces: dict[str, set[str]] = {}
    for index, one in participants.items():
        if one.event in _OF_EVERY_TASK:
            # The events of a type lead to those that take it, and to those that take all.
            for name in one.types or ("",):
                follows.setdefault((_task(name), one.workspace), []).append(index)
                workspaces.setdefault(_task(name), set()).add(one.workspace)
        elif one.event and one.agent in {"*", "", ENGINE}:
            follows.setdefault((one.event, one.workspace), []).append(index)
            workspaces.setdefault(one.event, set()).add(one.workspace)
    graphs = {(one.workspace, one.id): index for index, one in enumerate(definitions) if isinstance(one, Graph)}
    for index, one in participants.items():
        emits = one.emits | {_task(name) for name in one.tasks} | ({_task("")} if one.tasks else set())
        follows[index] = [
            (event, workspace)
            for event in sorted(emits)
            for workspace in sorted(workspaces.get(event, ()))
            if "*" in {workspace, one.workspace} or workspace == one.workspace
        ]
        for name in sorted(one.calls):
            called = graphs.get((one.workspace, name), graphs.get(("*", name)))
            follows[index] += [] if called is None else [called]
    found = 0
    for component in _components(follows):
        members = [node for node in component if isinstance(node, int)]
        circle = _circle(min(members), set(component), follows) if members else []
        if not circle:
            continue
        names = [participants[node].title if isinstance(node, int) else _title(node[0]) for node in circle]
        shown = names if len(names) <= 12 else [*names[:10], "…"]
        yield min(members), f"these start each other without an end: {' → '.join([*shown, names[0]])}"
        found += 1
        if found == MAX_CIRCLES:
            return


def _task(type: str) -> str:  # noqa: A002
    return f"{_TASK}{type}"


def _title(event: str) -> str:
    if not event.startswith(_TASK):
        return f"event {quoted(event)}"
    type = event.removeprefix(_TASK)  # noqa: A001
    return f"a task of type {quoted(type)}" if type else "a task"


def _participant(definition: Definition) -> _Participant | None:
    if isinstance(definition, RuleDefinition) and definition.active:
        template = definition.source.get("destination_template")
        emits = _of_text(template) if isinstance(template, str) else _of_tree(template)
        title = f"rule {quoted(definition.name)}"
        tasks = frozenset() if isinstance(template, str) else _created(template)
        types = _types(definition.condition)
        return _Participant(
            title, definition.source_event, definition.source_agent, definition.workspace, emits, tasks, types
        )
    if isinstance(definition, Graph):
        trigger = definition.trigger
        return _Participant(
            f"workflow {quoted(definition.id)}",
            "" if trigger is None else trigger.event,
            "" if trigger is None else trigger.source_agent,
            definition.workspace,
            _of_steps(definition),
            _tasks_of(definition),
            () if trigger is None else _types(trigger.condition),
            _called(definition),
        )
    return None


def _called(graph: Graph) -> frozenset[str]:
    """Return the workflows that an execution calls unless a step of it fails."""
    calls = {one.id: one.work.workflow for one in graph.steps.values() if isinstance(one.work, CallWorkflow)}
    if not calls:
        return frozenset()
    before = {one.id: (*one.depends_on, *one.targeted_by) for one in graph.steps.values()}
    sure: set[str] = set()
    for name in graphlib.TopologicalSorter(before).static_order():
        step, follows = graph.steps[name], (one in sure and _may_be_completed(graph.steps[one]) for one in before[name])
        if step.when is None and not step.failure_target_of and all(follows):
            sure.add(name)
    # No item, or no round, calls nothing.
    once = (graph.steps[name] for name in calls.keys() & sure)
    return frozenset(calls[one.id] for one in once if one.for_each is None and one.while_ is None)


def _may_be_completed(step: Step) -> bool:
    return not isinstance(step.work, Fail | ContinueAs)


def _of_text(template: str) -> frozenset[str]:
    return frozenset(match[1] for match in _EVENT_NAME.finditer(template))


def _of_tree(tree: Json) -> frozenset[str]:
    names: set[str] = set()
    open_ = [tree]
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            name = value.get("event_name")
            if isinstance(name, str) and "{{" not in name:
                names.add(name)
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
    return frozenset(names)


def _of_steps(graph: Graph) -> frozenset[str]:
    actions: Iterable[object] = [work for step in graph.steps.values() for work in (step.work, step.compensate)]
    return frozenset(_emitted(action) for action in actions if isinstance(action, Action)) - {""}


def _types(condition: object) -> tuple[str, ...]:
    """Return the types of tasks of which a condition wants one; () for any."""
    find = getattr(condition, "equalities", None)
    for path, wanted in () if find is None else find():
        if path == _TASK_TYPE:
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            return tuple(str(value) for value in values)
    return ()


def _created(tree: Json) -> frozenset[str]:
    """Return the type of the task that the destination of a rule creates."""
    name = tree.get("task_type") if isinstance(tree, dict) else None
    return frozenset({name}) if isinstance(name, str) and "{{" not in name else frozenset()


def _tasks_of(graph: Graph) -> frozenset[str]:
    """Return the types of the tasks of an execution: its, and those of its steps."""
    actions: Iterable[object] = [work for step in graph.steps.values() for work in (step.work, step.compensate)]
    work = [one for one in actions if isinstance(one, Action) and one.type is not ActionType.EMIT_EVENT]
    steps = {action.task_type or STEP_TASK for action in work}
    return frozenset({RUN_TASK, *steps})


def _emitted(action: Action) -> str:
    if action.type is ActionType.EMIT_EVENT:
        return action.event_name
    return action.completion_event.event_name if action.completion_event.enabled else ""


def _circle(first: _Node, component: set[_Node], follows: dict[_Node, list[_Node]]) -> list[_Node]:
    """Return a shortest circle from `first` within its component, [] for none."""
    before: dict[_Node, _Node] = {}
    queue = [first]
    for node in queue:
        for other in follows[node]:
            if other == first:
                circle = [node]
                while circle[-1] != first:
                    circle.append(before[circle[-1]])
                return circle[::-1]
            if other in component and other not in before:
                before[other] = node
                queue.append(other)
    return []


def _components(follows: dict[_Node, list[_Node]]) -> Iterator[list[_Node]]:
    """Yield the strongly connected components (Tarjan's algorithm, without recursion)."""
    number: dict[_Node, int] = {}
    low: dict[_Node, int] = {}
    stack: list[_Node] = []
    on_stack: set[_Node] = set()
    for root, first in follows.items():
        if root in number:
            continue
        open_ = [(root, iter(first))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while open_:
            node, others = open_[-1]
            other = next(others, None)
            if other is None:
                open_.pop()
                if open_:
                    above = open_[-1][0]
                    low[above] = min(low[above], low[node])
                if low[node] == number[node]:
                    component = [stack.pop()]
                    while component[-1] != node:
                        component.append(stack.pop())
                    on_stack.difference_update(component)
                    yield component
            elif other not in number:
                number[other] = low[other] = len(number)
                stack.append(other)
                on_stack.add(other)
                open_.append((other, iter(follows[other])))
            elif other in on_stack:
                low[node] = min(low[node], number[other])
