"""The gateway wakes tasks by messages to `tk::{workspace}::{task}::input`.

    sender ──▶ topic log ──▶ rows of the database (unused_inputs.py) ──▶ the wait that takes it

The payload is JSON with `metadata`, an object of strings. A task that waits for input goes on if
every pair of its `input_match` is in the metadata (tasks.md 1.8), and the sender is its
`expected_principal`, if it names one. Any other payload has no metadata, and only a wait for any
input takes it. Who counts as the sender is the participant that sent, also when it sent in the name
of another principal.

The task stores up to which number of the log its inputs are copied (`input_offset`): no crash,
outage or second node copies an input twice. Names of topics with new messages are in memory only,
so all input topics are checked at the start, after another node's end, and now and then. Topics
take turns, a page each, so none waits for another one's backlog. Inputs of unknown and of ended
tasks are dropped, and those for which a task has no room.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.limits import KIB, MIB
from aether_trio.model.tasks import StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.form import asked_by_gateway
from aether_trio.model.text import encodable
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.services.tasks.transaction import task_rows, unused_inputs
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.services.tasks.transaction.unused_inputs import Metadata, TaskInput
from aether_trio.storage.base import Database, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.retry import RETRY_DELAY_S
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_WAITING: Final = 10_000
"""Topics with new messages that are remembered; beyond that all topics are checked."""
SHARE: Final = 10
"""A workspace may have a tenth of these."""
GROUP: Final = 64
"""Topics that share a transaction."""
PAGE_ROWS: Final = 256
"""Inputs that are read of one topic at a time."""
PAGE_BYTES: Final = MIB
"""Size of the messages that are read for one transaction."""
STEP_BYTES: Final = 64 * KIB
"""Size of payloads that are decoded before other tasks of the event loop run."""
WORKFLOW_ENGINE: Final = Identity(Kind.WORKFLOW_ENGINE).text


class _Place(NamedTuple):
    """An input topic, with its workspace and its task."""

    topic: str
    workspace: str
    task_id: str


class _Page(NamedTuple):
    """New inputs of a task, from its topic."""

    place: _Place
    inputs: Sequence[TaskInput]


class _Waiting:
    """Input topics with new messages, each with the number of its last append here."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def put(self, topic: str, number: int) -> bool:
        """Queue a task's input topic for copying; False if its workspace has no room."""
        if topic not in self._numbers:
            workspace = _workspace_of(topic)
            if len(self._numbers) >= MAX_WAITING or self._counts[workspace] >= max(MAX_WAITING // SHARE, 1):
                return False
            self._counts[workspace] += 1
        self._numbers[topic] = max(number, self._numbers.get(topic, 0))
        return True

    def first(self) -> dict[str, int]:
        """Return the next input topics to be copied; they stay queued."""
        return dict(islice(self._numbers.items(), GROUP))

    def had_turn(self, topic: str, number: int, *, unfinished: bool) -> None:
        """Remove an input topic that was copied up to this append, or queue it again."""
        latest = self._numbers.pop(topic)
        if unfinished or latest != number:
            self._numbers[topic] = latest
        else:
            self._counts[_workspace_of(topic)] -= 1
            if not self._counts[_workspace_of(topic)]:
                del self._counts[_workspace_of(topic)]


class InputConsumer:
    """Copies task inputs from the topic log to the database, and wakes waiting tasks."""

    def __init__(self, log: TopicLog, database: Database, perform: Callable[[Mutation], Awaitable[object]]) -> None:
        self._log = log
        self._database = database
        self._perform = perform
        self._waiting = _Waiting()
        self._all = True
        """Whether all topics are to be checked, from the first one on."""
        self._rest: tuple[int, int] | None = None
        """For a check of all topics in progress: the topic ids after and up to which to go on."""
        self._appended = 0
        self._work = AutoResetEvent()
        self.dropped = 0
        """How many inputs were dropped without room, since start."""

    def put(self, topic: str, number: int) -> None:
        """Note that a message was appended to a task's input topic. Never blocks."""
        self._appended = number
        if not self._waiting.put(topic, number):
            self._all = True
        self._work.set()

    def look(self) -> None:
        """Have all input topics checked: some may have messages that were not noted."""
        self._all = True
        self._work.set()

    async def run(self) -> None:
        """Copy task inputs from the topic log until cancelled."""
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
            except StorageUnavailable as error:
                logger.warning("inputs of tasks are copied from the topic log when storage answers", reason=str(error))
                await trio.sleep(RETRY_DELAY_S)

    async def _begin_to_look(self) -> None:
        """Begin a check of all input topics; `put` notes topics that are created later."""
        self._all = False  # a topic that is put meanwhile, and finds no room, causes another check
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
        """Copy a page of inputs of each topic; return the topics that have more."""
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
            logger.error(
                "inputs of a task were dropped, as they cannot be stored", task_id=page.place.task_id, exc_info=error
            )

        if pages:
            await in_halves(pages, self._write, refused)
        unfinished = [place for (place, _), (_, more) in zip(known, found, strict=True) if more]
        return [place.topic for place in unfinished if place not in lost]

    async def _write(self, pages: Sequence[_Page]) -> Sequence[None]:
        dropped: list[_Place] = []

        def mutation(tx: TaskTransaction) -> Program[None]:
            dropped.clear()  # a program may run again
            for page in pages:
                dropped.extend((yield from _write(tx, page)))

        await self._perform(mutation)
        for place, count in Counter(dropped).items():
            self.dropped += count
            logger.warning(
                "inputs of a task were dropped, as it keeps too many",
                task_id=place.task_id,
                workspace=place.workspace,
                inputs=count,
            )
        return ()


def _place(topic: str) -> _Place | None:
    parts = topic.split("::")
    if len(parts) != 4 or parts[0] != "tk" or parts[3] != "input":
        return None
    return _Place(topic, parts[1], parts[2])


def _workspace_of(topic: str) -> str:
    return topic.split("::", 2)[1]


async def _read(messages: Sequence[tuple[int, bytes]]) -> list[TaskInput]:
    """Decode inputs from the log; large ones take time, so other tasks run in between."""
    inputs = []
    size = 0
    for offset, frame in messages:
        size += len(frame)
        if size > STEP_BYTES:
            size = len(frame)
            await trio.lowlevel.checkpoint()
        message = pb.DownstreamMessage.FromString(frame).msg
        metadata, payload = read_input(message.payload)
        inputs.append(TaskInput(offset, metadata, _sender_of(message.source_topic), payload))
    return inputs


def _sender_of(source_topic: str) -> str:
    """Return the identity of a message's sender: its topic, but for the engine."""
    return WORKFLOW_ENGINE if source_topic == EVENT_INTAKE else source_topic


def _positions(places: Sequence[_Place]) -> Program[list[tuple[_Place, int]]]:
    """Read up to which log number the inputs of existing tasks are copied."""
    found: list[tuple[_Place, int]] = []
    for place in places:
        known: list[Row] = yield Fetch(
            "SELECT input_offset FROM tasks WHERE task_id = $1 AND workspace = $2", (place.task_id, place.workspace)
        )
        if known:
            found.append((place, known[0][0]))
    return found


def _write(tx: TaskTransaction, page: _Page) -> Program[list[_Place]]:
    """Copy a page of inputs to one task; return those that it has no room to keep."""
    dropped: list[_Place] = []
    task = yield from task_rows.load(page.place.task_id)
    if task is None:
        return dropped
    fresh = [one for one in page.inputs if one.offset > task.input_offset]
    if not fresh:
        return dropped  # another node has copied them, or this one in a commit without an answer
    before, task = task, task.changed({"input_offset": fresh[-1].offset})
    yield from task_rows.save(before, task)
    wait = _wait_of(task)
    room = None
    for one in fresh:
        if task.is_final:
            break
        if wait is not None and wait.takes(one.metadata, one.sender):
            yield from unused_inputs.note_used(task, one)
            yield from tx.wake(task)
            task = (yield from task_rows.load(task.task_id)) or task
            wait = _wait_of(task)
            continue
        if asked_by_gateway(one.metadata):
            continue  # the answer to a question that is over: no later wait takes it
        room = room or (yield from unused_inputs.room(task.task_id))
        if room.take(one):
            yield from unused_inputs.keep(task.task_id, one)
        else:
            dropped.append(page.place)
    return dropped


def _wait_of(task: TaskRow) -> Wait | None:
    return task.waits_for if task.status is StoredStatus.WAITING_INPUT else None


def read_input(document: bytes) -> tuple[Metadata, bytes]:
    """Return metadata and payload of an input's JSON document; empty if it is none."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return {}, b""
    if not isinstance(found, dict):
        return {}, b""
    metadata, encoded = found.get("metadata"), found.get("payload_base64")
    kept = (
        {encodable(key): encodable(value) for key, value in metadata.items() if isinstance(value, str)}
        if isinstance(metadata, dict)
        else {}
    )
    try:
        payload = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except ValueError:
        payload = b""
    return kept, payload
