"""Participants that take no work, and may have tasks of their own in hand: users, bridges, the workflow engine.

Most never have, so they have no row among the workers. One that is about to assign a task to itself, or to begin one or wait in it, gets a
row first: then its end, and that of its node, mean to its tasks what a worker's mean. One that is back gets a row if it has a task. They
may not report progress.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_trio.model.identity import Kind
from aether_trio.services.tasks.handlers.create import WORKER_KINDS
from aether_trio.services.tasks.transaction.rows import Worker
from aether_trio.services.tasks.transaction.session_batch import Join
from aether_trio.services.tasks.transaction.sessions import Joined
from aether_trio.services.tasks.write_batcher import Heartbeat, WriteBatcher
from aether_trio.session.session import Session


def is_guest(session: Session) -> bool:
    """Whether this session has no row among the workers unless it needs one. An orchestrator has its own."""
    kind = session.identity.kind
    return kind not in WORKER_KINDS and kind is not Kind.ORCHESTRATOR and not session.task_id


class Guests:
    """The sessions of this node that may have a row for their own tasks. `node()` names this node's lease."""

    def __init__(self, writes: WriteBatcher, node: Callable[[], str]) -> None:
        self._writes = writes
        self._node = node
        self._back: set[str] = set()
        self._enlisted: dict[str, int] = {}

    def came_back(self, session: Session, *, again: bool) -> None:
        """A guest continues an earlier session, or (`again`) its node has a new lease."""
        if not again:
            self._back.add(session.session_id)
        enlisted = session.session_id in self._enlisted
        self._join(session, back=True, again=again, guest=not enlisted)

    async def enlist(self, session: Session) -> None:
        """This session is about to have a task of its own in hand. Nothing if it is no guest."""
        if not is_guest(session):
            return
        number = self._enlisted.get(session.session_id)
        if number is None:
            back = session.session_id in self._back
            number = self._enlisted[session.session_id] = self._join(session, back=back, again=False, guest=False)
        await self._writes.wait_written(number)

    def forget(self, session: Session) -> bool:
        """This session is over; whether it may have had a row."""
        enlisted = self._enlisted.pop(session.session_id, None) is not None
        back = session.session_id in self._back
        self._back.discard(session.session_id)
        return enlisted or back

    def _join(self, session: Session, *, back: bool, again: bool, guest: bool) -> int:
        identity = session.identity
        worker = Worker(
            identity.text,
            session.session_id,
            self._node(),
            identity.workspace,
            identity.implementation,
            pooled=False,
            live=0,
            capacity=1,
        )
        joined = Joined(worker, back, again=again, over=lambda: session.detached, guest=guest)
        return self._writes.put(Join(joined), heartbeat=Heartbeat(identity.text))
