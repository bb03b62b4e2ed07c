"""One caller's mistake costs no other caller of the statement, and few statements."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.storage.bisection import in_halves


class Table:
    def __init__(self, bad: set[int], error: type[Exception] = ValueError) -> None:
        self.bad = bad
        self.error = error
        self.rows: list[int] = []
        self.statements = 0
        self.refused: list[tuple[int, str]] = []

    async def write(self, items: Sequence[int]) -> list[int]:
        await trio.lowlevel.checkpoint()
        self.statements += 1
        if self.bad & set(items):
            raise self.error("no")
        self.rows += items
        return [-item for item in items]

    async def write_all(self, count: int) -> list[int]:
        return await in_halves(range(count), self.write, lambda item, error: self.refused.append((item, str(error))))


@pytest.mark.parametrize("error", [ValueError, RefusedError])
async def test_the_others_are_written_in_order(error: type[Exception]) -> None:
    table = Table({300, 301, 999}, error)
    done = await table.write_all(1000)
    assert table.refused == [(300, "no"), (301, "no"), (999, "no")]
    assert table.rows == [one for one in range(1000) if one not in table.bad]
    assert done == [-one for one in table.rows]
    assert table.statements < 60


async def test_nothing_is_written_twice_without_a_mistake() -> None:
    table = Table(set())
    assert await table.write_all(1000) == [-one for one in range(1000)]
    assert table.statements == 1


async def test_an_outage_is_no_mistake() -> None:
    table = Table({3}, StorageUnavailable)
    with pytest.raises(StorageUnavailable):
        await table.write_all(10)
    assert (table.statements, table.refused) == (1, [])
