"""FORETELL: what definitions would have done with the events of the log.

Nothing is written.

    events of the log ──▶ rules, triggers and buses of documents ──▶ what matches, and with what

The documents are not those that are stored. Conditions, destinations, inputs and keys are computed
as the engine computes them; what would happen then to tasks, and flow control, is not foretold. The
caller sees events of the workspaces that it may read, as the owner of what it applies would.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.access import AccessLevel
from aether_trio.model.limits import KIB, MIB
from aether_trio.model.text import TextError, escaped
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.model.workflows.definition import (
    BusEvent,
    Definition,
    EvaluationError,
    Graph,
    Json,
    MachineDefinition,
    RuleDefinition,
    ScheduleDefinition,
    Trigger,
)
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.hops import TooManyHops, extend
from aether_trio.model.workflows.keys import key_text
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.model.workflows.records import read_action
from aether_trio.model.workflows.rule_index import ANY, EventFilter, RuleIndex
from aether_trio.services.workflows.actions.performer import values_of
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import JsonError, write_json, write_list, write_object
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.events.taken_events import KEYS as CHANGED_KEYS
from aether_trio.services.workflows.events.taken_events import TakenEvent, read_event
from aether_trio.services.workflows.requests.applying import Appliers
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
)
from aether_trio.services.workflows.rules.reactions import holds
from aether_trio.services.workflows.rules.rule_operations import equalities_of
from aether_trio.services.workflows.rules.rule_runs import environment_of
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.services.workflows.stored.stored_graphs import schema_problem
from aether_trio.storage.base import Row

FORETELL: Final = 119
"""Says what documents would have done with the events of the log."""
PAGE_EVENTS: Final = 1_000
PAGE_BYTES: Final = 4 * MIB
"""Events of one answer, and their bytes."""
FOUND: Final = 500
FOUND_BYTES: Final = 512 * KIB
"""Reactions in one answer, and their bytes."""
BATCH_EVENTS: Final = 50
BATCH_BYTES: Final = 256 * KIB
"""Events that are in memory at once, and their bytes."""
SLICE_S: Final = 0.05
"""How long one turn in a thread may take: others wait for it."""
PAGE_S: Final = 5.0
"""For how long the threads work for one answer; its events are all that they get to."""
EVENT_S: Final = 20.0
"""For how long they work for one event, before the answer is that this takes too long."""
LARGE: Final = 1 * MIB
"""The size of what an event may make documents compute, whatever its own size."""
SHOWN_BYTES: Final = 16 * KIB
"""A reaction whose values are larger is shown without them."""
KEYS: Final = frozenset({"documents", "since_ms", "after"})


class Triggered(NamedTuple):
    """A workflow, and the trigger by which an event starts it."""

    graph: Graph
    trigger: Trigger


class BusEntry(NamedTuple):
    """A machine, and an entry of its bus."""

    machine: MachineDefinition
    bus: BusEvent


Reacting: TypeAlias = RuleDefinition | Triggered | BusEntry | ScheduleDefinition


class _Foretold(Exception):
    """What would have been a dead letter; the text says why."""


class ForetellOperations:
    """Answers FORETELL, a page of events at a time."""

    def __init__(self, appliers: Appliers, access: WorkspaceAccess, log: TopicLog) -> None:
        self._appliers = appliers
        self._access = access
        self._log = log
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {FORETELL: self._foretell}
        )

    async def _foretell(self, asked: OperationAsked) -> OperationAnswer:
        """Return `{"events", "foretold": [...], "next"}`; `next` 0: there are no more."""
        given = await asked.document()
        documents, since_ms, after = given.get("documents"), given.get("since_ms", 0), given.get("after", 0)
        whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in (since_ms, after))
        if not isinstance(documents, list) or not whole or given.keys() - KEYS:
            raise OperationError('data is {"documents": [DOCUMENT, ...], "since_ms": MOMENT, "after": OFFSET}')
        try:
            found = await compile_in_thread(partial(self._appliers.read, documents, asked.workspace), len(asked.data))
        except DefinitionErrors as error:
            raise OperationError(str(error)) from None
        for workspace in dict.fromkeys(one.workspace for one in found):
            await self._access.need(asked.session, workspace, AccessLevel.READ)
        index = await compile_in_thread(partial(_index_of, found), len(asked.data))
        behind = after or await self._before(since_ms)
        rows, more = await self._page(behind, PAGE_EVENTS, PAGE_BYTES)
        page = _ForetoldPage()
        readable: dict[tuple[str, str], bool] = {}
        for batch in _batches(rows):
            seen = [event for row in batch if (event := await self._seen(asked, row, readable)) is not None]
            reactions = _reactions(index, seen)
            ended = not seen
            while not ended and not page.is_full:
                made, took_s, ended = await compile_in_thread(partial(_some, reactions), LARGE)
                page.add(made, took_s)
            behind = page.behind if page.is_full else batch[-1][0]
            if page.is_full:
                more = more or behind < rows[-1][0]
                break
        fields = {"events": page.events, "next": behind if more else 0}
        return OperationAnswer(write_object(fields, foretold=write_list(page.foretold)))

    async def _seen(self, asked: OperationAsked, row: Row, readable: dict[tuple[str, str], bool]) -> TakenEvent | None:
        """Read a message of the log; None if it is no event that the caller may read."""
        offset, at_ms, frame = row
        await trio.lowlevel.checkpoint()
        event = await in_json_thread(partial(read_event, offset, bytes(frame), at_ms), len(frame))
        return event if event is not None and await self._sees(asked, event, readable) else None

    async def _sees(self, asked: OperationAsked, event: TakenEvent, readable: dict[tuple[str, str], bool]) -> bool:
        """Return whether the caller may read an event, and the key that it is about."""
        workspace = event.workspace or EVERYWHERE
        key = str(event.data["key"]) if _is_of_key(event) and not event.reason else ""
        place = workspace, key
        if place not in readable:
            readable[place] = not await self._access.problem(asked.session, workspace, AccessLevel.READ)
            if readable[place] and key:
                readable[place] = await self._access.may_read_key(asked.session, workspace, key)
        return readable[place]

    async def _page(self, after: int, rows: int, max_bytes: int) -> tuple[list[Row], bool]:
        """Read messages (offset, Unix ms, frame) of the log, and whether there are more."""
        [page] = await self._log.read_topics([(EVENT_INTAKE, after)], rows=rows, max_bytes=max_bytes)
        return page

    async def _before(self, since_ms: int) -> int:
        """Return an offset behind which the events since a moment are, and no others."""
        low, high = 0, 1
        while (await self._is_earlier(high, since_ms)) is not None:
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            earlier = await self._is_earlier(middle, since_ms)
            if earlier is None:
                high = middle
            else:
                low = max(earlier, middle + 1)
        return low

    async def _is_earlier(self, after: int, since_ms: int) -> int | None:
        """Return the offset of the first message behind one if it is too early; else None."""
        rows, _ = await self._page(after, 1, 1)
        return int(rows[0][0]) if rows and rows[0][1] < since_ms else None


def _index_of(found: Sequence[Definition]) -> RuleIndex[tuple[int, int], Reacting]:
    index: RuleIndex[tuple[int, int], Reacting] = RuleIndex()
    for number, one in enumerate(found):
        match one:
            case RuleDefinition() if one.active:
                equalities = equalities_of(one.condition)
                takes = _filter(one.source_event, one.source_agent, one.workspace, equalities, one.priority)
                index.add((number, 0), takes, one)
            case Graph() if one.trigger is not None and one.trigger.event:
                equalities = equalities_of(one.trigger.condition)
                takes = _filter(one.trigger.event, one.trigger.source_agent, one.workspace, equalities)
                index.add((number, 0), takes, Triggered(one, one.trigger))
            case MachineDefinition():
                for place, bus in enumerate(one.bus):
                    takes = _filter(bus.event, bus.source_agent, one.workspace)
                    index.add((number, place), takes, BusEntry(one, bus))
            case ScheduleDefinition() if one.event:
                index.add((number, 0), _filter(one.event, ANY, one.workspace), one)
    return index


def _filter(event: str, agent: str, workspace: str, equalities: Sequence[Any] = (), priority: int = 0) -> EventFilter:
    return EventFilter(
        event=event, agent=agent or ANY, workspace=workspace, equalities=tuple(equalities), priority=priority
    )


class _ForetoldReaction(NamedTuple):
    """What a definition would have done; b"" for nothing, None for the event's end."""

    offset: int
    does: bytes | None


