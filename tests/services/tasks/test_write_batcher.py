"""What sessions and progress have to write for tasks, in groups: one that cannot be written costs no other its own."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.services.tasks.transaction.work import Work
from aether_trio.services.tasks.write_batcher import Mutation, WriteBatcher
from aether_trio.storage.base import Program, RefusedError, StorageUnavailable


def nothing(work: Work) -> Program[None]:
    """An errand without a statement."""
    yield from ()


@pytest.mark.parametrize("error", [RefusedError("a zero byte"), KeyError("a defect")])
async def test_what_cannot_be_written_costs_no_other_its_own(error: Exception) -> None:
    done: list[str] = []

    def errand(name: str) -> Mutation:
        def program(work: Work) -> Program[None]:
            if name == "bad":
                raise error
            done.append(name)
            yield from ()

        return program

    async def perform(one: Mutation) -> None:
        before = list(done)
        work: Any = None
        try:
            for _ in one(work):
                raise AssertionError
        except Exception:
            done[:] = before  # rolled back
            raise

    desk = WriteBatcher(perform, list)
    async with trio.open_nursery() as nursery:
        numbers = [desk.put(errand(name)) for name in ("one", "bad", "two")]
        nursery.start_soon(desk.run)
        with trio.fail_after(60):
            await desk.wait_done(numbers[-1])
        nursery.cancel_scope.cancel()
    assert done == ["one", "two"]


async def test_what_waits_for_storage_is_written_when_it_is_back(autojump_clock: trio.testing.MockClock) -> None:
    tries = 0

    async def perform(one: Mutation) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StorageUnavailable("away")

    desk = WriteBatcher(perform, list)
    async with trio.open_nursery() as nursery:
        number = desk.put(nothing)
        nursery.start_soon(desk.run)
        await desk.wait_done(number)
        nursery.cancel_scope.cancel()
    assert tries == 4
