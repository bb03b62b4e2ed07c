"""A topic log without sessions: a database, the log, readers that can stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.catchup import CatchUp
from aether_trio.delivery.outbox import Outbox, OutboxLimits
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_log import LogLimits, TopicLog, open_log
from aether_trio.model.errors import RequestError
from tests.helpers.clocks import VirtualClock
from tests.helpers.inline import InlineDatabase

MOST_PULLS = 10_000
"""In which the fullest outbox of these tests is empty."""
SMALL = OutboxLimits(control_bytes=256, delivery_bytes=1024, ephemeral_bytes=256)


class Reader:
    """The peer behind an outbox. `frames` is all that it has got."""

    def __init__(self, limits: OutboxLimits = SMALL, *, paused: bool = False) -> None:
        self.outbox = Outbox(self, limits, self._ephemeral_dropped)
        self.frames: list[bytes] = []
        self.gaps: list[tuple[str, int]] = []
        self.ephemeral_drops = 0
        self.kicks = 0
        self.highest = 0
        self._paused = paused

    def kick(self) -> None:
        self.kicks += 1
        self.highest = max(self.highest, self.outbox.delivery_bytes)
        if not self._paused:
            self.pull_only()
            self.outbox.flushed()

    def pull_only(self) -> None:
        """Take what there is, but have nothing of it with the kernel yet."""
        for _ in range(MOST_PULLS):
            if not (frames := self.outbox.pull(64 * 1024)):
                return
            self.frames += frames
        raise AssertionError("the outbox never gets empty")

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.kick()

    def noted(self, subscription: Subscription, count: int) -> None:
        self.gaps.append((subscription.state.name, count))

    def _ephemeral_dropped(self) -> None:
        self.ephemeral_drops += 1


class Collector:
    """An author (log/topic_log.py) that notes why its messages were refused."""

    confirms = False
    publisher = None

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refused(self, number: int, error: RequestError) -> None:
        self.reasons.append(error.message.partition(": ")[2])

    def settled(self, touched: set[Kickable]) -> None:
        raise AssertionError("it did not ask")


class Bench:
    """A running log, and whatever listens to it."""

    def __init__(self, log: TopicLog, database: InlineDatabase, nursery: trio.Nursery) -> None:
        self.log = log
        self.database = database
        self.nursery = nursery
        self.author = Collector()
        self.refusals = self.author.reasons

    def append(self, topic: str, *frames: bytes) -> int:
        number = 0
        for frame in frames:
            number = self.log.append_nowait(self.log.topics.ensure(topic), frame, self.author)
        return number

    async def publish(self, topic: str, *frames: bytes) -> None:
        """Queue messages and wait until they are settled and handed on."""
        await self.log.wait_settled(self.append(topic, *frames))
        await trio.testing.wait_all_tasks_blocked()

    async def subscribe(
        self, topic: str, reader: Reader, consumer: str | None = None, *, from_oldest: bool = True, renews: bool = False
    ) -> Subscription:
        """As session/subscriptions.py does it."""
        ((state, cursor),) = await self.log.load([(topic, consumer)])
        position = cursor if cursor is not None else state.base if from_oldest else state.tail
        catch_up = CatchUp(self.log, reader.outbox, self.nursery, reader.noted)
        subscription = Subscription(
            state, reader.outbox, self.log.cursors, consumer, position, catch_up.add, renews=renews
        )
        subscription.open()
        self.log.unpin([state])
        return subscription


@asynccontextmanager
async def open_bench(database: InlineDatabase, limits: LogLimits | None = None) -> AsyncIterator[Bench]:
    """Open a log on this database; another one may follow, as after a restart."""
    clock = VirtualClock(trio.current_time)
    limits = limits or LogLimits(partition_ms=125_000)
    async with open_log(database, clock, limits) as log, trio.open_nursery() as nursery:
        yield Bench(log, database, nursery)
        nursery.cancel_scope.cancel()
