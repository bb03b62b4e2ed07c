"""Opens and closes what a session listens to, by its participant's kind.

Invariants: everything a session subscribed to is closed by `close`, without a checkpoint; what a
user listens to because of its workspace is separate from the rest, so that a switch of the
workspace touches nothing else. Topics that `also` has added go with the workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import trio

from aether_trio.delivery.catchup import CatchUp
from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.delivery.outbox import Outbox
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import TopicLog
from aether_trio.model import topics
from aether_trio.model.identity import Identity, Kind
from aether_trio.queues.dispatcher import QueueWorker
from aether_trio.queues.work_queues import WorkQueues


class Wanted(NamedTuple):
    """A durable topic that a participant listens to, and where reading starts.

    `named`: the cursor is kept under the identity; otherwise the topic is read from its end on.
    `from_oldest`: a consumer without a cursor starts at the oldest retained message.
    """

    topic: str
    named: bool
    from_oldest: bool = False


class Plan(NamedTuple):
    """The topics and the work queue that a participant listens to while connected."""

    topics: tuple[Wanted, ...] = ()
    work_queue: str | None = None
    ephemeral_topics: tuple[str, ...] = ()


def plan_for(identity: Identity) -> Plan:
    """Return what a participant listens to while connected (reference: core.md 2.4)."""
    own = Wanted(identity.topic, named=True, from_oldest=True)
    match identity.kind:
        case Kind.AGENT:
            everyone = Wanted(topics.agents_of(identity.workspace), named=False)
            return Plan((own, everyone), ephemeral_topics=(topics.progress_of(identity.workspace),))
        case Kind.UNIQUE_TASK | Kind.SERVICE | Kind.BRIDGE | Kind.WORKFLOW_ENGINE | Kind.METRICS_BRIDGE:
            return Plan((own,))
        case Kind.TASK:
            # Its name is new with each connection, so there is no position to keep.
            queue = topics.workers_of(identity.workspace, identity.implementation)
            return Plan((Wanted(identity.topic, named=False, from_oldest=True),), work_queue=queue)
        case Kind.USER:
            everywhere = Wanted(topics.user_everywhere(identity.user_id), named=True)
            return Plan((own, everywhere), ephemeral_topics=(topics.progress_of_user(identity.user_id),))
        case Kind.ORCHESTRATOR:
            return Plan()


def plan_for_workspace(user_id: str, workspace: str) -> Plan:
    """Return what a user's window listens to in a workspace it is switched to."""
    return Plan(
        (Wanted(topics.users_of(workspace), named=False), Wanted(topics.user_in(user_id, workspace), named=True)),
        ephemeral_topics=(topics.progress_of(workspace),),
    )


@dataclass(slots=True)
class _Open:
    subscriptions: list[Subscription] = field(default_factory=list)
    worker: QueueWorker | None = None
    ephemeral_topics: tuple[str, ...] = ()
    pinned: list[CachedTopic] = field(default_factory=list)


class SubscriptionsOwner(Protocol):
    """The session that is told what happens to its subscriptions."""

    def gap_reported(self, topic: str, count: int) -> None:
        """Note how many messages were deleted before the session read them."""

    def work_lost(self) -> None:
        """Note that the work of its queue has gone to other workers."""


