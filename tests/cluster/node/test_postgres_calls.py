"""A node's first connections wait for a server that is away."""

from __future__ import annotations

import asyncpg
import pytest
import trio
from trio.testing import MockClock

from aether_trio.cluster.node.postgres_calls import retry_at_start
from aether_trio.storage.base import StorageUnavailable


class Work:
    def __init__(self, *raised: Exception) -> None:
        self.raised = list(raised)

    async def __call__(self) -> str:
        await trio.lowlevel.checkpoint()
        if self.raised:
            raise self.raised.pop(0)
        return "there"


async def test_a_restart_is_a_pause(autojump_clock: MockClock) -> None:
    work = Work(
        ConnectionRefusedError(),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
    )
    assert await retry_at_start(work, 5) == "there"


async def test_what_lasts_longer_is_said_with_its_reason(autojump_clock: MockClock) -> None:
    began_s = trio.current_time()
    with pytest.raises(StorageUnavailable, match=r"no connection left\. Raise its max_connections"):
        await retry_at_start(Work(*[asyncpg.TooManyConnectionsError("sorry") for _ in range(1000)]), 5)
    assert 5 <= trio.current_time() - began_s < 6


async def test_what_waiting_does_not_mend_is_raised_at_once(autojump_clock: MockClock) -> None:
    work = Work(asyncpg.InvalidPasswordError("who are you"), OSError())
    with pytest.raises(asyncpg.InvalidPasswordError):
        await retry_at_start(work, 5)
    assert len(work.raised) == 1
