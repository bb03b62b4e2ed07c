"""A message to `tk::{workspace}::{task}::input` wakes a task that waits for it (reference: tasks.md 1.8, where nothing sends such messages).

    sender ──▶ topic log ──▶ rows of the tasks database (input_rows.py) ──▶ the wait that takes it

The payload is JSON with `metadata`, an object of strings; the task goes on if every pair of its `input_match` is in it. What is not such JSON
has no metadata, and is taken only by a wait for anything. An input that comes before the wait is kept for it.

The log and the tasks are different databases. What the log has accepted is taken over from there in its order, and the task remembers how far
(`input_offset`), so a crash, an outage or a second node that does the same takes nothing over twice. What is held in memory is only which
topics have something new. It can be lost: at the start, when the lease of another node has ended, and now and then (engine.py) all input
topics of the log are looked through. So an input is lost only if the tasks database is away for as long as the log keeps messages.

Inputs of unknown and of ended tasks are dropped, and those for which a task has no room.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.model.limits import MIB
from aether_trio.model.tasks import Status, Task
from aether_trio.routing.log import TopicLog
from aether_trio.services.tasks import input_rows, rows
from aether_trio.services.tasks.desk import Errand
from aether_trio.services.tasks.input_rows import Metadata
from aether_trio.services.tasks.transaction import Work
from aether_trio.storage.base import Database, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.batches import in_halves
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_WAITING: Final = 10_000
"""Topics with something new that are remembered one by one; beyond that all are looked through."""
GROUP: Final = 64
"""Topics that share a transaction."""
PAGE_ROWS: Final = 256
"""Inputs that are read of one topic at a time."""
PAGE_BYTES: Final = MIB
"""Of messages that are read for one transaction."""
RETRY_S: Final = 0.5


class _Place(NamedTuple):
    """An input topic."""

    topic: str
    workspace: str
    task_id: str


class _Page(NamedTuple):
    """What is new of a topic: (number in the log, metadata) each."""

    place: _Place
    inputs: Sequence[tuple[int, Metadata]]


class Inputs:
    """See the module docstring. `perform` runs a transaction."""

    def __init__(self, log: TopicLog, database: Database, perform: Callable[[Errand], Awaitable[object]]) -> None:
        self._log = log
        self._database = database
        self._perform = perform
        self._waiting: dict[str, int] = {}
        """Topics with something new, and the number of the last append to each that was made here."""
        self._all = True
        """All topics are to be looked through."""
        self._appended = 0
        self._work = trio.Event()
        self.dropped = 0
        """How many inputs found no room, since start."""

    def put(self, topic: str, number: int) -> None:
        """A message to an input topic was appended to the log under this number. Never blocks."""
        self._appended = number
        if topic in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[topic] = number
        else:
            self._all = True
        self._work.set()

    def look(self) -> None:
        """There may be something new that this process was not told of. Never blocks."""
        self._all = True
        self._work.set()

    async def run(self) -> None:
        """Take inputs over, until cancelled."""
        while True:
            try:
                if self._all:
                    await self._take_over_all()
                elif self._waiting:
                    await self._take_over_waiting()
                else:
                    await self._work.wait()
                    self._work = trio.Event()
            except StorageUnavailable as error:
                logger.warning("inputs of tasks wait for storage", reason=str(error))
                await trio.sleep(RETRY_S)

    async def _take_over_all(self) -> None:
        self._all = False
        try:
            await self._log.wait_settled(self._appended)
            after = 0
            while True:
                names, after = await self._log.input_topics(after, GROUP)
                while names:
                    names = await self._take_over(names)
                if not after:
                    return
        except BaseException:
            self._all = True
            raise

    async def _take_over_waiting(self) -> None:
        group = list(islice(self._waiting.items(), GROUP))
        await self._log.wait_settled(max(number for _, number in group))
        unfinished = set(await self._take_over([topic for topic, _ in group]))
        for topic, number in group:
            if topic not in unfinished and self._waiting[topic] == number:
                del self._waiting[topic]

    async def _take_over(self, topics: Sequence[str]) -> list[str]:
        """Take over a page of what is new in these topics; those that have more. Raises StorageUnavailable."""
        places = [place for topic in topics if (place := _place(topic)) is not None]
        known = await self._database.read(lambda: _positions(places))
        wanted = [(place.topic, after) for place, after in known]
        found = await self._log.read_topics(wanted, rows=PAGE_ROWS, max_bytes=PAGE_BYTES)
        pages = [
            _Page(place, [(offset, metadata_of(_payload(frame))) for offset, _, frame in messages])
            for (place, _), (messages, _) in zip(known, found, strict=True)
            if messages
        ]
        lost: set[_Place] = set()

        def refused(page: _Page, error: Exception) -> None:
            lost.add(page.place)
            logger.error("inputs are not taken over", task_id=page.place.task_id, exc_info=error)

        if pages:
            await in_halves(pages, self._write, refused)
        unfinished = [place for (place, _), (_, more) in zip(known, found, strict=True) if more]
        return [place.topic for place in unfinished if place not in lost]

    async def _write(self, pages: Sequence[_Page]) -> Sequence[None]:
        dropped: list[_Place] = []

        def errand(work: Work) -> Program[None]:
            dropped.clear()  # it may run again
            for page in pages:
                dropped.extend((yield from _write(work, page)))

        await self._perform(errand)
        for place in dropped:
            self.dropped += 1
            logger.warning("a task has no room for an input", task_id=place.task_id, workspace=place.workspace)
        return ()


def _place(topic: str) -> _Place | None:
    """An input topic by its name; None for any other."""
    parts = topic.split("::")
    if len(parts) != 4 or parts[0] != "tk" or parts[3] != "input":
        return None
    return _Place(topic, parts[1], parts[2])


def _positions(places: Sequence[_Place]) -> Program[list[tuple[_Place, int]]]:
    """How far the inputs of those tasks are taken over that there are."""
    found: list[tuple[_Place, int]] = []
    for place in places:
        known: list[Row] = yield Fetch(
            "SELECT input_offset FROM tasks WHERE task_id = $1 AND workspace = $2", (place.task_id, place.workspace)
        )
        if known:
            found.append((place, known[0][0]))
    return found


def _write(work: Work, page: _Page) -> Program[list[_Place]]:
    """Take over a page of one task's inputs; those that found no room."""
    dropped: list[_Place] = []
    task = yield from rows.load(page.place.task_id)
    if task is None:
        return dropped
    fresh = [one for one in page.inputs if one[0] > task.input_offset]
    if not fresh:
        return dropped  # another node has, or this one without being told
    before, task = task, task.changed({"input_offset": fresh[-1][0]})
    yield from rows.save(before, task)
    for offset, metadata in fresh:
        if task.is_final:
            break
        if _waits_for(task, metadata):
            yield from work.wake(task)
            task = (yield from rows.load(task.task_id)) or task
        elif not (yield from input_rows.keep(task.task_id, offset, metadata)):
            dropped.append(page.place)
    return dropped


def _waits_for(task: Task, metadata: Metadata) -> bool:
    wait = task.waits_for
    return task.status is Status.WAITING_INPUT and wait is not None and wait.takes(metadata)


def _payload(frame: bytes) -> bytes:
    """What the sender wrote, of a message as the log has it."""
    payload: bytes = pb.DownstreamMessage.FromString(frame).msg.payload
    return payload


def metadata_of(payload: bytes) -> Metadata:
    """The metadata of an input; empty if there is none that can be read."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    metadata = found.get("metadata") if isinstance(found, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}
