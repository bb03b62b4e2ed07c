"""The gateway sends assignments of tasks to the workers connected to this node.

A worker that reads is sent its assignments at once, with its other messages of this turn of the
event loop. For a worker that does not read, and for very many tasks, only the ids are kept, and the
tasks are read again when there is room.

An orchestrator is sent waiting starts in the order of their priority. Each has a separate token
(tasks.md 1.13), made on the orchestrator's node when the start is sent: only that node, the
orchestrator and the agent ever have a token in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import structlog

from aether_trio.concurrency.kicks import Kickable
from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.services.tasks.audit_events import TaskAudit
from aether_trio.services.tasks.protobuf import assignment
from aether_trio.services.tasks.transaction import payloads, startup, task_rows
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.tokens import hash_token, new_token
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program
from aether_trio.storage.retry import retry_while_unavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

STARTS_AT_ONCE: Final = 32
"""Starts that an orchestrator is sent in one step, which is a transaction."""

_Mint: TypeAlias = Callable[[Context], Program[list[TaskRow | None]]]
_Effects: TypeAlias = Callable[[list[TaskRow | None]], None]
RunMint: TypeAlias = Callable[[_Mint, _Effects], Awaitable[list[TaskRow | None]]]
"""`Engine.run_program`."""


class AssignmentSender:
    """Sends task assignments to workers, and agent starts to orchestrators."""

    def __init__(
        self,
        database: Database,
        kick: Callable[[Kickable], None],
        run_program: RunMint,
        random_bytes: Callable[[int], bytes],
        audit: TaskAudit,
    ) -> None:
        self._database = database
        self._audit = audit
        self._kick = kick
        self._run_program = run_program
        self._random_bytes = random_bytes
        self._waiting: dict[str, deque[tuple[str, int]]] = {}
        self._starts: dict[str, list[TaskRow]] = {}
        self.pushed = 0

    def push(self, session: Session, task: TaskRow, payload: bytes | None) -> None:
        """Send a worker its assigned task, or queue the task's id until it has room.

        Skips a session that has ended, as its end gives the task back. Never blocks.
        """
        if session.detached or session.nursery is None:
            return
        if task.status is StoredStatus.STARTING:
            starts = self._starts.get(session.session_id)
            if starts is None:
                starts = self._starts[session.session_id] = []
                session.nursery.start_soon(self._start, session, starts, name="starts")
            starts.append(task)
            return
        waiting = self._waiting.get(session.session_id)
        if waiting is None:
            if payload is not None and session.outbox.control_has_room:
                self._put(session, task, payload)
                return
            waiting = self._waiting[session.session_id] = deque()
            session.nursery.start_soon(self._drain, session, waiting, name="assignments")
        waiting.append((task.task_id, task.epoch))

    def _put(self, session: Session, task: TaskRow, payload: bytes) -> None:
        self.pushed += 1
        given = pb.DownstreamMessage(task_assignment=assignment(task, payload, numbered=session.numbered))
        session.outbox.queue_control(given.SerializeToString())
        self._kick(session.outbox)

    async def _start(self, session: Session, starts: list[TaskRow]) -> None:
        try:
            while starts:
                starts.sort(key=lambda task: (-task.priority, task.order_us))
                some = starts[:STARTS_AT_ONCE]
                del starts[:STARTS_AT_ONCE]
                await self.send_starts(session, some)
        finally:
            del self._starts[session.session_id]

    async def send_starts(self, session: Session, starts: Sequence[TaskRow]) -> None:
        """Send an orchestrator agent starts with fresh tokens. Ends with the session."""
        minted = [(task, new_token(self._random_bytes)) for task in starts]

        def mint(context: Context) -> Program[list[TaskRow | None]]:
            found = []
            for task, token in minted:
                tx = TaskTransaction(context)
                found.append((yield from startup.issue_token(tx, task.task_id, task.epoch, hash_token(token))))
            return found

        found = await retry_while_unavailable(lambda: self._run_program(mint, _no_effects), "starts of agents", logger)
        for still, (_, token) in zip(found, minted, strict=True):
            if still is None:
                continue  # another orchestrator has the start by now, or its agent has connected
            await session.outbox.wait_control_room()
            if not session.detached:
                self.pushed += 1
                self._audit.token_made(session, still.task_id, still.workspace, still.target)
                told = startup.start_assignment(still, token, numbered=session.numbered)
                session.put(pb.DownstreamMessage(task_assignment=told))

    async def _drain(self, session: Session, waiting: deque[tuple[str, int]]) -> None:
        try:
            while waiting:
                await session.outbox.wait_control_room()
                task_id, epoch = waiting[0]
                read = partial(self._database.read, partial(_with_payload, task_id))
                task, payload = await retry_while_unavailable(read, "assignments", logger)
                waiting.popleft()
                if task is not None and task.epoch == epoch and task.status is StoredStatus.ASSIGNED:
                    self._put(session, task, payload)
        finally:
            del self._waiting[session.session_id]


def _no_effects(_found: list[TaskRow | None]) -> None:
    return None


def _with_payload(task_id: str) -> Program[tuple[TaskRow | None, bytes]]:
    task = yield from task_rows.load(task_id)
    payload = yield from payloads.load(task_id)
    return task, payload
