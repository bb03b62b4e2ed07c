"""Test what a thread raises when it leaves a block of the event loop."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import anyio
import pytest
import trio
import trio.testing

from aether_trio.client import ClientClosed, SessionEnded
from aether_trio.client.blocking.bridge import LoopBridge, LoopThread, _ContextTask
from tests.client.interrupts import Interrupt

WHY = SessionEnded("ENDED", "an operator did it")


class Ending:
    """A manager that cancels its block and raises why, as a client does."""

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
def open_bridge() -> Iterator[LoopBridge]:
    loop = LoopThread()
    try:
        yield LoopBridge(loop)
    finally:
        loop.stop()


async def test_a_cancelled_block_is_left_with_the_cancellation_even_when_the_thread_leaves_at_once() -> None:
    manager = Ending()
    block = _ContextTask(manager)
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


def raised_as_the_loop_ends(work: Callable[[LoopBridge], object], begun: threading.Event) -> list[BaseException]:
    """Give what a thread raises that has `begun` when the loop ends."""
    raised: list[BaseException] = []

    def run(bridge: LoopBridge) -> None:
        try:
            work(bridge)
        except BaseException as error:
            raised.append(error)

    with open_bridge() as bridge:
        thread = threading.Thread(target=run, args=(bridge,))
        thread.start()
        assert begun.wait(300)
    thread.join(300)
    return raised


def test_a_call_that_the_end_of_the_loop_cancels_raises_client_closed() -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    raised = raised_as_the_loop_ends(lambda bridge: bridge.run(wait), begun)
    assert [type(error) for error in raised] == [ClientClosed]


def test_a_block_that_is_entered_as_the_loop_ends_raises_client_closed() -> None:
    begun = threading.Event()

    class Slow(Ending):
        async def __aenter__(self) -> Self:
            begun.set()
            await anyio.sleep_forever()
            raise AssertionError

    raised = raised_as_the_loop_ends(lambda bridge: bridge.entered(Slow()).__enter__(), begun)
    assert [type(error) for error in raised] == [ClientClosed]


@pytest.mark.parametrize("own", [False, True])
def test_a_group_of_nothing_but_why_the_block_was_cancelled_is_that(own: bool) -> None:
    """Threads of the body have met it."""
    met = ExceptionGroup("of threads", [WHY, KeyError("own") if own else WHY])
    with open_bridge() as bridge:
        with pytest.raises(ExceptionGroup if own else SessionEnded) as caught, bridge.entered(Ending()) as manager:
            bridge.run(manager.end)
            raise met
        assert caught.value is (met if own else WHY)


def test_the_cause_of_what_the_body_raised_is_kept() -> None:
    cause = OSError("the reason")
    with open_bridge() as bridge:
        with pytest.raises(ValueError, match="own") as caught, bridge.entered(Ending()) as manager:
            bridge.run(manager.end)
            raise ValueError("own") from cause
        assert caught.value.__cause__ is cause


def test_why_a_block_was_cancelled_is_not_its_own_cause() -> None:
    with open_bridge() as bridge:
        with pytest.raises(SessionEnded) as caught, bridge.entered(Ending()) as manager:
            bridge.run(manager.end)
            raise WHY  # as a call of the body does
        assert caught.value is WHY
        assert caught.value.__cause__ is not WHY


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_that_is_left_as_the_loop_ends_raises_what_its_body_raised(kind: type[BaseException]) -> None:
    begun = threading.Event()

    class Slow:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> bool:
            begun.set()
            await anyio.sleep_forever()
            raise AssertionError

    def work(bridge: LoopBridge) -> None:
        with bridge.entered(Slow()):
            raise kind("own")

    assert [type(error) for error in raised_as_the_loop_ends(work, begun)] == [kind]


def test_a_call_that_comes_as_the_loop_ends_raises_client_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the loop may live for a moment after its portal has been stopped."""
    with open_bridge() as bridge:
        bridge._portal.call(bridge._portal.stop)
        monkeypatch.setattr(LoopThread, "answers", True)
        with pytest.raises(ClientClosed):
            bridge.run(anyio.sleep, 0)
        with pytest.raises(ClientClosed), bridge.entered(Ending()):
            pytest.fail("entered")
        bridge.run_if_open(lambda: pytest.fail("called"))


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


class Counted:
    entered = left = 0

    async def __aenter__(self) -> Self:
        await anyio.sleep(0)
        Counted.entered += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        Counted.left += 1


def in_a_block(bridge: LoopBridge) -> None:
    with bridge.entered(Counted()):
        bridge.run(anyio.sleep, 0)


def test_a_block_is_left_wherever_its_thread_is_interrupted() -> None:
    with open_bridge() as bridge:
        number, came = 0, True
        while came:
            number += 1
            interrupt = Interrupt(number, ("client/blocking/bridge.py", __file__))
            with suppress(KeyboardInterrupt), interrupt.armed():
                in_a_block(bridge)
            came = interrupt.came
            while Counted.left < Counted.entered:
                bridge.run(anyio.sleep, 0)
        assert number > 30
    assert Counted.entered > 10


def two_calls() -> int:
    one = len("one")
    return one + len("two")


def test_interrupts_come_where_python_looks_for_them() -> None:
    places: list[int] = []
    interrupt = Interrupt(1, (__file__,))
    while not places or interrupt.came:
        interrupt = Interrupt(len(places) + 1, (__file__,))
        try:
            with interrupt.armed():
                two_calls()
        except KeyboardInterrupt as error:
            frames = traceback.extract_tb(error.__traceback__)
            places += [
                (frame.lineno or 0) - two_calls.__code__.co_firstlineno for frame in frames if frame.name == "two_calls"
            ]
    assert sorted(set(places)) == [1, 2]
