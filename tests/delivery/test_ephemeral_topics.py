"""Progress topics: whom an update is for, and what a slow listener loses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from aether_trio.concurrency.kicks import KICKS_PER_SLICE
from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code, Status
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    errors,
    message_to,
    payloads,
    service,
    switch_to,
    user,
)
from tests.helpers.log_bench import Reader


@pytest.mark.parametrize(
    ("identity", "topic", "source", "recipient", "accepted"),
    [
        ("ag::w::a::1", "ag::w::a::1", "ag::w::a::2", "", True),
        ("ag::w::a::1", "ag::w::a::1", "ag::w::a::1", "", False),  # never one's own
        ("ag::w::a::1", "ag::w::a::1", "ag::w::a::2", "ag::w::a::1", True),
        ("ag::w::a::1", "ag::w::a::1", "ag::w::a::2", "ag::w::a::3", False),
        ("ag::w::a::11", "ag::w::a::11", "ag::w::a::2", "ag::w::a::1", False),
        ("us::u::1", "us::u::1", "ag::w::a::2", "us::u", True),  # a bare user is every window
        ("us::u::1", "us::u::1", "ag::w::a::2", "us::u::1", True),
        ("us::u::2", "us::u::2", "ag::w::a::2", "us::u::1", False),
        ("us::uu::1", "us::uu::1", "ag::w::a::2", "us::u", False),
    ],
)
def test_the_recipient_filter(identity: str, topic: str, source: str, recipient: str, accepted: bool) -> None:
    ephemeral_topics, reader = EphemeralTopics(), Reader()
    ephemeral_topics.listen("pg::w", EphemeralListener(identity, topic, reader.outbox))
    assert ephemeral_topics.publish("pg::w", source, recipient, b"x") == accepted
    assert reader.frames == [b"x"] * accepted


def test_a_watcher_sees_everything() -> None:
    ephemeral_topics, reader = EphemeralTopics(), Reader()
    ephemeral_topics.listen("pg::w", EphemeralListener("", "", reader.outbox, everything=True))
    assert ephemeral_topics.publish("pg::w", "ag::w::a::1", "us::other", b"x") == 1


def test_who_has_left_gets_nothing() -> None:
    ephemeral_topics, reader = EphemeralTopics(), Reader()
    listener = EphemeralListener("a", "a", reader.outbox)
    ephemeral_topics.listen("pg::w", listener)
    ephemeral_topics.listen("pg::v", listener)
    ephemeral_topics.unlisten("pg::w", listener)
    ephemeral_topics.unlisten("pg::w", listener)
    assert ephemeral_topics.publish("pg::w", "b", "", b"x") == 0
    assert ephemeral_topics.publish("pg::v", "b", "", b"y") == 1
    statistics = ephemeral_topics.statistics()
    assert (statistics.published, statistics.delivered, statistics.listeners) == (2, 1, 1)


AGENTS = ("ag::w::a::1", "ag::w::a::1:", "ag::w::a:::1", "ag::w::a::11")
NAMES = (*AGENTS, "us::u::1", "us::u::2", "us::uu::1", "sv::s::1", "wfe::shard0")


@pytest.mark.parametrize(
    "recipient", [*NAMES, "", "ag", "ag::w", "ag::w::a", "us::u", "us::uu", "sv::s", "wfe", "x::1"]
)
def test_each_listener_that_accepts_an_update_is_found(recipient: str) -> None:
    ephemeral_topics = EphemeralTopics()
    readers = [Reader() for _ in range(2 * len(NAMES) + 1)]
    listeners = [
        EphemeralListener(name, name, reader.outbox) for name, reader in zip([*NAMES, *NAMES], readers[1:], strict=True)
    ]
    listeners.append(EphemeralListener("", "", readers[0].outbox, everything=True))
    for listener in [*listeners, *listeners]:
        ephemeral_topics.listen("pg::w", listener)
    assert ephemeral_topics.statistics().listeners == len(listeners)
    while listeners:  # they leave, the first of each name before the second
        expected = [listener for listener in listeners if listener.accepts("ag::w::a::11", recipient)]
        kicked: list[object] = []
        assert ephemeral_topics.publish("pg::w", "ag::w::a::11", recipient, b"x", kicked.append) == len(expected)
        assert len(kicked) == len(expected)
        assert {id(sink) for sink in kicked} == {id(listener.outbox) for listener in expected}
        left = listeners.pop(0)
        ephemeral_topics.unlisten("pg::w", left)
        ephemeral_topics.unlisten("pg::w", left)
    assert "pg::w" not in ephemeral_topics.listened_topics()


def test_of_many_only_the_recipient_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ephemeral_topics, reader, asked = EphemeralTopics(), Reader(), list[str]()
    filtered = EphemeralListener.accepts

    def accepts(listener: EphemeralListener, source: str, recipient: str) -> bool:
        asked.append(listener.identity)
        return filtered(listener, source, recipient)

    monkeypatch.setattr(EphemeralListener, "accepts", accepts)
    for number in range(100):
        ephemeral_topics.listen("pg::w", EphemeralListener(f"ag::w::a::{number}", f"ag::w::a::{number}", reader.outbox))
    assert ephemeral_topics.publish("pg::w", "gateway", "ag::w::a::7", b"x") == 1
    assert ephemeral_topics.publish("pg::w", "gateway", "ag::w::a::100", b"x") == 0
    assert asked == ["ag::w::a::7"]


class Relay:
    """A EphemeralRelay that remembers, and may be unable to tell others."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failing = False

    async def expect(self, topics: Sequence[str]) -> None:
        await trio.sleep(1)
        if self.failing:
            raise StorageUnavailable("away")
        self.calls.append(("expect", *topics))

    def listening(self, topic: str) -> None:
        self.calls.append(("listening", topic))

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> None:
        self.calls.append(("publish", topic, source, recipient, frame))


