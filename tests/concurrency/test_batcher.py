"""Items are written in groups; one that storage refuses costs no other its write."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from aether_trio.concurrency.batcher import Batcher
from aether_trio.storage.base import RefusedError, StorageUnavailable


class Table:
    """Writes groups of texts as a whole or not at all, and can be told to fail."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.bad: dict[str, Exception] = {}
        self.failures_left = 0
        self.open = trio.Event()
        self.open.set()

    async def write(self, group: Sequence[str]) -> None:
        await self.open.wait()
        if self.failures_left:
            self.failures_left -= 1
            raise StorageUnavailable("away")
        for item in group:
            if item in self.bad:
                raise self.bad[item]
        self.groups.append(list(group))


@pytest.mark.parametrize("error", [RefusedError("a zero byte"), KeyError("a defect")])
async def test_an_item_that_cannot_be_written_costs_no_other_item(error: Exception) -> None:
    table = Table()
    table.bad["bad"] = error
    written: list[str] = []
    batcher = Batcher("texts", table.write, written.append)
    async with trio.open_nursery() as nursery:
        numbers = [batcher.put(text) for text in ("one", "bad", "two")]
        nursery.start_soon(batcher.run)
        with trio.fail_after(60):
            await batcher.wait_written(numbers[-1])
        nursery.cancel_scope.cancel()
    assert table.groups == [["one"], ["two"]]
    assert written == ["one", "bad", "two"]


async def test_items_wait_while_storage_is_unavailable(autojump_clock: trio.testing.MockClock) -> None:
    table = Table()
    table.failures_left = 3
    batcher = Batcher("texts", table.write)
    async with trio.open_nursery() as nursery:
        number = batcher.put("one")
        nursery.start_soon(batcher.run)
        await trio.testing.wait_all_tasks_blocked()
        assert batcher.unavailable
        assert list(batcher.unwritten) == ["one"]
        await batcher.wait_written(number)
        nursery.cancel_scope.cancel()
    assert table.groups == [["one"]]
    assert batcher.failures == 3
    assert not batcher.unavailable


async def test_what_is_put_during_a_write_shares_the_next_group() -> None:
    table = Table()
    table.open = trio.Event()
    batcher = Batcher("texts", table.write, max_group=3)
    async with trio.open_nursery() as nursery:
        batcher.put("0")
        nursery.start_soon(batcher.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 6):
            batcher.put(str(number))
        assert len(batcher) == 5
        assert list(batcher.unwritten) == ["0", "1", "2", "3", "4", "5"]
        table.open.set()
        await batcher.flush()
        nursery.cancel_scope.cancel()
    assert table.groups == [["0"], ["1", "2", "3"], ["4", "5"]]


async def test_a_stalled_write_costs_one_flush_its_time(autojump_clock: trio.testing.MockClock) -> None:
    table = Table()
    batcher = Batcher("texts", table.write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        table.open = trio.Event()
        number = batcher.put("one")
        began = trio.current_time()
        assert not await batcher.flush_within(5)
        assert not await batcher.flush_within(5)
        assert trio.current_time() == began + 5
        table.open.set()
        await batcher.wait_written(number)
        await trio.testing.wait_all_tasks_blocked()
        assert await batcher.flush_within(5)
        assert batcher.is_written(number)
        nursery.cancel_scope.cancel()
