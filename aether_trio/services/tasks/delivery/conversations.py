"""The gateway subscribes users' windows to the message topics of their tasks.

    commit ──▶ status update for the user ──▶ each node with windows of that user ──▶ check
    a window enters a workspace ─────────────────────────────────────────────────────▶ check
    check: read the user's tasks from the table; subscribe to new ones, leave ended ones

The conversation of a task is the topic `tk::{workspace}::{task}::msg` (tasks.md 1.14, core.md 2.4).
A window follows those of the tasks in its workspace that were made for its user with
`subject_participant` in their metadata, have begun and may go on. A status update may be lost
between nodes, so windows are checked now and then, too. The last message may be stored after the
task has ended, so a window stays subscribed for LINGER_S, and until it has all messages.

Invariants: what runs for a window runs in its session's nursery; a window has one check at a time.
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
from aether_trio.storage.retry import RETRY_DELAY_S
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_CONVERSATIONS: Final = 256
"""Task conversations of one window: those of its user's tasks that began last."""
MAX_READ: Final = 4 * MAX_CONVERSATIONS
"""Tasks of a user that are read, as some of them have no conversation."""
PAGE: Final = 64
LINGER_S: Final = 30.0
LOOK_S: Final = 60.0
"""Seconds between two checks of a window, where there are other nodes."""
_TAKING_PART: Final = """SELECT task_id, spec FROM tasks WHERE subject_id = $1 AND subject_id <> '' AND workspace = $2
    AND status NOT IN ('completed', 'failed', 'cancelled', 'dlq', 'rejected')
    AND started_ms > 0 AND lower(subject_type) = 'user' ORDER BY started_ms DESC, task_id LIMIT $3 OFFSET $4"""


@dataclass(slots=True, eq=False)
class _Window:
    """A user's window (browser session), subscribed to the conversations of its tasks.

    `open` are the tasks to which it is subscribed, `over` those of them that have ended, with a
    mark for each end.
    """

    session: Session
    database: Database
    open: set[str] = field(default_factory=set)
    over: dict[str, object] = field(default_factory=dict)
    looking: bool = False
    again: bool = False

    def moved(self) -> None:
        """Drop the window's former conversations and check those of its new workspace."""
        self.open.clear()
        self.over.clear()
        self.look_soon()

    def look_soon(self) -> None:
        """Schedule a check of which task conversations a window follows. Never blocks."""
        self.again = True
        nursery = self.session.nursery
        if not self.looking and nursery is not None:
            self.looking = True
            nursery.start_soon(self._look, name="task-conversations")

    async def _look(self) -> None:
        try:
            while self.again and not self.session.detached:
                self.again = False
                try:
                    await self._settle()
                except StorageUnavailable as error:
                    logger.info("a window follows its tasks' conversations when storage answers", reason=str(error))
                    self.again = True
                    await trio.sleep(RETRY_DELAY_S)
        finally:
            self.looking = False

    async def _settle(self) -> None:
        """Subscribe a window to the conversations of its user's tasks; leave ended ones."""
        session = self.session
        workspace, user_id = session.workspace, session.identity.user_id
        wanted = await self.database.read(lambda: _taking_part(user_id, workspace)) if workspace else []
        if session.workspace != workspace:
            return  # the next check handles it
        for task_id in self.open.difference(wanted, self.over):
            mark = self.over[task_id] = object()
            assert session.nursery is not None
            topic = task_topic(workspace, task_id, "msg")
            session.nursery.start_soon(self._leave_later, task_id, topic, mark, name="task-conversation-over")
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
    """The windows of one user on this node, which follow conversations of its tasks."""

    def __init__(self, user_id: str) -> None:
        self.ephemeral_topic = progress_of_user(user_id)
        self.listener = EphemeralListener(f"us::{user_id}", "", self)
        self.windows: dict[Session, _Window] = {}

    def put_ephemeral(self, frame: bytes) -> None:
        """Recheck which task conversations the windows follow, at a task's status update."""
        if pb.DownstreamMessage.FromString(frame).progress_update.source == SOURCE:
            for window in self.windows.values():
                window.look_soon()

    def kick(self) -> None:
        """Do nothing: the listener for status updates buffers no message."""


class Conversations:
    """Keeps users' windows on this node subscribed to conversations of their tasks."""

    def __init__(self, database: Database, ephemeral_topics: EphemeralTopics) -> None:
        self._database = database
        self._ephemeral_topics = ephemeral_topics
        self._users: dict[str, _User] = {}

    def moved(self, session: Session) -> None:
        """Check the task conversations of a window that has entered a workspace."""
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
        """Forget the window of a session that has ended. Idempotent."""
        user = self._users.get(session.identity.user_id)
        if user is not None:
            user.windows.pop(session, None)
            if not user.windows:
                self._ephemeral_topics.unlisten(user.ephemeral_topic, user.listener)
                del self._users[session.identity.user_id]

    async def run(self) -> None:
        """Check all windows' task conversations periodically; needed with other nodes."""
        while True:
            windows = [window for user in self._users.values() for window in user.windows.values()]
            for window in windows:
                await trio.sleep(LOOK_S / len(windows))
                if not window.session.detached:
                    window.look_soon()
            if not windows:
                await trio.sleep(LOOK_S)


def _taking_part(user_id: str, workspace: str) -> Program[list[str]]:
    """Read the ids of the tasks in which a user takes part, the latest begun first."""
    found: list[str] = []
    for offset in range(0, MAX_READ, PAGE):  # clients choose the size of what is kept of a task
        page: list[Row] = yield Fetch(_TAKING_PART, (user_id, workspace, PAGE, offset))
        found += [task_id for task_id, spec in page if _takes_part(spec)]
        if len(page) < PAGE or len(found) >= MAX_CONVERSATIONS:
            break
    return found[:MAX_CONVERSATIONS]


def _takes_part(spec: bytes) -> bool:
    return pb.CreateTaskRequest.FromString(spec).metadata.get(PARTICIPANT, "").lower() in {"1", "true"}
