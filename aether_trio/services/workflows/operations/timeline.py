"""TIMELINE: all that is known of an execution in one order, a page at a time.

    history · attempts of its tasks · their events and progress reports · their conversations
        ──▶ by (time, source, key, number), behind a position ──▶ at most PAGE of them

The position is the last entry that was given, so a page repeats nothing and leaves nothing out,
whatever comes meanwhile with a later time. Sources are read in their order up to one page each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.access import AccessLevel
from aether_trio.model.limits import MIB
from aether_trio.model.text import shown
from aether_trio.model.topics import task_topic
from aether_trio.model.workflows.go_names import go_time
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.workflows.documents.json_values import write_entry, write_json, write_list, write_object
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    is_number,
)
from aether_trio.storage.base import Fetch, Program, Row, placeholders
from aether_trio.wire.pb import aether_pb2 as pb

TIMELINE: Final = 118
"""Returns what is known of an execution, in the order of time."""
PAGE: Final = 200
PAGE_BYTES: Final = 1 * MIB
"""Bytes of a page's entries, one excepted."""
CONVERSATIONS: Final = 1_000
"""Tasks whose conversations are shown: those that have begun first."""
CHAT_MESSAGES: Final = 1_000
"""Messages of one conversation that are shown."""
CHAT_BYTES: Final = 4 * MIB
"""Bytes of all conversations that are looked at."""
TEXT: Final = 4_000
"""Characters of a message that are shown."""
_OWN: Final = """WITH own AS (SELECT task_id FROM tasks WHERE parent_task_id = $1 AND parent_task_id <> ''
    UNION ALL SELECT task_id FROM tasks WHERE task_id = $1)"""
_ATTEMPTS: Final = f"""{_OWN} SELECT assigned_ms, task_id, epoch, worker FROM (
    SELECT a.assigned_ms, a.task_id, a.epoch, a.worker FROM own JOIN task_attempts a ON a.task_id = own.task_id
    UNION ALL SELECT t.assigned_ms, t.task_id, t.epoch, t.assigned_to FROM own JOIN tasks t ON t.task_id = own.task_id
    WHERE t.epoch > 0 AND t.assigned_to <> ''
    AND NOT EXISTS (SELECT 1 FROM task_attempts b WHERE b.task_id = t.task_id AND b.epoch = t.epoch)) found
    WHERE assigned_ms > $2 OR (assigned_ms = $2 AND (task_id > $3 OR (task_id = $3 AND epoch > $4)))
    ORDER BY assigned_ms, task_id, epoch LIMIT $5"""  # noqa: S608
"""The present assignment is in a task's row, former ones are in `task_attempts`."""
_EVENTS: Final = f"""{_OWN} SELECT e.at_ms, e.task_id, e.number, LENGTH(e.event)
    FROM own JOIN task_events e ON e.task_id = own.task_id
    WHERE e.at_ms > $2 OR (e.at_ms = $2 AND (e.task_id > $3 OR (e.task_id = $3 AND e.number > $4)))
    ORDER BY e.at_ms, e.task_id, e.number LIMIT $5"""  # noqa: S608
HISTORY, ATTEMPT, EVENT, CHAT = range(4)
"""The sources, in the order of what has the same time."""


class TimelinePosition(NamedTuple):
    """Where an entry is in a timeline: by these, in this order."""

    at_ms: int = -1
    source: int = 0
    key: str = ""  # the task, "" of the history
    number: int = 0


class TimelineEntry(NamedTuple):
    """An entry: its position, its size in bytes, and what it says."""

    position: TimelinePosition
    size: int
    what: dict[str, Any] | bytes | None


