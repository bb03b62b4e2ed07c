"""The embedded engine takes its events, and each acts exactly once.

    log ─▶ session of the engine ─▶ page of events ─▶ handle: a transaction ─▶ acknowledgement
                                                      (effects and cursor)     (position in the log)

The cursor is a row of `workflow_cursors` in the database of the tasks; `handle` moves it with
`move_cursor` in the transaction that writes what the events cause. So an event acts when its
transaction is committed, whatever happens to the acknowledgement, and at no other time. The
position of the engine's identity in the log follows after the commit. Before any engine, embedded
or not, is sent its first message, the position is moved to the cursor (`align`). So each engine
goes on where the one before has stopped.

A page is handled only while its session holds the identity. In a cluster the identity's lock is
released after the writes of its session (storage/session_writes.py), and a node without its lease
writes nothing; within a node `align` waits for the page that is being handled.

The gateway may append the event of a task's end twice, after a crash (outbox_publisher.py). Such
events have ids, which `move_cursor` notes too; a copy is not handled.

A message that cannot be handled blocks no other one: `handle` gets it with a `reason`, also when it
has raised for it before. When it raises again, the message is logged and passed over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeAlias

import structlog
import trio

from aether_trio.delivery.outbox_subscription import Delivery
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status
from aether_trio.model.limits import KIB, MIB
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.events.old_ids import OldIds
from aether_trio.services.workflows.events.taken_events import ENGINE, TakenEvent, read_event
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import (
    Database,
    Execute,
    ExecuteMany,
    Fetch,
    FetchOne,
    Program,
    RefusedError,
    StorageUnavailable,
)
from aether_trio.storage.retry import RETRY_DELAY_S
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES
from aether_trio.transport.in_process import InProcessLink, StreamEnded

logger = structlog.get_logger("aether.workflows")

PAGE_EVENTS: Final = 256
PAGE_BYTES: Final = 1 * MIB
STEP_BYTES: Final = 64 * KIB
"""Size of payloads that are decoded before other tasks of the event loop run."""

IDS_KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long the id of an event is known. A copy comes at the next start of its task's node."""
Handle: TypeAlias = Callable[[Sequence[TakenEvent]], Awaitable[None]]
"""Handles a page of events in one transaction, which begins with `move_cursor(events)`.

It runs the transaction in its own task. It raises what the transaction raises: StalePage,
StorageUnavailable; anything else is the fault of an event.
"""


class StalePageError(Exception):
    """Some of these events were handled before: nothing of the page may be written."""

    def __init__(self, position: int) -> None:
        super().__init__(f"events up to {position} are handled")
        self.position = position


def move_cursor(events: Sequence[TakenEvent]) -> Program[None]:
    """Note that these events are handled. Raises StalePageError, for a rollback."""
    yield from _move(events[0].topic, events[0].offset, events[-1].offset)
    ids = [(event.event_id, event.at_ms) for event in events if event.event_id]
    if ids:
        yield ExecuteMany(
            "INSERT INTO workflow_event_ids (id, at_ms) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING", sorted(ids)
        )


def _move(topic: str, first: int, last: int) -> Program[None]:
    moved = yield Execute(
        "UPDATE workflow_cursors SET position = $3 WHERE name = $1 AND position < $2", (topic, first, last)
    )
    if not moved:
        moved = yield Execute(
            "INSERT INTO workflow_cursors (name, position) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            (topic, last),
        )
    if not moved:
        position = yield from cursor_position(topic)
        raise StalePageError(position or 0)


def _known(ids: Sequence[str]) -> Program[set[str]]:
    """Return those of these ids of events that are handled."""
    found: set[str] = set()
    for event_id in ids:
        rows = yield FetchOne("SELECT id FROM workflow_event_ids WHERE id = $1", (event_id,))
        found.update(row[0] for row in rows)
    return found


def cursor_position(topic: str = EVENT_INTAKE) -> Program[int | None]:
    """Read up to which message a topic's events are handled; None: none ever was."""
    rows = yield Fetch("SELECT position FROM workflow_cursors WHERE name = $1", (topic,))
    return int(rows[0][0]) if rows else None


