"""Waits of executions for events: each event reaches a wait once.

    begin of an execution ─▶ interest in (event, key), for each wait of its graph
    event ─▶ kept while any execution has an interest ─▶ open waits with that value of the key
    wait opens ─▶ kept events since the begin, the oldest first ─▶ EventReceived

A key is an expression over the event, so an event is looked up by the value of each key that any
execution is interested in, and not by waits. The value null is no key: such an event reaches only
waits without a key.

A wait that the interpreter leaves open (its condition did not hold) stays open, for the next event.
What a step has taken it does not take again in its next round or attempt (`workflow_taken_events`);
each item of a `for_each` takes for itself. Other steps of the execution take it as well.

Page and execution cannot miss each other: both read what the other one writes, so that transactions
of SERIALIZABLE do not both commit without seeing the other, and SQLite has one writer.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from aether_trio.model.limits import MIB
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import EvaluationError, Graph, Json, WaitFor
from aether_trio.model.workflows.happenings import OpenWait, StepPlace
from aether_trio.model.workflows.values import ExpressionValue
from aether_trio.services.workflows.documents.json_values import plain, read_json, write_json
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.stored import changes
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, FetchOne, Program, Row

KEPT_EVENTS: Final = 10_000
"""Latest events of a name that are kept in a workspace."""
KEPT_BYTES: Final = 64 * MIB
"""The size of their data; the latest one is kept whatever its size."""
PRUNE_EVERY: Final = 100
"""For how many events more than that may be kept."""
MOST_KEYS: Final = 100
"""Different keys of an event in a workspace: each event is looked up by all of them."""
KNOWN_EVENTS: Final = 4_096
"""Events whose keys are in memory."""
COMPILED_KEYS: Final = 4_096
NO_KEY: Final = ""
"""The hash of the key of a wait that takes any event, and of its value."""
_EVENT: Final = frozenset({"input", "source"})
_FIRST_KEY: Final = (
    "SELECT key_hash, key_source FROM workflow_interests WHERE workspace = $1 AND event = $2 AND key_hash >= $3 "
    "ORDER BY key_hash LIMIT 1"
)
_TOO_OLD: Final = """SELECT MAX(number) FROM (SELECT number, ROW_NUMBER() OVER latest AS place,
        SUM(LENGTH(data)) OVER latest AS bytes FROM workflow_kept_events WHERE workspace = $1 AND event = $2
        WINDOW latest AS (ORDER BY number DESC)) AS kept
    WHERE place > $3 OR (bytes > $4 AND place > 1)"""
_NEXT_KEY: Final = _FIRST_KEY.replace(">=", ">")


class KeptEvent(NamedTuple):
    """An event that is kept: its number, and what the interpreter is told of it."""

    number: int
    data: Json
    source: Json


class OpenedWait(NamedTuple):
    """A row of `workflow_waits`."""

    number: int
    execution_id: str
    place: StepPlace
    taker: str


@dataclass(frozen=True, slots=True)
class WaitPosition:
    """How far an event was delivered: the hash of a key, and the last wait of it."""

    key: str = ""
    number: int = 0


class Waits:
    """Rows of waits, interests and kept events; all methods are programs."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[str, ExpressionValue] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], set[str]] = OrderedDict()
        """Keys of late, as hashes, by workspace and event: these are among MOST_KEYS."""

    # -- executions --------------------------------------------------------------------------------

    def problem(self, workspace: str, events: Iterable[tuple[str, str]]) -> Program[str]:
        """Return why an execution may not wait for events by these keys; "" if it may."""
        wanted: dict[str, set[str]] = {}
        for event, source in events:
            wanted.setdefault(event, set()).add(hash_of_key(source))
        for event, hashes in wanted.items():
            place = workspace, event
            if hashes <= self._known.get(place, set()):
                continue
            there = {key for key, _ in (yield from self.keys(workspace, event))}
            if len(hashes | there) > MOST_KEYS and not hashes <= there:
                return (
                    f"executions wait for event {shown(event)} in workspace {workspace} by {len(there)} different "
                    f"keys, and this would be {len(hashes - there)} more: at most {MOST_KEYS} are allowed"
                )
            self._known[place] = hashes | there
            if len(self._known) > KNOWN_EVENTS:
                self._known.popitem(last=False)
        return ""

    def begin(self, execution_id: str, workspace: str, events: Iterable[tuple[str, str]]) -> Program[None]:
        """Note the events, with their keys, for which an execution may wait from now on.

        What is noted already counts from when it was.
        """
        for event, source in dict.fromkeys(events):
            rows: list[Row] = yield Fetch(
                "SELECT MAX(number) FROM workflow_kept_events WHERE workspace = $1 AND event = $2", (workspace, event)
            )
            yield Execute(
                "INSERT INTO workflow_interests (execution_id, workspace, event, key_hash, key_source, after_number) "
                "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (execution_id, event, key_hash) DO NOTHING",
                (execution_id, workspace, event, hash_of_key(source), source, rows[0][0] or 0),
            )

    def change(self, execution_id: str, workspace: str, events: Sequence[tuple[str, str]]) -> Program[None]:
        """Note for which events an execution may wait on another version.

        Where there are none, nothing is left for its end to forget.
        """
        if events:
            yield from self.begin(execution_id, workspace, events)
        else:
            yield from self.end(execution_id)

    def hand_over(self, execution_id: str, next_id: str) -> Program[None]:
        """Let the next execution of a chain take the events that this one has not.

        Of each event these are the later ones than the latest that a step has taken; if several
        steps have taken some, than that of the step which is behind the others.
        """
        taken: list[Row] = yield Fetch(
            "SELECT t.taker, t.number, k.event FROM workflow_taken_events t "
            "JOIN workflow_kept_events k ON k.number = t.number WHERE t.execution_id = $1 ORDER BY t.number",
            (execution_id,),
        )
        latest: dict[str, dict[str, int]] = {}
        for taker, number, event in taken:
            latest.setdefault(event, {})[taker] = number
        behind = {event: min(of_takers.values()) for event, of_takers in latest.items()}
        interests: list[Row] = yield Fetch(
            "SELECT workspace, event, key_hash, key_source, after_number FROM workflow_interests "
            "WHERE execution_id = $1",
            (execution_id,),
        )
        for workspace, event, key, source, after in interests:
            yield Execute(
                "INSERT INTO workflow_interests (execution_id, workspace, event, key_hash, key_source, after_number) "
                "VALUES ($1, $2, $3, $4, $5, $6)",
                (next_id, workspace, event, key, source, max(after, behind.get(event, 0))),
            )
        for taker, number, event in taken:
            if number > behind[event]:
                yield from self.take(next_id, taker, number)

    def end(self, execution_id: str) -> Program[None]:
        """Forget the waits of an execution, and the events that were kept for it alone."""
        rows: list[Row] = yield Fetch(
            "DELETE FROM workflow_interests WHERE execution_id = $1 RETURNING workspace, event", (execution_id,)
        )
        if not rows:
            return
        for table in ("workflow_waits", "workflow_taken_events"):
            yield Execute(f"DELETE FROM {table} WHERE execution_id = $1", (execution_id,))  # noqa: S608
        for workspace, event in sorted({(row[0], row[1]) for row in rows}):
            oldest: list[Row] = yield Fetch(
                "SELECT MIN(after_number) FROM workflow_interests WHERE workspace = $1 AND event = $2",
                (workspace, event),
            )
            yield from _forget(workspace, event, oldest[0][0])

    def open(
        self, execution_id: str, workspace: str, command: OpenWait, taker: str, after: int = 0
    ) -> Program[KeptEvent | None]:
        """Open a wait; return the oldest event behind `after` that it can take already."""
        key, value = hash_of_key(command.key_source), _hash_of_value(command.key_source, command.value)
        place = command.place
        yield Execute(
            "INSERT INTO workflow_waits (execution_id, step, item, taker, workspace, event, key_hash, value_hash) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (execution_id, step, item) DO UPDATE SET "
            "event = excluded.event, key_hash = excluded.key_hash, value_hash = excluded.value_hash",
            (execution_id, place.step, place.item, taker, workspace, command.event, key, value),
        )
        return (yield from self.next_kept(execution_id, place, after))

    def next_kept(self, execution_id: str, place: StepPlace, after: int) -> Program[KeptEvent | None]:
        """Return the oldest event behind `after` that an open wait can take; None: none."""
        rows: list[Row] = yield Fetch(
            """SELECT k.number, k.data, k.source FROM workflow_waits w
            JOIN workflow_interests i ON i.execution_id = w.execution_id AND i.event = w.event
                AND i.key_hash = w.key_hash
            JOIN workflow_kept_keys h ON h.workspace = w.workspace AND h.event = w.event
                AND h.key_hash = w.key_hash AND h.value_hash = w.value_hash AND h.number > i.after_number
            JOIN workflow_kept_events k ON k.number = h.number
            WHERE w.execution_id = $1 AND w.step = $2 AND w.item = $3 AND h.number > $4
                AND NOT EXISTS (SELECT 1 FROM workflow_taken_events t WHERE t.execution_id = w.execution_id
                    AND t.taker = w.taker AND t.number = h.number)
            ORDER BY h.number LIMIT 1""",
            (execution_id, place.step, place.item, after),
        )
        if not rows:
            return None
        number, data, source = rows[0]
        return KeptEvent(number, read_json(bytes(data)), read_json(bytes(source)))

    def close(self, execution_id: str, place: StepPlace) -> Program[None]:
        """Close a wait."""
        yield Execute(
            "DELETE FROM workflow_waits WHERE execution_id = $1 AND step = $2 AND item = $3",
            (execution_id, place.step, place.item),
        )

    def take(self, execution_id: str, taker: str, number: int) -> Program[None]:
        """Note that a step takes an event, before it waits again."""
        yield Execute(
            "INSERT INTO workflow_taken_events (execution_id, taker, number) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            (execution_id, taker, number),
        )

    # -- events ------------------------------------------------------------------------------------

    def keys(self, workspace: str, event: str) -> Program[list[tuple[str, str]]]:
        """Read (hash, text) of the keys in which executions are interested, for an event."""
        found: list[tuple[str, str]] = []
        last = NO_KEY
        while True:  # the index is not read along all the executions of a key
            rows: list[Row] = yield Fetch(_NEXT_KEY if found else _FIRST_KEY, (workspace, event, last))
            if not rows:
                return found
            last = rows[0][0]
            found.append((last, rows[0][1]))

    def keep(
        self, workspace: str, event: str, env: dict[str, Json], keys: list[tuple[str, str]], now_ms: int
    ) -> Program[int]:
        """Keep an event for the executions that are interested; return its number."""
        latest: list[Row] = yield Fetch(
            "SELECT MAX(number) FROM workflow_kept_events WHERE workspace = $1 AND event = $2", (workspace, event)
        )
        number = yield from changes.begin(changes.KEPT_EVENT)
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)
        values = [(key, self._value(source, env, moment)) for key, source in keys]
        rows = [(workspace, event, key, value, number) for key, value in values if value is not None]
        if rows:
            yield ExecuteMany(
                "INSERT INTO workflow_kept_keys (workspace, event, key_hash, value_hash, number) "
                "VALUES ($1, $2, $3, $4, $5)",
                rows,
            )
        yield Execute(
            "INSERT INTO workflow_kept_events (number, workspace, event, at_ms, source, data) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            (number, workspace, event, now_ms, write_json(env["source"]), write_json(env["input"])),
        )
        # All names share the numbers.
        if (latest[0][0] or 0) // PRUNE_EVERY != number // PRUNE_EVERY:
            old: list[Row] = yield Fetch(_TOO_OLD, (workspace, event, KEPT_EVENTS, KEPT_BYTES))
            if old[0][0] is not None:
                yield from _forget(workspace, event, old[0][0])
        return number

    def kept(self, number: int) -> Program[KeptEvent | None]:
        """Load an event that is kept; None if it is forgotten."""
        rows: list[Row] = yield FetchOne(
            "SELECT number, data, source FROM workflow_kept_events WHERE number = $1", (number,)
        )
        if not rows:
            return None
        return KeptEvent(number, read_json(bytes(rows[0][1])), read_json(bytes(rows[0][2])))

    def waiting(
        self, number: int, position: WaitPosition, limit: int
    ) -> Program[list[tuple[WaitPosition, OpenedWait]]]:
        """Find open waits that can take a kept event, behind a position.

        Only waits of executions that had begun before the event, and whose step has not taken it.
        """
        found: list[tuple[WaitPosition, OpenedWait]] = []
        keys: list[Row] = yield Fetch(
            "SELECT workspace, event, key_hash, value_hash FROM workflow_kept_keys WHERE number = $1 "
            "AND key_hash >= $2 ORDER BY key_hash",
            (number, position.key),
        )
        for workspace, event, key, value in keys:
            rows: list[Row] = yield Fetch(
                """SELECT w.number, w.execution_id, w.step, w.item, w.taker FROM workflow_waits w
                JOIN workflow_interests i ON i.execution_id = w.execution_id AND i.event = w.event
                    AND i.key_hash = w.key_hash
                WHERE w.workspace = $1 AND w.event = $2 AND w.key_hash = $3 AND w.value_hash = $4 AND w.number > $5
                    AND i.after_number < $6
                    AND NOT EXISTS (SELECT 1 FROM workflow_taken_events t WHERE t.execution_id = w.execution_id
                        AND t.taker = w.taker AND t.number = $6)
                ORDER BY w.number LIMIT $7""",
                (
                    workspace,
                    event,
                    key,
                    value,
                    position.number if key == position.key else 0,
                    number,
                    limit - len(found),
                ),
            )
            found += [
                (WaitPosition(key, row[0]), OpenedWait(row[0], row[1], StepPlace(row[2], row[3]), row[4]))
                for row in rows
            ]
            if len(found) == limit:
                break
        return found

    def _value(self, source: str, env: dict[str, Json], moment: datetime) -> str | None:
        """Return the hash of an event's value of a key; None if it has none."""
        if not source:
            return NO_KEY
        compiled = self._compiled.get(source)
        if compiled is None:
            compiled = ExpressionValue(source, TOOLS.languages.expression(source, _EVENT))
            self._compiled[source] = compiled
            if len(self._compiled) > COMPILED_KEYS:
                self._compiled.popitem(last=False)
        try:
            value = compiled.evaluate(env, now=lambda: moment)
        except EvaluationError:
            return None
        return None if value is None else _hash_of_value(source, value)