class Subscriptions:
    """The topics and the work queue that one session listens to."""

    __slots__ = (
        "_also", "_base", "_catchup", "_closed", "_ephemeral_topics", "_identity", "_listener", "_log", "_nursery",
        "_outbox", "_owner", "_workspace", "work_queues",
    )  # fmt: skip

    def __init__(
        self,
        identity: Identity,
        outbox: Outbox,
        log: TopicLog,
        ephemeral_topics: EphemeralTopics,
        work_queues: WorkQueues,
        nursery: trio.Nursery,
        owner: SubscriptionsOwner,
    ) -> None:
        self._identity = identity
        self._outbox = outbox
        self._log = log
        self._ephemeral_topics = ephemeral_topics
        self.work_queues = work_queues
        self._nursery = nursery
        self._owner = owner
        self._listener: EphemeralListener | None = None
        self._catchup: CatchUp | None = None
        """Made when a subscription lags, which most never do."""
        self._base: _Open | None = None
        self._workspace: _Open | None = None
        self._also: dict[str, _Open] = {}
        self._closed = False

    async def prepare(self, plan: Plan) -> Callable[[], _Open]:
        """Load the topics of `plan`; return a function that opens their subscriptions."""
        consumer = self._identity.text
        await self._ephemeral_topics.expect(plan.ephemeral_topics)
        found = await self._log.load([(one.topic, consumer if one.named else None) for one in plan.topics])
        pinned = [state for state, _ in found]
        try:
            queue = await self.work_queues.find(plan.work_queue) if plan.work_queue else None
        except BaseException:
            self._log.unpin(pinned)
            raise
        if queue is not None:
            pinned.append(queue[0])

        def open_all() -> _Open:
            if self._closed:  # while the log was being read
                self._log.unpin(pinned)
                return _Open()
            on_lag = self._lags
            opened = _Open(ephemeral_topics=plan.ephemeral_topics, pinned=pinned)
            for wanted, (state, cursor) in zip(plan.topics, found, strict=True):
                # A takeover moves the cursor while this session is being prepared.
                latest = self._log.cursors.unwritten(state, consumer) if wanted.named else None
                position = max((one for one in (cursor, latest) if one is not None), default=None)
                if position is None:
                    position = state.base if wanted.from_oldest else state.end
                subscription = Subscription(
                    state,
                    self._outbox,
                    self._log.cursors,
                    consumer if wanted.named else None,
                    position,
                    on_lag,
                    renews=wanted.named and not wanted.from_oldest,
                )
                opened.subscriptions.append(subscription)
                subscription.open()
            if queue is not None:
                opened.worker = self.work_queues.join(queue, self._outbox, self._owner.work_lost)
            for ephemeral_topic in plan.ephemeral_topics:
                if self._listener is None:
                    self._listener = EphemeralListener(self._identity.text, self._identity.topic, self._outbox)
                self._ephemeral_topics.listen(ephemeral_topic, self._listener)
            return opened

        return open_all

    def _lags(self, subscription: Subscription) -> None:
        if self._catchup is None:
            self._catchup = CatchUp(self._log, self._outbox, self._nursery, self._gap_found)
        self._catchup.add(subscription)

    def _gap_found(self, subscription: Subscription, count: int) -> None:
        self._owner.gap_reported(subscription.state.name, count)

    async def prepare_base(self) -> Callable[[], None]:
        """Load the identity's own topics; return a function that opens subscriptions."""
        open_all = await self.prepare(plan_for(self._identity))

        def open_base() -> None:
            self._base = open_all()

        return open_base

    async def switch(self, workspace: str) -> None:
        """Listen to another workspace, or after StorageUnavailable to the old one."""
        if workspace:
            open_all = await self.prepare(plan_for_workspace(self._identity.user_id, workspace))
            self._leave_workspace()
            self._workspace = open_all()
            self._outbox.kick()
        else:
            self._leave_workspace()

    def _leave_workspace(self) -> None:
        left, self._workspace = self._workspace, None
        for topic in tuple(self._also):
            self.no_longer(topic)
        self._leave(left)

    def _leave(self, left: _Open | None) -> None:
        if left is not None:
            self._close(left)
            self._outbox.withdraw(left.subscriptions)

    async def also(self, wanted: Wanted) -> bool:
        """Listen to one more topic until the workspace changes; return False if it has.

        One call at a time. Raises StorageUnavailable.
        """
        workspace = self._workspace
        if workspace is None:
            return False
        assert wanted.topic not in self._also
        opened = (await self.prepare(Plan((wanted,))))()
        if self._workspace is not workspace:  # any more
            self._leave(opened)
            return False
        self._also[wanted.topic] = opened
        self._outbox.kick()
        return True

    def no_longer(self, topic: str) -> None:
        """Stop listening to a topic that `also` added. Idempotent."""
        self._leave(self._also.pop(topic, None))

    def is_level(self, topic: str) -> bool:
        """Return whether the client has read everything in a topic that `also` added."""
        opened = self._also.get(topic)
        return opened is None or all(one.cursor >= one.state.end for one in opened.subscriptions)

    def close(self) -> None:
        """Stop listening to everything, for good. Idempotent, no checkpoint."""
        self._closed = True
        for opened in self._also.values():
            self._close(opened)
        self._also.clear()
        self._close(self._workspace)
        self._close(self._base)
        self._workspace = self._base = None

    def _close(self, opened: _Open | None) -> None:
        if opened is None:
            return
        for subscription in opened.subscriptions:
            subscription.close()
            if self._catchup is not None:
                self._catchup.remove(subscription)
        if opened.worker is not None:
            opened.worker.leave()
        self._log.unpin(opened.pinned)
        if self._listener is not None:
            for ephemeral_topic in opened.ephemeral_topics:
                self._ephemeral_topics.unlisten(ephemeral_topic, self._listener)
