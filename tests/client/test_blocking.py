"""A block of the loop, for a thread: what it is left with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
import pytest
import trio
import trio.testing

from aether_trio.client import SessionEnded
from aether_trio.client.blocking import Bridge, LoopThread, _Block

WHY = SessionEnded("ENDED", "an operator did it")


class Ending:
    """A manager that may cancel its own block, and then raises why: as a client does."""

    def __init__(self) -> None:
        self.left_with: BaseException | None = None

    async def __aenter__(self) -> Self:
        self.group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.left_with = error
        cancelled = error if isinstance(error, anyio.get_cancelled_exc_class()) else None
        await self.group.__aexit__(cancelled and type(cancelled), cancelled, None)
        if self.group.cancel_scope.cancel_called and (error is None or cancelled is not None):
            raise WHY
        return isinstance(error, LookupError)

    async def end(self) -> None:
        self.group.cancel_scope.cancel()


@contextmanager
def open_bridge() -> Iterator[Bridge]:
    loop = LoopThread()
    try:
        yield Bridge(loop)
    finally:
        loop.stop()


async def test_a_cancelled_block_is_left_with_the_cancellation_even_when_the_thread_leaves_at_once() -> None:
    manager = Ending()
    block = _Block(manager)
    results = []

    async def live() -> None:
        try:
            results.append(await block.run())
        except SessionEnded as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await trio.testing.wait_all_tasks_blocked()
        block.error = ValueError("from the thread")
        await manager.end()
    assert results == [WHY]
    assert isinstance(manager.left_with, trio.Cancelled)


def test_a_thread_is_told_why_its_block_was_cancelled() -> None:
    with open_bridge() as bridge:
        with pytest.raises(SessionEnded) as caught, bridge.entered(Ending()) as manager:
            bridge.run(manager.end)
        assert caught.value is WHY


def test_a_threads_own_error_is_raised() -> None:
    with open_bridge() as bridge:
        with pytest.raises(ValueError, match="own"), bridge.entered(Ending()) as manager:
            raise ValueError("own")
        assert isinstance(manager.left_with, ValueError)


def test_a_manager_may_swallow_it() -> None:
    with open_bridge() as bridge:
        with bridge.entered(Ending()) as manager:
            raise LookupError
        assert isinstance(manager.left_with, LookupError)