async def pass_over(database: Database, events: Sequence[TakenEvent]) -> None:
    """Handle events by doing nothing: only the cursor moves."""
    await database.run(partial(move_cursor, events))


@dataclass(frozen=True, slots=True)
class IntakeStatistics:
    """Counters of the events that this node's embedded engine has taken since start."""

    taken: int
    poisoned: int
    """Of these, those that could not be handled."""
    repeated: int
    """Messages that were handled before, and not again."""
    missed: int
    """Times that messages were deleted, or were too large, before they were read."""
    lag: int
    """Messages of the topic that are not handled, as this node knows; 0 without a session."""


@dataclass(frozen=True, slots=True)
class IntakeProgress:
    """How many messages of the engine's topic are handled, and how many follow."""

    position: int
    lag: int
    by_other: bool
    """Whether an engine that is not embedded was the last one that took events."""


class EventIntake:
    """Takes the events of the embedded engine's session, page by page."""

    def __init__(
        self,
        database: Database,
        log: TopicLog,
        registry: SessionRegistry,
        clock: Clock,
        handle: Handle,
        prepare: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """`database` is that of the tasks; `prepare` gets ready for a session."""
        self._prepare = prepare
        self._database = database
        self._log = log
        self._registry = registry
        self._clock = clock
        self._handle = handle
        self._turn = trio.Lock()
        self._position: int | None = None
        """The cursor, as far as this session has moved it; None: unknown."""
        self._old_ids = OldIds(database, clock, "workflow_event_ids", "id", kept_ms=IDS_KEPT_MS)
        self._taken = self._poisoned = self._repeated = self._missed = 0

    def statistics(self) -> IntakeStatistics:
        """Return the counters of taken events since start."""
        topic = self._log.topics.find(EVENT_INTAKE)
        lag = 0 if topic is None or self._position is None else max(topic.end - self._position, 0)
        return IntakeStatistics(self._taken, self._poisoned, self._repeated, self._missed, lag)

    async def progress(self) -> IntakeProgress:
        """Return how far the engine is, on whatever node it is. Raises StorageUnavailable."""
        position = await self._database.read_small(cursor_position) or 0
        [(topic, cursor)] = await self._log.load([(EVENT_INTAKE, ENGINE)])
        self._log.unpin([topic])
        done = max(position, cursor or 0, topic.base)
        return IntakeProgress(done, max(topic.end - done, 0), (cursor or 0) > position)

    async def align(self) -> None:
        """Move the identity's position in the log to the cursor, for its next session.

        Waits until no page of an earlier session of this node is being handled. The session must
        hold the identity. Raises StorageUnavailable.
        """
        async with self._turn:
            position = await self._database.read(cursor_position)
            if position is None:
                return
            [(topic, cursor)] = await self._log.load([(EVENT_INTAKE, ENGINE)])
            try:
                if position > (cursor or 0):
                    self._log.cursors.advance(topic, ENGINE, position)
            finally:
                self._log.unpin([topic])

    def note_missed(self, text: str) -> None:
        """Note what the gateway tells the engine of messages that it will not get."""
        self._missed += 1
        logger.warning("the embedded workflow engine has missed messages", reason=text)

    async def take(self, link: InProcessLink) -> None:
        """Take the events of a session until it ends. Raises StreamEnded."""
        self._position = None
        try:
            async with self._turn:
                try:
                    await self._prepare()
                except StorageUnavailable as error:  # the first event waits for it
                    logger.info("the workflow engine gets ready with its first event", reason=str(error))
            while True:
                page = await link.deliveries(PAGE_EVENTS, PAGE_BYTES)
                events = await self._read(link, page)
                await self._advance(link, events, page[-1][2])
                link.acknowledge(page[-1])
        finally:
            self._position = None

    async def _read(self, link: InProcessLink, page: Sequence[Delivery]) -> list[TakenEvent]:
        times: Mapping[int, int] | None = None
        while times is None:
            try:
                times = await self._log.times(EVENT_INTAKE, page[0][2], page[-1][2])
            except StorageUnavailable:
                await self._wait_storage(link)
        now_ms = self._clock.now_ms()  # for a message that retention has deleted meanwhile
        events = []
        size = 0
        for frame, _, offset in page:
            size += len(frame)
            if size > STEP_BYTES:
                size = len(frame)
                await trio.lowlevel.checkpoint()
            read = partial(read_event, offset, frame, times.get(offset, now_ms))
            event = await in_json_thread(read, len(frame))
            if event is not None:
                events.append(event)
        return events

    async def _advance(self, link: InProcessLink, events: Sequence[TakenEvent], last: int) -> None:
        """Handle what is not handled, up to message `last`. Raises StreamEnded."""
        told = False
        while True:
            try:
                async with self._turn:
                    await self._advance_once(link, events, last)
                return
            except StalePageError as stale:
                self._position = stale.position
            except StorageUnavailable as error:
                self._position = None  # it may be committed all the same
                if not told:
                    told = True
                    logger.warning("events of workflows wait until storage answers", reason=str(error))
                await self._wait_storage(link)

    async def _wait_storage(self, link: InProcessLink) -> None:
        await trio.sleep(RETRY_DELAY_S)
        if link.ended is not None:
            raise link.ended

    async def _advance_once(self, link: InProcessLink, events: Sequence[TakenEvent], last: int) -> None:
        if self._position is None:
            self._position = await self._database.read(cursor_position) or 0
        rest = [event for event in events if event.offset > self._position]
        if ids := dict.fromkeys(event.event_id for event in rest if event.event_id):
            rest = _once(rest, await self._database.read(partial(_known, list(ids))))
            await self._old_ids.forget()
        self._repeated += len(events) - len(rest)
        if rest:
            await self._give(link, rest)
        if last > self._position:
            # Messages that are no events are behind the last one.
            await self._in_session(link, last, partial(self._skip, self._position + 1, last))

    async def _give(self, link: InProcessLink, events: Sequence[TakenEvent]) -> None:
        """Handle events, those apart for which `handle` raises."""
        try:
            await self._in_session(link, events[-1].offset, partial(self._handle, events))
        except (StreamEnded, StalePageError):
            raise
        except Exception as error:
            if isinstance(error, StorageUnavailable) and not isinstance(error, RefusedError):
                raise
            await self._give_apart(link, events, error)
        else:
            self._taken += len(events)
            self._poisoned += sum(bool(event.reason) for event in events)

    async def _give_apart(self, link: InProcessLink, events: Sequence[TakenEvent], error: Exception) -> None:
        if len(events) > 1:
            half = len(events) // 2
            await self._give(link, events[:half])
            await self._give(link, events[half:])
            return
        [event] = events
        logger.error(
            "an event could not be handled",
            offset=event.offset,
            principal=event.principal,
            names=event.names,
            exc_info=error,
        )
        if event.names:
            why = f"it could not be handled: {type(error).__name__}: {error}"
            await self._give(link, [replace(event, names=(), reason=why)])
        else:
            await self._in_session(link, event.offset, partial(self._skip, event.offset, event.offset))
            self._taken += 1
            self._poisoned += 1

    async def _skip(self, first: int, last: int) -> None:
        await self._database.run(partial(_move, EVENT_INTAKE, first, last))

    async def _in_session(self, link: InProcessLink, last: int, work: Callable[[], Awaitable[None]]) -> None:
        """Do what moves the cursor to `last`, as a session's write. Raises StreamEnded.

        The session holds the identity when the work begins, and what the work has written by its
        end, or will have, counts as the session's.
        """
        session = self._holder(link)
        writes = session.count_writes()
        writes.began()
        token = CURRENT_SESSION_WRITES.set(writes)
        try:
            await work()
        finally:
            CURRENT_SESSION_WRITES.reset(token)
            writes.over()
        self._position = last

    def _holder(self, link: InProcessLink) -> Session:
        session = self._registry.holder(ENGINE)
        if session is None or session.link is not link:
            raise link.ended or StreamEnded(Status.CANCELLED, "the session of the workflow engine has ended")
        return session


def _once(events: Sequence[TakenEvent], known: set[str]) -> list[TakenEvent]:
    """Return events without copies of those that are handled, or in front of them."""
    fresh = []
    for event in events:
        if event.event_id and event.event_id in known:
            continue
        known.add(event.event_id)
        fresh.append(event)
    return fresh
