"""Kicks that wait a little, and are shared."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from aether_trio.concurrency import kicks as module
from aether_trio.concurrency.kicks import Kicks
from aether_trio.concurrency.supervision import keep_running


class Sink:
    """Remembers when it was kicked, in seconds of trio's clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def kick(self) -> None:
        self.times.append(trio.current_time())


async def test_each_one_is_kicked_once_after_the_pause(autojump_clock: trio.testing.MockClock) -> None:
    kicks, one, other = Kicks(0.25), Sink(), Sink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kicks.run)
        start = trio.current_time()
        for sink in (one, other, one):
            kicks.add(sink)
        assert one.times == []
        await trio.sleep(1)
        kicks.add(other)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert [time - start for time in one.times] == [0.25]
    assert [time - start for time in other.times] == [0.25, 1.25]


async def test_without_a_pause_they_come_after_what_is_ready_now() -> None:
    kicks, sink, order = Kicks(), Sink(), list[int]()

    async def ready() -> None:
        kicks.add(sink)
        order.append(len(sink.times))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kicks.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(ready)
        await trio.testing.wait_all_tasks_blocked()
        assert (order, len(sink.times)) == ([0] * 5, 1)
        nursery.cancel_scope.cancel()


async def test_none_is_left_waiting_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    kicks, sink = Kicks(60), Sink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kicks.run)
        kicks.add(sink)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(sink.times) == 1


async def test_between_many_of_them_others_have_their_turn() -> None:
    kicks, sinks = Kicks(), [Sink() for _ in range(10 * module.KICKS_PER_SLICE)]
    seen: list[int] = []

    async def other() -> None:
        while not seen or seen[-1] < len(sinks):
            seen.append(sum(len(sink.times) for sink in sinks))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kicks.run)
        await trio.testing.wait_all_tasks_blocked()
        for sink in sinks:
            kicks.add(sink)
        with trio.fail_after(60):
            await other()
        nursery.cancel_scope.cancel()
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 2 * module.KICKS_PER_SLICE
    assert all(len(sink.times) == 1 for sink in sinks)


async def test_a_kick_that_fails_costs_no_other_its_own(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        def kick(self) -> None:
            raise KeyError("a defect")

    kicks, sinks = Kicks(60), [Sink() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_running, "kicks", kicks.run)
        for sink in (sinks[0], Bad(), sinks[1], Bad(), sinks[2]):
            kicks.add(sink)
        await trio.sleep(70)
        assert [len(sink.times) for sink in sinks] == [1, 1, 1]
        for sink in (Bad(), sinks[0], Bad(), sinks[1]):
            kicks.add(sink)
        nursery.cancel_scope.cancel()
    assert [len(sink.times) for sink in sinks] == [2, 2, 1]
    assert "a defect" in caplog.text
