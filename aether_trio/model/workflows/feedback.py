"""Finds definitions that start each other without an end.

A rule or workflow *feeds* another if it emits an event, or has a task whose end is an event, that
the other takes. What is computed when an event comes (a name by a template) is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.workflows.definition import Action, ActionType, Definition, Graph, Json, RuleDefinition
from aether_trio.model.workflows.reading import quoted

ENGINE: Final = "workflow-engine"
"""The source agent of events that rules and workflows emit."""
MAX_CIRCLES: Final = 20
_EVENT_NAME: Final = re.compile(r"(?m)^[\s-]*[\"']?event_name[\"']?\s*:\s*[\"']?([^\s\"'{}#,]+)[\"']?\s*,?\s*(?:#.*)?$")


@dataclass(frozen=True, slots=True)
class _Participant:
    """What starts a definition, and which events it emits."""

    title: str
    event: str
    agent: str
    workspace: str
    emits: frozenset[str]


def feeding_circles(definitions: Sequence[Definition]) -> Iterator[tuple[int, str]]:
    """Yield circles: the index of the first definition, and a text that names all."""
    participants = {
        index: one for index, definition in enumerate(definitions) if (one := _participant(definition)) is not None
    }
    takers: dict[str, list[int]] = {}
    for index, one in participants.items():
        if one.agent in {"*", "", ENGINE}:
            takers.setdefault(one.event, []).append(index)
    follows = {
        index: {
            other: event
            for event in sorted(one.emits)
            for other in takers.get(event, ())
            if _meet(one.workspace, participants[other].workspace)
        }
        for index, one in participants.items()
    }
    found = 0
    for component in _components(follows):
        first = min(component)
        circle = _circle(first, set(component), follows)
        if not circle:
            continue
        links = " → ".join(f"{participants[index].title} → event {quoted(event)}" for index, event in circle)
        yield first, f"these start each other without an end: {links} → {participants[first].title}"
        found += 1
        if found == MAX_CIRCLES:
            return


def _meet(one: str, other: str) -> bool:
    return "*" in {one, other} or one == other


def _participant(definition: Definition) -> _Participant | None:
    if isinstance(definition, RuleDefinition) and definition.active:
        template = definition.source.get("destination_template")
        emits = _of_text(template) if isinstance(template, str) else _of_tree(template)
        title = f"rule {quoted(definition.name)}"
        return _Participant(title, definition.source_event, definition.source_agent, definition.workspace, emits)
    if isinstance(definition, Graph) and definition.trigger is not None and definition.trigger.event:
        trigger = definition.trigger
        title = f"workflow {quoted(definition.id)}"
        return _Participant(title, trigger.event, trigger.source_agent, definition.workspace, _of_steps(definition))
    return None


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


def _emitted(action: Action) -> str:
    if action.type is ActionType.EMIT_EVENT:
        return action.event_name
    return action.completion_event.event_name if action.completion_event.enabled else ""


def _circle(first: int, component: set[int], follows: dict[int, dict[int, str]]) -> list[tuple[int, str]]:
    """Return a shortest circle from `first`, with the event of each link."""
    before: dict[int, int] = {}
    queue = [first]
    for index in queue:
        for other in follows[index]:
            if other == first:
                links = [(index, follows[index][other])]
                while links[-1][0] != first:
                    after = links[-1][0]
                    links.append((before[after], follows[before[after]][after]))
                return links[::-1]
            if other in component and other not in before:
                before[other] = index
                queue.append(other)
    return []


def _components(follows: dict[int, dict[int, str]]) -> Iterator[list[int]]:
    """Yield the strongly connected components (Tarjan's algorithm, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root, first in follows.items():
        if root in number:
            continue
        open_ = [(root, iter(first))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while open_:
            index, others = open_[-1]
            other = next(others, None)
            if other is None:
                open_.pop()
                if open_:
                    above = open_[-1][0]
                    low[above] = min(low[above], low[index])
                if low[index] == number[index]:
                    place = stack.index(index)
                    component = stack[place:]
                    del stack[place:]
                    on_stack.difference_update(component)
                    yield component
            elif other not in number:
                number[other] = low[other] = len(number)
                stack.append(other)
                on_stack.add(other)
                open_.append((other, iter(follows[other])))
            elif other in on_stack:
                low[index] = min(low[index], number[other])
