"""The conversation of a task, `tk::{workspace}::{task}::msg`, for the user who takes part in it (reference: tasks.md 1.14, core.md 2.4).

    commit ──▶ notice for the user ──▶ every node with windows of that user ──▶ look: which tasks does he take part in now?
    a window comes to a workspace ─────────────────────────────────────────────▶   open what is missing, let go of what is over

The table says what a window listens to: the tasks of the workspace that it is in, made for its user, with `subject_participant` in their
metadata, that have begun and may go on. A notice only says when to look. One may be lost between nodes, so they look by themselves, too.

What was said last may be stored after the task has ended, so a window listens for LINGER_S more, and until it is done with all of it.

Invariants: what runs for a window runs in its session's nursery; a window is in one look at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.model.identity import Kind
from aether_trio.model.topics import progress_of_user, task_topic
from aether_trio.services.tasks.delivery.status_updates import PARTICIPANT, SOURCE
from aether_trio.session.session import Session
from aether_trio.session.subscriptions import Wanted
from aether_trio.storage.base import Database, Fetch, Program, Row, StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_CHATS: Final = 256
"""Of one window: those of its user's tasks that began last."""
LOOKED_AT: Final = 4 * MAX_CHATS
"""Of the user's tasks, when some of them are no conversations."""
PAGE: Final = 64
LINGER_S: Final = 30.0
RETRY_S: Final = 1.0
LOOK_S: Final = 60.0
"""Between two looks of a window that nobody told anything, where there are other nodes."""
_TAKING_PART: Final = """SELECT task_id, spec FROM tasks WHERE subject_id = $1 AND subject_id <> '' AND workspace = $2
    AND status NOT IN ('completed', 'failed', 'cancelled', 'dlq', 'rejected')
    AND started_ms > 0 AND lower(subject_type) = 'user' ORDER BY started_ms DESC, task_id LIMIT $3 OFFSET $4"""


@dataclass(slots=True, eq=False)
class _Window:
    """`open` are the tasks that it listens to, `over` those of them that have ended, with a mark for each end."""

    session: Session
    database: Database
    open: set[str] = field(default_factory=set)
    over: dict[str, object] = field(default_factory=dict)
    looking: bool = False
    again: bool = False

    def moved(self) -> None:
        """The window is in another workspace, and what it listened to is closed."""
        self.open.clear()
        self.over.clear()
        self.look_soon()

    def look_soon(self) -> None:
        """See what the table says, in the session's nursery. Never blocks."""
        self.again = True
        nursery = self.session.nursery
        if not self.looking and nursery is not None:
            self.looking = True
            nursery.start_soon(self._look, name="task-chats")

    async def _look(self) -> None:
        try:
            while self.again and not self.session.detached:
                self.again = False
                try:
                    await self._settle()
                except StorageUnavailable as error:
                    logger.info("the chats of a window wait for storage", reason=str(error))
                    self.again = True
                    await trio.sleep(RETRY_S)
        finally:
            self.looking = False

    async def _settle(self) -> None:
        """Listen to what the table says."""
        session = self.session
        workspace, user_id = session.workspace, session.identity.user_id
        wanted = await self.database.read(lambda: _taking_part(user_id, workspace)) if workspace else []
        if session.workspace != workspace:
            return  # it is looked at again
        for task_id in self.open.difference(wanted, self.over):
            mark = self.over[task_id] = object()
            assert session.nursery is not None
            topic = task_topic(workspace, task_id, "msg")
            session.nursery.start_soon(self._leave_later, task_id, topic, mark, name="task-chat-over")
        for task_id in wanted:
            self.over.pop(task_id, None)
        for task_id in wanted:
            if task_id not in self.open:
                assert session.subscriptions is not None
                wish = Wanted(task_topic(workspace, task_id, "msg"), named=True, from_oldest=True)
                if not await session.subscriptions.also(wish):
                    return
                self.open.add(task_id)

    async def _leave_later(self, task_id: str, topic: str, mark: object) -> None:
        while True:
            await trio.sleep(LINGER_S)
            subscriptions = self.session.subscriptions
            if subscriptions is None or self.over.get(task_id) is not mark:
                return
            if subscriptions.is_level(topic):
                del self.over[task_id]
                self.open.discard(task_id)
                subscriptions.no_longer(topic)
                return


class _User:
    """The windows of one user, and a listener beside them: what a gateway says to all of them is of tasks that he takes part in."""

    def __init__(self, user_id: str) -> None:
        self.ephemeral_topic = progress_of_user(user_id)
        self.listener = EphemeralListener(f"us::{user_id}", "", self)
        self.windows: dict[Session, _Window] = {}

    def put_ephemeral(self, frame: bytes) -> None:
        """See EphemeralSink."""
        if pb.DownstreamMessage.FromString(frame).progress_update.source == SOURCE:
            for window in self.windows.values():
                window.look_soon()

    def kick(self) -> None:
        """See EphemeralSink."""


class Conversations:
    """All windows of a node that are, or were, in a workspace."""

    def __init__(self, database: Database, ephemeral_topics: EphemeralTopics) -> None:
        self._database = database
        self._ephemeral_topics = ephemeral_topics
        self._users: dict[str, _User] = {}

    def moved(self, session: Session) -> None:
        """A session is in another workspace. Never blocks."""
        if session.identity.kind is not Kind.USER or session.detached:
            return
        user = self._users.get(session.identity.user_id)
        if user is None:
            user = self._users[session.identity.user_id] = _User(session.identity.user_id)
            self._ephemeral_topics.listen(user.ephemeral_topic, user.listener)
        window = user.windows.get(session)
        if window is None:
            window = user.windows[session] = _Window(session, self._database)
        window.moved()

    def ended(self, session: Session) -> None:
        """A session is over. Idempotent."""
        user = self._users.get(session.identity.user_id)
        if user is not None:
            user.windows.pop(session, None)
            if not user.windows:
                self._ephemeral_topics.unlisten(user.ephemeral_topic, user.listener)
                del self._users[session.identity.user_id]

    async def run(self) -> None:
        """Look again, now and then. Runs until cancelled; only where there are other nodes."""
        while True:
            windows = [window for user in self._users.values() for window in user.windows.values()]
            for window in windows:
                await trio.sleep(LOOK_S / len(windows))
                if not window.session.detached:
                    window.look_soon()
            if not windows:
                await trio.sleep(LOOK_S)


def _taking_part(user_id: str, workspace: str) -> Program[list[str]]:
    """The tasks of a workspace that a user takes part in, the one that began last first."""
    found: list[str] = []
    for offset in range(0, LOOKED_AT, PAGE):  # clients choose how large what is kept of a task is
        page: list[Row] = yield Fetch(_TAKING_PART, (user_id, workspace, PAGE, offset))
        found += [task_id for task_id, spec in page if _takes_part(spec)]
        if len(page) < PAGE or len(found) >= MAX_CHATS:
            break
    return found[:MAX_CHATS]


def _takes_part(spec: bytes) -> bool:
    return pb.CreateTaskRequest.FromString(spec).metadata.get(PARTICIPANT, "").lower() in {"1", "true"}
