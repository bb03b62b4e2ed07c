"""A node outlives an error in one of its tasks, and finishes what waited then."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from aether_trio.cluster.locks.directory import ClusterDirectory
from aether_trio.cluster.relay.log_relay import ClusterLogRelay
from aether_trio.cluster.relay.progress_relay import ProgressRelay
from aether_trio.log.cursors import CursorStore
from aether_trio.log.remote_commits import RemoteCommitReader
from aether_trio.queues import lease_scheduler
from aether_trio.queues.leased_queue import LeasedQueue
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import LONG_S, Fabric, join, until
from tests.helpers.core import agent, barrier, message_to, payloads, switch_to, task, user


class DefectError(Exception):
    """An error that no code expects."""


@pytest.fixture
def bad_queue(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the topic of a work queue whose messages cannot be dispatched."""
    topic, sound = "tb::w::bad", LeasedQueue.dispatch_ready

    def dispatch_ready(self: LeasedQueue, touched: Any) -> None:
        if self.state.name == topic:
            raise DefectError
        sound(self, touched)

    monkeypatch.setattr(LeasedQueue, "dispatch_ready", dispatch_ready)
    return topic


async def test_a_queue_that_cannot_be_served_costs_no_other_its_work(
    fabric: Fabric, bad_queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = await fabric.start()
    async with (
        join(one, task("w", "bad")),
        join(one, task("w", "good")) as good,
        join(one, agent("w", "boss", "1")) as boss,
    ):
        works = [b"%d" % number for number in range(50)]
        boss.send(*(message_to(topic, work) for work in works for topic in (bad_queue, "tb::w::good")))
        await until(lambda: len(payloads(good)) >= len(works))
        assert Counter(payloads(good)) == Counter(works)
        await barrier(boss)
    assert "DefectError" in caplog.text


async def test_a_queue_that_cannot_be_served_keeps_no_other_waiting(
    fabric: Fabric, bad_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is served again there is a pause, which is its own."""
    monkeypatch.setattr(lease_scheduler, "RETRY_DELAY_S", 100 * LONG_S)
    one = await fabric.start()
    await one.join(task("w", "bad"))
    good, boss = await one.join(task("w", "good")), await one.join(agent("w", "boss", "1"))
    for number in range(10):
        work = b"%d" % number
        boss.send(message_to(bad_queue, work), message_to("tb::w::good", work))
        await until(lambda: len(payloads(good)) > number)  # noqa: B023


async def test_a_mistake_with_a_pushed_message_loses_nothing(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.log.group_writers.QUICK_S", math.inf)
    one, two = await fabric.start_many(2)
    offer, failures = RemoteCommitReader._offer_first_pushed, 0

    def fail_first(self: RemoteCommitReader, touched: set[Any]) -> int:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise DefectError("a pushed message")
        return offer(self, touched)

    monkeypatch.setattr(RemoteCommitReader, "_offer_first_pushed", fail_first)
    a, b = await one.join(agent("w", "a", "1")), await two.join(agent("w", "b", "1"))
    for number in range(3):
        a.send(message_to("ag::w::b::1", b"%d" % number))
    assert await b.take(3) == [b"0", b"1", b"2"]
    assert failures > 1


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RemoteCommitReader, "_read_some"),
        (RemoteCommitReader, "_offer"),
        (ClusterLogRelay, "_notify"),
        (ProgressRelay, "_write"),
        (ClusterDirectory, "_write_moves"),
        (CursorStore, "save"),
    ],
)
async def test_a_mistake_ends_no_node_and_holds_no_identity(
    owner: type, name: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await fabric.start_many(2)
    sound, failures = getattr(owner, name), 0

    async def method(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise DefectError(name)
        return await sound(self, *args, **keywords)

    monkeypatch.setattr(owner, name, method)
    one.push_nothing()
    b = await two.join(agent("w", "b", "1"))
    for number in range(3):
        async with join(one, agent("w", "a", "1")) as a:
            a.send(message_to("ag::w::b::1", b"%d" % number))
            a.send(pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t", state="running")))
            await barrier(a)
        async with join(two, agent("w", "a", "1")) as a:
            await barrier(a)
    async with join(one, user("u", "1")) as window:
        window.send(switch_to("w"))
        await until(lambda: failures >= 1)
    one.core.log.on_remote_commits(["ag::w::b::1"])
    two.core.log.on_remote_commits(["ag::w::b::1"])
    await barrier(b)
