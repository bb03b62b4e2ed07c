"""The gateway's task service: one handler for each kind of request on tasks.

Every refusal is a sentence in the typed answer. A task that the caller may not see is answered like
a task that does not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.model.ids import IdFactory
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.grants import NO_GRANT_MAKER, GrantMaker
from aether_trio.services.tasks.handlers.create import TaskCreator
from aether_trio.services.tasks.handlers.operate import TaskOperator
from aether_trio.services.tasks.handlers.query import TaskReader
from aether_trio.services.tasks.handlers.saved_states import SavedStates
from aether_trio.services.tasks.handlers.sessions import TaskSessions
from aether_trio.services.tasks.handlers.subscribe import TaskSubscriber
from aether_trio.services.tasks.starter import Starter
from aether_trio.session.dispatch import Handler
from aether_trio.session.session import Session


class TaskService:
    """Makes the handlers of requests on tasks; `handlers` has them by request field.

    `has_checkpoint(identity, key)` and `connected(identity)` raise StorageUnavailable; the latter
    says whether a participant is connected to any node. `may_read` says whether a session may read
    a workspace, and records nothing; `payload_bytes` how many bytes the payload of a task of a
    workspace may have. `capacity` is the maximum number of live tasks of a
    worker.
    """

    def __init__(
        self,
        engine: Engine,
        starter: Starter,
        ids: IdFactory,
        authorizer: Authorizer,
        has_checkpoint: Callable[[str, str], Awaitable[bool]],
        connected: Callable[[str], Awaitable[bool]],
        random_bytes: Callable[[int], bytes],
        *,
        may_read: Callable[[Session, str], bool],
        payload_bytes: Callable[[str], int],
        strict: bool,
        capacity: int,
        grants: GrantMaker = NO_GRANT_MAKER,
    ) -> None:
        self.engine = engine
        self.sessions = TaskSessions(engine, capacity=capacity)
        self.saved_states = SavedStates(engine, self.sessions, authorizer)
        self._subscriber = TaskSubscriber(engine, ids, authorizer)
        creator = TaskCreator(
            engine,
            self.sessions,
            ids,
            authorizer,
            payload_bytes=payload_bytes,
            strict=strict,
            random_bytes=random_bytes,
            connected=connected,
            starter=starter,
            grants=grants,
        )
        self.handlers: Final[Mapping[str, Handler]] = MappingProxyType(
            {
                "create_task": creator.handle,
                "task_op": TaskOperator(engine, self.sessions, ids, authorizer, has_checkpoint, connected).handle,
                "task_query": TaskReader(engine, self.sessions, authorizer, may_read).handle,
                "task_subscription_op": self._subscriber.handle,
            }
        )

    async def access_changed(self, may_read: Callable[[Session, str], bool]) -> None:
        """Let services and subscribers follow a change of access rules."""
        self.engine.fill_services()
        await self._subscriber.end_hidden(may_read)

    def ended(self, session: Session) -> None:
        """End the task subscriptions of a session that has ended, and write its end."""
        self._subscriber.ended(session)
        self.sessions.ended(session)
