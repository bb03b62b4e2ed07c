"""A message to `tk::{workspace}::{task}::input` wakes a task that waits for it (reference: tasks.md 1.8, where nothing sends such messages).

    sender ──▶ topic log ──▶ rows of the tasks database (input_rows.py) ──▶ the wait that takes it

The payload is JSON with `metadata`, an object of strings; the task goes on if every pair of its `input_match` is in it. What is not such JSON
has no metadata, and is taken only by a wait for anything. An input that comes before the wait is kept for it.

The log and the tasks are different databases. What the log has accepted is taken over from there in its order, and the task remembers how far
(`input_offset`), so a crash, an outage or a second node that does the same takes nothing over twice. What is held in memory is only which
topics have something new. It can be lost: at the start, when the lease of another node has ended, and now and then (engine.py) all input
topics of the log are looked through. So an input is lost only if the tasks database is away for as long as the log keeps messages.

No topic waits for another one's backlog: a transaction takes a page of each of GROUP topics, those that have more queue again behind the
others, and a look through all topics goes on a page at a time between them.

InputConsumer of unknown and of ended tasks are dropped, and those for which a task has no room.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.limits import KIB, MIB
from aether_trio.model.tasks import Status, Task, Wait
from aether_trio.services.tasks.transaction import input_rows, task_rows
from aether_trio.services.tasks.transaction.input_rows import Metadata
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.storage.base import Database, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_WAITING: Final = 10_000
"""Topics with something new that are remembered one by one; beyond that all are looked through."""
SHARE: Final = 10
"""Those of one workspace may be the tenth part."""
GROUP: Final = 64
"""Topics that share a transaction."""
PAGE_ROWS: Final = 256
"""InputConsumer that are read of one topic at a time."""
PAGE_BYTES: Final = MIB
"""Of messages that are read for one transaction."""
STEP_BYTES: Final = 64 * KIB
"""Of payloads that are read before others have their turn in the event loop."""
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


class _Waiting:
    """Topics with something new in the order of their turns, and the number of the last append to each that was made here, 0 for none."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def put(self, topic: str, number: int) -> bool:
        """Add a topic, or what is new of it; False if there is no room for it."""
        if topic not in self._numbers:
            workspace = _workspace_of(topic)
            if len(self._numbers) >= MAX_WAITING or self._counts[workspace] >= max(MAX_WAITING // SHARE, 1):
                return False
            self._counts[workspace] += 1
        self._numbers[topic] = max(number, self._numbers.get(topic, 0))
        return True

    def first(self) -> dict[str, int]:
        """Those whose turn it is; they stay here."""
        return dict(islice(self._numbers.items(), GROUP))

    def had_turn(self, topic: str, number: int, *, unfinished: bool) -> None:
        """It was taken over up to this append. If there is more of it, it queues again."""
        latest = self._numbers.pop(topic)
        if unfinished or latest != number:
            self._numbers[topic] = latest
        else:
            self._counts[_workspace_of(topic)] -= 1
            if not self._counts[_workspace_of(topic)]:
                del self._counts[_workspace_of(topic)]


class InputConsumer:
    """See the module docstring. `perform` runs a transaction."""

    def __init__(self, log: TopicLog, database: Database, perform: Callable[[Mutation], Awaitable[object]]) -> None:
        self._log = log
        self._database = database
        self._perform = perform
        self._waiting = _Waiting()
        self._all = True
        """All topics are to be looked through, from the first one on."""
        self._rest: tuple[int, int] | None = None
        """Of a look through all topics that has begun: the ids that the rest is behind, and up to."""
        self._appended = 0
        self._work = trio.Event()
        self.dropped = 0
        """How many inputs found no room, since start."""

    def put(self, topic: str, number: int) -> None:
        """A message to an input topic was appended to the log under this number. Never blocks."""
        self._appended = number
        if not self._waiting.put(topic, number):
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
                if self._waiting:
                    await self._take_over_waiting()
                if self._rest is not None:
                    await self._look_on(*self._rest)
                elif self._all:
                    await self._begin_to_look()
                elif not self._waiting:
                    await self._work.wait()
                    self._work = trio.Event()
            except StorageUnavailable as error:
                logger.warning("inputs of tasks wait for storage", reason=str(error))
                await trio.sleep(RETRY_S)

    async def _begin_to_look(self) -> None:
        """Topics that are made from now on are put here, or looked for after this look."""
        self._all = False  # what is put here meanwhile, and finds no room, may have it looked for once more
        try:
            await self._log.wait_settled(self._appended)
            self._rest = 0, await self._log.last_topic()
        except BaseException:
            self._all = True
            raise

    async def _look_on(self, after: int, last: int) -> None:
        names, behind = await self._log.input_topics(after, last, GROUP)
        for topic in await self._take_over(names):
            if not self._waiting.put(topic, 0):
                self._all = True
        self._rest = (behind, last) if behind else None

    async def _take_over_waiting(self) -> None:
        group = self._waiting.first()
        await self._log.wait_settled(max(group.values()))
        unfinished = set(await self._take_over(list(group)))
        for topic, number in group.items():
            self._waiting.had_turn(topic, number, unfinished=topic in unfinished)

    async def _take_over(self, topics: Sequence[str]) -> list[str]:
        """Take over a page of what is new in these topics; those that have more. Raises StorageUnavailable."""
        places = [place for topic in topics if (place := _place(topic)) is not None]
        known = await self._database.read(lambda: _positions(places))
        wanted = [(place.topic, after) for place, after in known]
        found = await self._log.read_topics(wanted, rows=PAGE_ROWS, max_bytes=PAGE_BYTES)
        pages = []
        for (place, _), (messages, _) in zip(known, found, strict=True):
            if messages:
                pages.append(_Page(place, await _read([(offset, frame) for offset, _, frame in messages])))
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

        def mutation(tx: TaskTransaction) -> Program[None]:
            dropped.clear()  # it may run again
            for page in pages:
                dropped.extend((yield from _write(tx, page)))

        await self._perform(mutation)
        for place, count in Counter(dropped).items():
            self.dropped += count
            logger.warning(
                "a task has no room for inputs", task_id=place.task_id, workspace=place.workspace, inputs=count
            )
        return ()


def _place(topic: str) -> _Place | None:
    """An input topic by its name; None for any other."""
    parts = topic.split("::")
    if len(parts) != 4 or parts[0] != "tk" or parts[3] != "input":
        return None
    return _Place(topic, parts[1], parts[2])


def _workspace_of(topic: str) -> str:
    return topic.split("::", 2)[1]


async def _read(messages: Sequence[tuple[int, bytes]]) -> list[tuple[int, Metadata]]:
    """Those inputs, of messages as the log has them. Large ones take some time each."""
    inputs = []
    size = 0
    for offset, frame in messages:
        size += len(frame)
        if size > STEP_BYTES:
            size = len(frame)
            await trio.lowlevel.checkpoint()
        inputs.append((offset, metadata_of(_payload(frame))))
    return inputs


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


def _write(tx: TaskTransaction, page: _Page) -> Program[list[_Place]]:
    """Take over a page of one task's inputs; those that found no room."""
    dropped: list[_Place] = []
    task = yield from task_rows.load(page.place.task_id)
    if task is None:
        return dropped
    fresh = [one for one in page.inputs if one[0] > task.input_offset]
    if not fresh:
        return dropped  # another node has, or this one without being told
    before, task = task, task.changed({"input_offset": fresh[-1][0]})
    yield from task_rows.save(before, task)
    wait = _wait_of(task)
    room = None
    for offset, metadata in fresh:
        if task.is_final:
            break
        if wait is not None and wait.takes(metadata):
            yield from tx.wake(task)
            task = (yield from task_rows.load(task.task_id)) or task
            wait = _wait_of(task)
            continue
        room = room or (yield from input_rows.room(task.task_id))
        if room.take(metadata):
            yield from input_rows.keep(task.task_id, offset, metadata)
        else:
            dropped.append(page.place)
    return dropped


def _wait_of(task: Task) -> Wait | None:
    """The wait of this task that an input may end."""
    return task.waits_for if task.status is Status.WAITING_INPUT else None


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