def events_of(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield the events for which the steps of a graph wait, with their keys."""
    for step in graph.steps.values():
        if isinstance(step.work, WaitFor) and step.work.event:
            yield step.work.event, step.work.key_source


def key_problem(source: str) -> str:
    """Return why this is no key of events; "" if it is one."""
    try:
        TOOLS.languages.expression(source, _EVENT)
    except ValueError as error:
        return str(error)
    return ""


def taker_of(graph: Graph, place: StepPlace) -> str:
    """Return which steps and items share what they have taken: rounds of a step do."""
    step = graph.steps[place.step]
    return place.step if step.for_each is None else f"{place.step}[{place.item}]"


def hash_of_key(source: str) -> str:
    """Return the hash of a key's text; "" for no key."""
    return hashlib.sha256(source.encode()).hexdigest()[:32] if source else NO_KEY


def _hash_of_value(source: str, value: Json) -> str:
    if not source:
        return NO_KEY
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _forget(workspace: str, event: str, number: int | None) -> Program[None]:
    """Forget kept events up to a number; None: all."""
    for table in ("workflow_kept_keys", "workflow_kept_events"):
        yield Execute(
            f"DELETE FROM {table} WHERE workspace = $1 AND event = $2"  # noqa: S608
            + ("" if number is None else " AND number <= $3"),
            (workspace, event) if number is None else (workspace, event, number),
        )