class TimelineOperations:
    """Answers TIMELINE; `secondary_id` is the position behind which the page begins."""

    def __init__(self, engine: Engine, access: WorkspaceAccess, log: TopicLog) -> None:
        self._engine = engine
        self._access = access
        self._log = log
        self.table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {TIMELINE: self._timeline}
        )

    async def _timeline(self, asked: OperationAsked) -> OperationAnswer:
        """Return `{"entries": […], "next": position}`; "" is behind the last one."""
        row: ExecutionRow | None = await self._engine.database.read(lambda: execution_rows.load(asked.id))
        if row is None or await self._access.problem(asked.session, row.workspace, AccessLevel.READ):
            raise OperationError(f"execution {shown(asked.id)} not found")
        after, limit = _position(asked.secondary_id), (await asked.document()).get("limit", PAGE)
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 < limit <= PAGE:
            raise OperationError(f"limit is a number from 1 to {PAGE}")
        found: list[TimelineEntry] = await self._engine.database.read(lambda: _stored(row.execution_id, after))
        tasks: list[str] = await self._engine.database.read(lambda: _chatting(row.execution_id))
        found += await self._conversations(row.workspace, [row.execution_id, *tasks], after)
        found.sort(key=lambda one: one.position)
        page: list[TimelineEntry] = []
        size = 0
        for one in found[:limit]:
            size += one.size
            if page and size > PAGE_BYTES:
                break
            page.append(one)
        more = len(found) > len(page)
        entries = await self._engine.database.read(lambda: _told(row.execution_id, page))
        last = " ".join(map(str, page[-1].position)) if page and more else ""
        return OperationAnswer(write_object({"next": last}, entries=write_list(entries)))

    async def _conversations(
        self, workspace: str, tasks: Sequence[str], after: TimelinePosition
    ) -> list[TimelineEntry]:
        topics = [(task_topic(workspace, task_id, "msg"), 0) for task_id in tasks]
        pages = await self._log.read_topics(topics, rows=CHAT_MESSAGES, max_bytes=CHAT_BYTES)
        found: list[TimelineEntry] = []
        for task_id, (rows, _) in zip(tasks, pages, strict=True):
            for offset, at_ms, frame in rows:
                position = TimelinePosition(at_ms, CHAT, task_id, offset)
                if position > after:
                    found.append(TimelineEntry(position, min(len(frame), TEXT), bytes(frame)))
        return found


def _position(text: str) -> TimelinePosition:
    if not text:
        return TimelinePosition()
    at_ms, _, rest = text.partition(" ")
    source, _, rest = rest.partition(" ")
    key, _, number = rest.rpartition(" ")
    if not all(map(is_number, (at_ms, source, number))):
        raise OperationError("secondary_id is `next` of the page before")
    return TimelinePosition(int(at_ms), int(source), key, int(number))


def _behind(after: TimelinePosition, source: int) -> TimelinePosition:
    """Return behind which position of a source the page begins."""
    if source < after.source:
        return TimelinePosition(after.at_ms + 1, source)
    return after if source == after.source else TimelinePosition(after.at_ms, source, "", -1)


def _stored(execution_id: str, after: TimelinePosition) -> Program[list[TimelineEntry]]:
    """Read the positions of the next entries in the database of the tasks."""
    place = _behind(after, HISTORY)
    rows: list[Row] = yield Fetch(
        "SELECT at_ms, number, LENGTH(entry) FROM workflow_history WHERE execution_id = $1 "
        "AND (at_ms > $2 OR (at_ms = $2 AND number > $3)) ORDER BY at_ms, number LIMIT $4",
        (execution_id, place.at_ms, place.number, PAGE + 1),
    )
    found = [TimelineEntry(TimelinePosition(at_ms, HISTORY, "", number), size, None) for at_ms, number, size in rows]
    place = _behind(after, ATTEMPT)
    rows = yield Fetch(_ATTEMPTS, (execution_id, place.at_ms, place.key, place.number, PAGE + 1))
    found += [
        TimelineEntry(TimelinePosition(at_ms, ATTEMPT, task_id, epoch), 100, {"worker": worker})
        for at_ms, task_id, epoch, worker in rows
    ]
    place = _behind(after, EVENT)
    rows = yield Fetch(_EVENTS, (execution_id, place.at_ms, place.key, place.number, PAGE + 1))
    found += [
        TimelineEntry(TimelinePosition(at_ms, EVENT, task_id, number), size, None)
        for at_ms, task_id, number, size in rows
    ]
    return found


def _chatting(execution_id: str) -> Program[list[str]]:
    rows: list[Row] = yield Fetch(
        "SELECT task_id FROM tasks WHERE parent_task_id = $1 AND parent_task_id <> '' AND started_ms > 0 "
        "ORDER BY started_ms, task_id LIMIT $2",
        (execution_id, CONVERSATIONS),
    )
    return [task_id for (task_id,) in rows]


