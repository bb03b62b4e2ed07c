"""Relays workflow operations between nodes: a row and two notifications.

    asking node ─▶ row ─▶ "workflow-op" ─▶ engine's node ─▶ engine
                                                               │
    asking node ◀─ "workflow-answer" ◀─ response in the row ◀──┘

An operation and its answer are too large for a notification, so they are in a row of
`workflow_relays`. The asking node repeats its notification every ASK_AGAIN_S, and looks then
whether the engine's session still holds the identity, on any node. It also looks when a
node has died. It deletes its rows; rows of nodes that have died are deleted when they are old.

Invariants: a row is handed to the session that it names, and to no successor, at most once; an
answer is written once, as soon as storage answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.limits import MIB
from aether_trio.model.ownership import SessionRecord
from aether_trio.services.tasks.nodes import TaskNodes
from aether_trio.services.workflows.engine.relay import ANSWER_S, ENGINE_ENDED
from aether_trio.services.workflows.events.taken_events import ENGINE
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, ExecuteMany, Program, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S, retry_while_unavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.workflows")

OPERATIONS: Final = "workflow-op"
"""The body is the id of an operation for an engine of the notified node."""
ANSWERS: Final = "workflow-answer"
"""The body is the id of an operation of the notified node that is answered."""
ALL: Final = "*"

ASK_AGAIN_S: Final = 2.0
SWEEP_S: Final = 60.0
OLD_MS: Final = round(4 * ANSWER_S * 1000)
MAX_NOTED: Final = 10_000
"""Ids of operations that wait to be read; beyond it all are looked for."""
MAX_ANSWER_BYTES: Final = 64 * MIB
"""Answers that wait to be written; beyond it further ones are dropped."""
PAGE: Final = 16

_INSERT: Final = (
    "INSERT INTO workflow_relays (request_id, engine_session, caller, operation, response, asked_ms) "
    "VALUES ($1, $2, $3, $4, NULL, $5)"
)
_OPEN: Final = (
    "SELECT request_id FROM workflow_relays WHERE engine_session = $1 AND response IS NULL AND asked_ms > $2 "
    "ORDER BY asked_ms, request_id LIMIT 10000"
)
_ROW: Final = (
    "SELECT engine_session, caller, operation FROM workflow_relays "
    "WHERE request_id = $1 AND response IS NULL AND asked_ms > $2"
)
_RESPONSE: Final = "SELECT response FROM workflow_relays WHERE request_id = $1"
_RESPOND: Final = "UPDATE workflow_relays SET response = $2 WHERE request_id = $1 AND response IS NULL"


class RemoteRequests:
    """Asks engines of other nodes; the RemoteEngine of a node in a cluster."""

    def __init__(self, database: Database, nodes: TaskNodes, directory: SessionDirectory, clock: Clock) -> None:
        self._database = database.separate_queue()
        self._nodes = nodes
        self._directory = directory
        self._clock = clock
        self._waiting: dict[str, trio.Event] = {}
        self._over: list[str] = []
        self._work = AutoResetEvent()
        nodes.on_notification(ANSWERS, self._on_answer)

    async def ask(self, engine: SessionRecord, op: pb.WorkflowOperation) -> pb.WorkflowResponse:
        """Return an engine's answer, or why there is none. Waits until it is cancelled.

        Raises StorageUnavailable if the operation was not handed over, or may not have been.
        """
        request_id = op.request_id
        row = (request_id, engine.session_id, self._nodes.node, op.SerializeToString())
        try:
            await self._database.execute(_INSERT, *row, self._clock.now_ms())
            while True:
                news = self._waiting[request_id] = trio.Event()
                self._nodes.notify(str(engine.node_id), OPERATIONS, request_id)
                with trio.move_on_after(ASK_AGAIN_S):
                    await news.wait()
                try:
                    response = await self._look(engine, request_id)
                except StorageUnavailable:
                    await trio.sleep(RETRY_DELAY_S)
                    continue
                if response is not None:
                    return response
        finally:
            self._waiting.pop(request_id, None)
            self._over.append(request_id)
            self._work.set()

    async def _look(self, engine: SessionRecord, request_id: str) -> pb.WorkflowResponse | None:
        """Read the answer; an error if none can come any more, None if it may come."""
        if (response := await self._read(request_id)) is not None:
            return response
        holder = await self._directory.holder(ENGINE)
        if holder is not None and holder.session_id == engine.session_id:
            return None
        # It may have answered between the two reads.
        return await self._read(request_id) or pb.WorkflowResponse(error=ENGINE_ENDED)

    async def _read(self, request_id: str) -> pb.WorkflowResponse | None:
        rows = await self._database.fetch(_RESPONSE, request_id)
        return pb.WorkflowResponse.FromString(rows[0][0]) if rows and rows[0][0] is not None else None

    def _on_answer(self, body: str) -> None:
        if body == ALL:
            self.look()
        elif (event := self._waiting.get(body)) is not None:
            event.set()

    def look(self) -> None:
        """Look for all answers: a node may have died, or notifications were lost."""
        for event in self._waiting.values():
            event.set()

    async def run(self) -> None:
        """Delete rows whose answers are taken, and old ones, until cancelled."""
        swept = trio.current_time()
        while True:
            with trio.move_on_after(SWEEP_S):
                await self._work.wait()
            over, self._over = self._over, []
            try:
                if over:
                    await self._database.executemany(
                        "DELETE FROM workflow_relays WHERE request_id = $1", [(one,) for one in sorted(over)]
                    )
                if trio.current_time() >= swept + SWEEP_S:
                    swept = trio.current_time()
                    await self._database.execute(
                        "DELETE FROM workflow_relays WHERE asked_ms < $1", self._clock.now_ms() - OLD_MS
                    )
            except StorageUnavailable:
                # What is not deleted now is old soon.
                await trio.sleep(RETRY_DELAY_S)


HandOver: TypeAlias = Callable[
    [Session, pb.WorkflowOperation, str, Callable[[pb.WorkflowResponse], None]], Awaitable[str | None]
]
"""`WorkflowRelay.hand_over`."""


class _Written(NamedTuple):
    request_id: str
    caller: str
    response: bytes


class RemoteCallers:
    """Hands operations of other nodes to the engine of this one, and answers them.

    `hand_over` is that of WorkflowRelay.
    """

    def __init__(
        self,
        database: Database,
        nodes: TaskNodes,
        registry: SessionRegistry,
        clock: Clock,
        hand_over: HandOver,
    ) -> None:
        self._database = database.separate_queue()
        self._nodes = nodes
        self._registry = registry
        self._clock = clock
        self._hand_over = hand_over
        self._noted: dict[str, None] = {}
        self._all = False
        self._work = AutoResetEvent()
        self._taken: dict[str, float] = {}
        """Operations that were handed over, and until when no notification repeats that."""
        self._answers: deque[_Written] = deque()
        self._answer_bytes = 0
        self._answered = AutoResetEvent()
        self.dropped = 0
        """How many answers were dropped without room, since start."""
        nodes.on_notification(OPERATIONS, self._on_operation)

    def _on_operation(self, body: str) -> None:
        if body == ALL or len(self._noted) >= MAX_NOTED:
            self._all = True
        else:
            self._noted[body] = None
        self._work.set()

    async def run(self) -> None:
        """Hand over operations and write answers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_answers)
            while True:
                await self._work.wait()
                try:
                    await self._take_all()
                except StorageUnavailable as error:
                    # The asking node repeats its notification.
                    logger.info("operations of other nodes for the workflow engine wait", reason=str(error))

    async def _take_all(self) -> None:
        since_ms = self._clock.now_ms() - round(ANSWER_S * 1000)
        if self._all:
            self._all = False
            engine = self._registry.holder(ENGINE)
            rows = [] if engine is None else await self._database.fetch(_OPEN, engine.session_id, since_ms)
            self._noted.update((row[0], None) for row in rows)
        now = trio.current_time()
        for request_id in [one for one, until in self._taken.items() if until < now]:
            del self._taken[request_id]
        while self._noted:
            request_id = next(iter(self._noted))
            if request_id not in self._taken:
                await self._take(request_id, since_ms)
            self._noted.pop(request_id, None)

    async def _take(self, request_id: str, since_ms: int) -> None:
        rows = await self._database.fetch(_ROW, request_id, since_ms)
        if not rows:
            return
        [(session_id, caller, operation)] = rows
        answer = partial(self._answer, request_id, caller)
        engine = self._registry.holder(ENGINE)
        if engine is None or engine.session_id != session_id:
            answer(pb.WorkflowResponse(error=ENGINE_ENDED))
            return
        # Older than this, the row is not read any more.
        self._taken[request_id] = trio.current_time() + 2 * ANSWER_S
        refusal = await self._hand_over(engine, pb.WorkflowOperation.FromString(operation), "", answer)
        if refusal is not None:
            answer(pb.WorkflowResponse(error=refusal))

    def _answer(self, request_id: str, caller: str, response: pb.WorkflowResponse) -> None:
        data = response.SerializeToString()
        if self._answer_bytes + len(data) > MAX_ANSWER_BYTES:
            self.dropped += 1
            logger.warning("an answer of the workflow engine to another node was dropped, as too many wait")
            return
        self._answer_bytes += len(data)
        self._answers.append(_Written(request_id, caller, data))
        self._answered.set()

    async def _write_answers(self) -> None:
        while True:
            await self._answered.wait()
            while self._answers:
                page = [self._answers.popleft() for _ in range(min(PAGE, len(self._answers)))]
                try:
                    await retry_while_unavailable(
                        partial(self._database.run, partial(_respond, page)), "answers to other nodes", logger
                    )
                except StorageUnavailable as error:
                    logger.error("answers of the workflow engine to another node are refused", reason=str(error))
                finally:
                    self._answer_bytes -= sum(len(one.response) for one in page)
                for one in page:
                    self._nodes.notify(one.caller, ANSWERS, one.request_id)


def _respond(page: list[_Written]) -> Program[None]:
    yield ExecuteMany(_RESPOND, [(one.request_id, one.response) for one in sorted(page)])