def test_what_is_published_goes_to_other_nodes_and_what_they_publish_does_not() -> None:
    ephemeral_topics, reader, relay = EphemeralTopics(), Reader(), Relay()
    ephemeral_topics._relay = relay
    for identity in ("a", "b"):
        ephemeral_topics.listen("pg::w", EphemeralListener(identity, identity, reader.outbox))
    assert ephemeral_topics.publish("pg::w", "c", "", b"x") == 2
    assert ephemeral_topics.deliver("pg::w", "d", "a", b"y") == 1
    assert reader.frames == [b"x", b"x", b"y"]
    assert relay.calls == [("listening", "pg::w"), ("publish", "pg::w", "c", "", b"x")]
    assert (
        ephemeral_topics.listened_topics(),
        "pg::w" in ephemeral_topics.listened_topics(),
        "pg::v" in ephemeral_topics.listened_topics(),
    ) == (["pg::w"], True, False)


async def test_other_nodes_know_of_a_listener_before_it_is_acknowledged(core: Core) -> None:
    relay = core.ephemeral_topics._relay = Relay()
    async with connect(core, user("u", "1")) as window:
        assert relay.calls == [("expect", "pg::us::u"), ("listening", "pg::us::u")]
        window.send(switch_to("w"))
        await barrier(window)
        assert relay.calls[2:] == [("expect", "pg::w"), ("listening", "pg::w")]
        async with connect(core, agent("w", "a", "1")), connect(core, service("s", "1")):
            assert relay.calls[4:] == [("expect", "pg::w")]
        relay.failing = True
        window.send(switch_to("v"))
        error = (await window.next("error")).error
        assert (error.code, error.retryable) == (Code.WORKSPACE_SWITCH_FAILED, True)
        async with connect(core, agent("v", "a", "2"), wait_ack=False) as peer:
            assert (await peer.wait_end()).status is Status.UNAVAILABLE


def report(number: int) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(progress=pb.ProgressReport(task_id=f"{number}", summary="x" * 100))


async def test_a_slow_listener_loses_the_oldest_is_told_once_and_loses_no_durable_message(world: World) -> None:
    async with (
        deadlock_is_an_error(),
        world.open(log={"ephemeral_bytes": 2000}) as core,
        connect(core, agent("w", "a", "1")) as reporter,
        connect(core, agent("w", "a", "2")) as slow,
    ):
        slow.pause()
        for number in range(200):
            reporter.send(report(number))
            if number % 20 == 0:
                reporter.send(message_to("ag::w::a::2", b"%d" % number))
        await barrier(reporter)
        outbox = core.registry.holder("ag::w::a::2").outbox  # type: ignore[union-attr]
        assert outbox.ephemeral_bytes <= 2000
        slow.resume()
        await barrier(slow)
        numbers = [int(one.progress_update.task_id) for one in slow.waiting("progress_update")]
        assert numbers == list(range(200 - len(numbers), 200))
        assert outbox.ephemeral_dropped == 200 - len(numbers) > 0
        assert payloads(slow) == [b"%d" % number for number in range(0, 200, 20)]
        [notice] = errors(slow)
        assert (notice.code, notice.retryable) == (Code.BACKPRESSURE, False)


async def test_an_update_for_very_many_is_sent_to_the_first_at_once_and_then_to_the_others() -> None:
    """One report does not hold up the gateway while it is written to thousands."""

    class Counting:
        def __init__(self) -> None:
            self.frames: list[bytes] = []
            self.kicks = 0

        def put_ephemeral(self, frame: bytes) -> None:
            self.frames.append(frame)

        def kick(self) -> None:
            self.kicks += 1

    ephemeral_topics, readers = EphemeralTopics(), [Counting() for _ in range(1000)]
    for number, reader in enumerate(readers):
        name = f"us::u::{number}"
        ephemeral_topics.listen("pg::w", EphemeralListener(name, name, reader))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ephemeral_topics.run)
        assert ephemeral_topics.publish("pg::w", "ag::w::a::1", "", b"x") == 1000
        assert sum(reader.kicks for reader in readers) == KICKS_PER_SLICE
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert {(reader.kicks, *reader.frames) for reader in readers} == {(1, b"x")}
