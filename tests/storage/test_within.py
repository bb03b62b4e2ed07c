"""Limits on time: a connection is cut when its work takes too long, and only then."""

from __future__ import annotations

import asyncio

import pytest
import trio
import trio.testing

from aether_trio.storage.postgres.statements import within
from aether_trio.storage.postgres.trio_loop import open_loop


class Connection:
    """What `within` needs of one; its work ends when it is cut."""

    def __init__(self) -> None:
        self.cut = asyncio.Event()

    def terminate(self) -> None:
        self.cut.set()

    async def work(self, seconds: float) -> str:
        done, _ = await asyncio.wait({asyncio.ensure_future(self.cut.wait())}, timeout=seconds)
        if done:
            raise ConnectionError("cut")
        return "done"


async def program() -> list[float]:
    """When each piece of work ended, in seconds since the start."""
    connection, loop = Connection(), asyncio.get_running_loop()
    start = loop.time()
    ends = []
    for seconds in (1.0, 25.0, 29.0):  # 55 s of work, none of it too long
        assert await within(connection, 30, lambda: connection.work(seconds)) == "done"  # noqa: B023  # awaited here
        ends.append(loop.time() - start)
    await asyncio.sleep(100)  # idle is not too long
    assert not connection.cut.is_set()
    ends.append(loop.time() - start)
    # A timer for 30 s is set from here on, and a shorter limit must not wait for it.
    assert await within(connection, 30, lambda: connection.work(0.5)) == "done"
    with pytest.raises(ConnectionError):
        await within(connection, 2, lambda: connection.work(60))
    ends.append(loop.time() - start)
    other = Connection()
    with pytest.raises(ConnectionError):
        await within(other, 30, lambda: other.work(60))
    ends.append(loop.time() - start)
    return ends


async def test_work_is_cut_at_its_limit_and_not_before(autojump_clock: trio.testing.MockClock) -> None:
    async with open_loop() as loop:
        ends = await loop.run(program())
    assert ends == pytest.approx([1, 26, 55, 155, 157.5, 187.5], abs=0.01)