def _told(execution_id: str, page: Sequence[TimelineEntry]) -> Program[list[bytes]]:
    """Read what the entries of a page say as JSON, and of which steps their tasks are."""
    numbers = [one.position.number for one in page if one.position.source == HISTORY]
    entries: dict[int, bytes] = {}
    if numbers:
        rows: list[Row] = yield Fetch(
            "SELECT number, entry FROM workflow_history WHERE execution_id = $1 "  # noqa: S608
            f"AND number IN ({placeholders(len(numbers), 2)})",
            (execution_id, *numbers),
        )
        entries = {number: bytes(entry) for number, entry in rows}
    events: dict[tuple[str, int], bytes] = {}
    by_task: dict[str, list[int]] = {}
    for one in page:
        if one.position.source == EVENT:
            by_task.setdefault(one.position.key, []).append(one.position.number)
    for task_id, wanted in by_task.items():
        rows = yield Fetch(
            f"SELECT number, event FROM task_events WHERE task_id = $1 AND number IN ({placeholders(len(wanted), 2)})",  # noqa: S608
            (task_id, *wanted),
        )
        events |= {(task_id, number): bytes(event) for number, event in rows}
    tasks = list(dict.fromkeys(one.position.key for one in page if one.position.key))
    places: dict[str, dict[str, Any]] = {}
    if tasks:
        rows = yield Fetch(
            f"SELECT task_id, spec FROM tasks WHERE task_id IN ({placeholders(len(tasks))})",  # noqa: S608
            tuple(tasks),
        )
        places = {task_id: _place(bytes(spec)) for task_id, spec in rows if task_id != execution_id}
    told: list[bytes] = []
    for one in page:
        at, source, key, number = one.position
        about: dict[str, Any] = {"at": go_time(at)}
        if key:
            about |= {"task_id": key, **places.get(key, {})}
        match source:
            case _ if source == HISTORY and number in entries:
                told.append(write_entry({**about, "source": "history", "number": number}, entries[number]))
                continue
            case _ if source == ATTEMPT and isinstance(one.what, dict):
                about |= {"source": "attempt", "attempt": number, **one.what}
            case _ if source == EVENT and (key, number) in events:
                said = _event(events[key, number], own=key == execution_id)
                if said is None:
                    continue
                about |= said
            case _ if source == CHAT and isinstance(one.what, bytes):
                about |= _chat(one.what)
            case _:
                continue  # retention has deleted it meanwhile
        told.append(write_json(about))
    return told


def _place(spec: bytes) -> dict[str, Any]:
    """Return which step, item and try of it a task is."""
    metadata = pb.CreateTaskRequest.FromString(spec).metadata
    found: dict[str, Any] = {}
    if step := metadata.get("step_id"):
        item = metadata.get("item") or metadata.get("round")
        found["step"] = f"{step}[{item}]" if item else step
    if "compensates" in metadata:
        found["compensates"] = True
    return found


def _event(encoded: bytes, *, own: bool) -> dict[str, Any] | None:
    """Return what an event of a task says; None for what the history says, too."""
    event = pb.TaskEvent.FromString(encoded)
    match event.WhichOneof("event"):
        case "status_changed" if not own:
            changed = event.status_changed
            words = {"from": _word(changed.from_status), "to": _word(changed.to_status)}
            return {"source": "task", **words, **({"reason": changed.reason[:TEXT]} if changed.reason else {})}
        case "progress":
            report = event.progress
            found = {"source": "progress", "state": report.state, "progress": report.progress}
            return {**found, "message": report.message[:TEXT], "metadata": dict(report.metadata)}
    return None


def _word(status: pb.TaskStatus.ValueType) -> str:
    return pb.TaskStatus.Name(status).removeprefix("TASK_STATUS_").lower()


def _chat(frame: bytes) -> dict[str, Any]:
    message = pb.DownstreamMessage.FromString(frame).msg
    text = message.payload[: TEXT * 4].decode(errors="replace")
    kind = pb.MessageType.Name(message.message_type).lower()
    return {"source": "chat", "from": message.source_topic, "type": kind, "text": text[:TEXT]}
