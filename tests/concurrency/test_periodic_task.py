"""Work that is done at each request, and periodically."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aether_trio.concurrency.periodic_task import PeriodicTask
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S


class Work:
    """Waits at `gate`, fails `failures` times; `done` are times, and if unrequested."""

    def __init__(self) -> None:
        self.began = 0
        self.done: list[tuple[float, bool]] = []
        self.failures = 0
        self.gate = trio.Event()
        self.gate.set()

    async def __call__(self, alone: bool) -> None:
        self.began += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("not now")
        self.done.append((trio.current_time(), alone))


@asynccontextmanager
async def running(work: Work, every_s: float | None, min_interval_s: float = 0.0) -> AsyncIterator[PeriodicTask]:
    one = PeriodicTask("it", work, Random(1), every_s=every_s, min_interval_s=min_interval_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        yield one
        nursery.cancel_scope.cancel()


async def test_it_is_done_now_and_then_and_at_once_when_asked(autojump_clock: MockClock) -> None:
    work = Work()
    async with running(work, 10) as one:
        began_s = trio.current_time()
        one.trigger()
        await wait_all_tasks_blocked()
        assert work.done == [(began_s, False)]
        await trio.sleep(10)
        [_, (later_s, alone)] = work.done
        assert alone
        assert 8 <= later_s - began_s <= 10


async def test_many_who_ask_are_one_and_who_asks_meanwhile_has_it_done_again(autojump_clock: MockClock) -> None:
    work = Work()
    async with running(work, None) as one:
        await trio.sleep(1000)
        assert work.began == 0
        work.gate = trio.Event()
        for _ in range(5):
            one.trigger()
        await wait_all_tasks_blocked()
        assert work.began == 1
        one.trigger()
        work.gate.set()
        await trio.sleep(1000)
        assert len(work.done) == 2


async def test_what_storage_refuses_is_done_later_without_being_asked_again(autojump_clock: MockClock) -> None:
    work = Work()
    work.failures = 3
    async with running(work, None) as one:
        began_s = trio.current_time()
        one.trigger()
        await trio.sleep(1000)
        assert work.done == [(began_s + 3 * RETRY_DELAY_S, False)]


async def test_it_takes_a_breath_between_two_times(autojump_clock: MockClock) -> None:
    work = Work()
    async with running(work, None, min_interval_s=7) as one:
        began_s = trio.current_time()
        one.trigger()
        await wait_all_tasks_blocked()
        one.trigger()
        await trio.sleep(100)
        assert [moment for moment, _ in work.done] == [began_s, began_s + 7]
