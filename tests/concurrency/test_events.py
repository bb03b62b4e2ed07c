"""Events that are set more than once."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent


async def test_a_repeated_event_wakes_all_that_wait_each_time() -> None:
    event, woken = RepeatedEvent(), list[str]()

    async def wait(name: str, times: int) -> None:
        for _ in range(times):
            await event.wait()
            woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "a", 2)
        nursery.start_soon(wait, "b", 1)
        event.set()
        await wait_all_tasks_blocked()
        assert woken == [], "no task waited when it was set"
        event.set()
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        event.set()
    assert sorted(woken) == ["a", "a", "b"]


async def test_an_auto_reset_event_keeps_one_set_until_it_is_waited_for() -> None:
    event = AutoResetEvent()
    event.set()
    event.set()
    assert event.is_set()
    await event.wait()
    assert not event.is_set()
    with trio.move_on_after(0) as scope:
        await event.wait()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(event.wait)
        await wait_all_tasks_blocked()
        event.set()
    assert not event.is_set()


async def test_a_cancelled_wait_does_not_use_up_a_set() -> None:
    event = AutoResetEvent()
    event.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await event.wait()
    assert scope.cancelled_caught
    assert event.is_set()
    await event.wait()
