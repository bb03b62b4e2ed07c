"""Rules are asked in the event loop alone, also for transactions in other threads."""

from __future__ import annotations

import trio

from aether_trio.services.tasks.pool_access import PoolAccess

ASKED = "sv::s::1", "red"


class Rules:
    """Counts the questions, and from which task of the event loop they come."""

    def __init__(self) -> None:
        self.allowed = {ASKED}
        self.asked = 0

    def may_read(self, service: str, workspace: str) -> bool:
        trio.lowlevel.current_task()  # raises in another thread
        self.asked += 1
        return (service, workspace) in self.allowed


async def test_a_pair_is_asked_about_once_until_rules_change() -> None:
    rules = Rules()
    pools = PoolAccess(rules.may_read)
    assert [pools.may_serve(*ASKED), pools.may_serve(*ASKED), pools.may_serve("sv::s::1", "blue")] == [
        True,
        True,
        False,
    ]
    assert rules.asked == 2
    rules.allowed = {("sv::s::1", "blue")}
    pools.forget()
    assert pools.newly_allowed() == ["sv::s::1"]  # it may serve blue now
    assert not pools.may_serve(*ASKED)
    assert pools.newly_allowed() == []


async def test_another_thread_leaves_what_is_unknown() -> None:
    rules = Rules()
    pools = PoolAccess(rules.may_read)
    for pair in (ASKED, ("sv::s::2", "red")):
        assert not await trio.to_thread.run_sync(pools.may_serve, *pair)
    assert pools.waiting
    assert pools.newly_allowed() == ["sv::s::1"]
    assert not pools.waiting
    assert await trio.to_thread.run_sync(pools.may_serve, *ASKED)
    assert not await trio.to_thread.run_sync(pools.may_serve, "sv::s::2", "red")
    assert rules.asked == 2
