"""The log against a simple model, over random sequences of events.

* A named consumer sees each committed message of its topic, in order, and none twice as long as
  nothing was killed; after a kill it may see some of the last ones again, from one place on, and
  misses none.
* An anonymous subscriber sees exactly what was committed while it was subscribed, in order.
* No subscriber sees a refused message, and it leaves no hole behind.
* No outbox ever holds more than its limit and one message.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_log import LogLimits
from tests.helpers.core import run_in_virtual_time
from tests.helpers.direct import Store
from tests.helpers.inline import InlineDatabase, open_inline
from tests.helpers.log_bench import Bench, Reader, open_bench

TOPICS = ("ag::w::a::1", "ga::w")
CONSUMERS = ("me",)
LIMITS = OutboxLimits(delivery_bytes=200)

consumers = st.tuples(st.sampled_from(TOPICS), st.sampled_from(CONSUMERS))
steps = st.one_of(
    st.tuples(
        st.just("append"),
        st.sampled_from(TOPICS),
        st.lists(st.sampled_from((0, 1, 40, 150, 300)), min_size=1, max_size=12),
    ),
    st.tuples(st.just("connect"), consumers),
    st.tuples(st.just("disconnect"), consumers),
    st.tuples(st.just("reconnect"), consumers),
    st.tuples(st.just("watch"), st.sampled_from(TOPICS)),
    st.tuples(st.just("unwatch"), st.sampled_from(TOPICS)),
    st.tuples(st.just("pause"), consumers),
    st.tuples(st.just("resume"), consumers),
    st.tuples(st.just("fail"), st.integers(1, 2)),
    st.tuples(st.just("run"), st.integers(1, 40)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("sleep")),
    st.tuples(st.just("restart"), st.sampled_from(("stop", "kill"))),
)


@dataclass
class Listener:
    """A reader with its subscription, and what it must have got by the end."""

    reader: Reader
    subscription: Subscription
    expected: list[bytes] = field(default_factory=list)


class World:
    """The log under test and its model."""

    def __init__(self, database: InlineDatabase) -> None:
        self.database = database
        self.committed: dict[str, list[bytes]] = {topic: [] for topic in TOPICS}
        self.seen: dict[tuple[str, str], list[bytes]] = {}
        self.connected: dict[tuple[str, str], Listener] = {}
        self.watching: dict[str, Listener] = {}
        self.repeats_allowed: set[tuple[str, str]] = set()
        self.sent = 0

    def payload(self, size: int) -> bytes:
        self.sent += 1
        return b"%d:" % self.sent + b"x" * size

    def look_into_the_log(self) -> None:
        """Take from the database what was committed; other tests check its order."""
        for topic in TOPICS:
            rows = self.database.query(
                "SELECT data FROM messages JOIN topics ON message_key >> 36 = topics.id WHERE name = $1 "
                "ORDER BY message_key",
                topic,
            )
            self.committed[topic] = [row[0] for row in rows]

    async def connect(self, bench: Bench, key: tuple[str, str]) -> None:
        if key not in self.connected:
            reader = Reader(LIMITS)
            self.connected[key] = Listener(reader, await bench.subscribe(key[0], reader, key[1]))

    def disconnect(self, key: tuple[str, str]) -> None:
        listener = self.connected.pop(key, None)
        if listener is not None:
            listener.subscription.close()
            listener.reader.outbox.detach()
            self.seen.setdefault(key, []).extend(listener.reader.frames)
            assert listener.reader.gaps == []
            assert listener.reader.highest <= LIMITS.delivery_bytes + 320

    async def watch(self, bench: Bench, topic: str) -> None:
        if topic not in self.watching:
            await self.settle(bench)
            self.look_into_the_log()
            reader = Reader(LIMITS)
            listener = Listener(reader, await bench.subscribe(topic, reader, from_oldest=False))
            listener.expected = list(self.committed[topic])
            self.watching[topic] = listener

    async def unwatch(self, bench: Bench, topic: str) -> None:
        listener = self.watching.pop(topic, None)
        if listener is not None:
            await self.settle(bench)
            self.look_into_the_log()
            before = len(listener.expected)
            assert listener.reader.frames == self.committed[topic][before:]
            listener.subscription.close()
            listener.reader.outbox.detach()

    async def settle(self, bench: Bench) -> None:
        """Until all that can happen has happened."""
        await bench.log.drain()
        await trio.testing.wait_all_tasks_blocked()

    async def step(self, bench: Bench, step: tuple) -> None:  # type: ignore[type-arg]
        match step:
            case ("append", topic, sizes):
                bench.append(topic, *[self.payload(size) for size in sizes])
            case ("connect", key):
                await self.connect(bench, key)
            case ("disconnect", key):
                self.disconnect(key)
            case ("reconnect", key):
                self.disconnect(key)
                await self.connect(bench, key)
            case ("watch", topic):
                await self.watch(bench, topic)
            case ("unwatch", topic):
                await self.unwatch(bench, topic)
            case ("pause", key) if key in self.connected:
                self.connected[key].reader.pause()
            case ("resume", key) if key in self.connected:
                self.connected[key].reader.resume()
            case ("fail", count):
                self.database.fail_writes = count
            case ("run", turns):
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
            case ("settle",):
                await self.settle(bench)
            case ("sleep",):
                await trio.sleep(1)

    async def stop(self, bench: Bench, how: Literal["stop", "kill"]) -> None:
        for topic in list(self.watching):
            await self.unwatch(bench, topic)
        if how == "kill":
            await self.settle(bench)
            self.database.failing = True  # nothing reaches the disk from here on
            self.repeats_allowed |= self.connected.keys() | self.seen.keys()
        else:
            await self.settle(bench)
            # Or the last cursors could not be saved, and a warning would say so.
            self.database.fail_writes = 0
        for key in list(self.connected):
            self.disconnect(key)

    async def finish(self, bench: Bench) -> None:
        """Let all subscribers read to the end, and compare."""
        for topic in list(self.watching):
            await self.unwatch(bench, topic)
        self.database.fail_writes = 0
        for topic in TOPICS:
            for consumer in CONSUMERS:
                await self.connect(bench, (topic, consumer))
                self.connected[topic, consumer].reader.resume()
        await self.settle(bench)
        await trio.sleep(5)
        self.look_into_the_log()
        for key in list(self.connected):
            self.disconnect(key)
            if key in self.repeats_allowed:
                check_in_order_with_repeats(self.seen[key], self.committed[key[0]])
            else:
                assert self.seen[key] == self.committed[key[0]]


def check_in_order_with_repeats(seen: list[bytes], committed: list[bytes]) -> None:
    """Check that each message is first seen in order, and repeats leave no hole."""
    place = {frame: number for number, frame in enumerate(committed)}
    expected = 0
    for frame in seen:
        number = place[frame]
        assert number <= expected, "a message was skipped"
        expected = number + 1
    assert expected == len(committed) or not committed
    assert list(dict.fromkeys(seen)) == committed


async def run(world: World, script: list[tuple]) -> None:  # type: ignore[type-arg]
    lives: list[list[tuple]] = [[]]  # type: ignore[type-arg]
    ends: list[Literal["stop", "kill"]] = []
    for step in script:
        if step[0] == "restart":
            ends.append(step[1])
            lives.append([])
        else:
            lives[-1].append(step)
    limits = LogLimits(group_messages=7, group_bytes=500, cursor_flush_s=0.05)
    for number, life in enumerate(lives):
        world.database.renew()
        async with AsyncExitStack() as stack:
            bench = await stack.enter_async_context(open_bench(world.database, limits))
            for step in life:
                await world.step(bench, step)
            if number < len(ends):
                await world.stop(bench, ends[number])
            else:
                await world.finish(bench)


def test_the_log_keeps_its_promises(store: Store) -> None:
    @settings(max_examples=store.examples(200))
    @given(st.lists(steps, min_size=40, max_size=120))
    def holds(script: list[tuple]) -> None:  # type: ignore[type-arg]
        with open_inline(store, "log") as database:
            run_in_virtual_time(lambda: run(World(database), script))

    holds()