@dataclass(slots=True)
class _ForetoldPage:
    """What one answer says."""

    foretold: list[bytes] = field(default_factory=list)
    events: int = 0
    behind: int = 0
    """The offset of the last event that is done."""
    is_full: bool = False
    """Whether the next event is for another page."""
    _size: int = 0
    _took_s: float = 0.0
    _event_s: float = 0.0
    """For how long threads have worked for the event that is not done yet."""

    def add(self, found: Sequence[_ForetoldReaction], took_s: float) -> None:
        """Take in reactions up to the event with which the page is full.

        Raises OperationError if an event takes too long.
        """
        self._took_s += took_s
        self._event_s += took_s
        for offset, does in found:
            if does is not None:
                self._size += len(does)
                if does:
                    self.foretold.append(does)
                continue
            self.events += 1
            self.behind, self._event_s = offset, 0.0
            if len(self.foretold) >= FOUND or self._size >= FOUND_BYTES or self._took_s >= PAGE_S:
                self.is_full = True
                return
        if self._event_s >= EVENT_S:
            raise OperationError(
                f"the documents take more than {EVENT_S:g} s for the event behind offset {self.behind}: "
                "ask with fewer of them at once"
            )


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Divide messages into parts that are in memory at once."""
    begin, size = 0, 0
    for number, row in enumerate(rows):
        size += len(row[2])
        if number > begin and (number - begin >= BATCH_EVENTS or size > BATCH_BYTES):
            yield rows[begin:number]
            begin, size = number, len(row[2])
    if rows:
        yield rows[begin:]


def _some(reactions: Iterator[_ForetoldReaction]) -> tuple[list[_ForetoldReaction], float, bool]:
    """Take the next reactions, for some milliseconds.

    Return them, how long that took, and whether these are the last.
    """
    begun = perf_counter()
    found: list[_ForetoldReaction] = []
    for reaction in reactions:
        found.append(reaction)
        if perf_counter() > begun + SLICE_S:
            return found, perf_counter() - begun, False
    return found, perf_counter() - begun, True


def _reactions(
    index: RuleIndex[tuple[int, int], Reacting], events: Sequence[TakenEvent]
) -> Iterator[_ForetoldReaction]:
    """Yield what each candidate would have done, and the end of each event."""
    for event in events:
        for does in _reactions_to(index, event):
            yield _ForetoldReaction(event.offset, does)
        yield _ForetoldReaction(event.offset, None)


def _reactions_to(index: RuleIndex[tuple[int, int], Reacting], event: TakenEvent) -> Iterator[bytes]:
    """Yield the JSON of what each candidate would have done; b"" for nothing."""
    for name in event.names:
        env = environment_of(event, name)
        for reacting in index.candidates(name, event.agent, event.workspace, env):
            if _is_of_key(event) and isinstance(reacting, BusEntry | ScheduleDefinition):
                continue  # these take no keys (reactions.py)
            told = {"at": go_time(event.at_ms), "offset": event.offset, "event": name, "source": event.principal}
            told |= {"event_workspace": event.workspace, **_what(reacting)}
            try:
                does = _does(reacting, event, name, env)
            except (EvaluationError, TextError, TooManyHops, _Foretold, JsonError) as error:
                yield write_json({**told, "error": escaped(str(error), 2_000)})
                continue
            if does is None:
                yield b""
                continue
            written = write_json(does)
            if len(written) > SHOWN_BYTES:
                written = write_json({"too_large_to_show": len(written)})
            yield write_object(told, does=written)


def _is_of_key(event: TakenEvent) -> bool:
    return event.source_topic.startswith(CHANGED_KEYS)


def _what(reacting: Reacting) -> dict[str, str]:
    match reacting:
        case RuleDefinition():
            return {"kind": "rule", "id": reacting.name}
        case ScheduleDefinition():
            return {"kind": "schedule", "id": reacting.id}
        case Triggered(graph):
            return {"kind": "workflow", "id": graph.id}
        case BusEntry(machine):
            return {"kind": "machine", "id": machine.id}


def _does(reacting: Reacting, event: TakenEvent, name: str, env: dict[str, Json]) -> dict[str, Any] | None:
    """Return what a definition would have done; None if its condition does not hold.

    Raises EvaluationError, TextError, TooManyHops, JsonError and _Foretold.
    """
    moment = datetime.fromtimestamp(event.at_ms / 1000, UTC)
    match reacting:
        case RuleDefinition():
            if not holds(reacting.condition, env, moment):
                return None
            document = reacting.destination.evaluate({**env, "events": [env]}, now=lambda: moment)
            action = read_action(document, TOOLS, f"rule '{reacting.name}'")
            extend(event.hops, "rule", reacting.name)
            if action.join is not None:
                key = key_text(
                    action.join.correlation_key.evaluate(env, now=lambda: moment), "the correlation_key of the join"
                )
                return {"type": "join", "join": action.join.name, "correlation_key": key}
            values_of(action, {}, event.at_ms)
            found: dict[str, Any] = document if isinstance(document, dict) else {}
            return {"type": action.type.value, **{key: value for key, value in found.items() if key != "type"}}
        case Triggered(graph, trigger):
            if not holds(trigger.condition, env, moment):
                return None
            extend(event.hops, "workflow", graph.id)
            if not event.workspace:
                raise _Foretold("the event is of no workspace, and an execution needs one")
            if graph.input_schema is not None and (problem := schema_problem(graph.input_schema, event.data)):
                raise _Foretold(f"the input of workflow {graph.id} is not as declared: {problem}")
            return {"type": "start", "workspace": event.workspace, "input": event.data}
        case BusEntry(_, bus):
            key = key_text(bus.key.evaluate(env, now=lambda: moment), f"the key of bus event {name}")
            return {"type": "send", "instance": key, "event": bus.send or name, "creates": bus.creates}
        case ScheduleDefinition():
            return {"type": "fire", "after": reacting.schedule_expr, "workflow": reacting.workflow_id}
