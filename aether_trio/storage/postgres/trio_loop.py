"""An asyncio event loop inside of trio, for asyncpg.

    async with open_loop() as loop:
        await loop.run(asyncpg_coroutine())

It is asyncio's selector loop, which here never waits: trio watches the selector's epoll. When it is
readable, a turn of the loop handles its events and runs the callbacks that are ready, BATCH of them
at most, so that trio's tasks have their turn. The loop is asyncio's running one only during a turn,
and no policy is set.

It uses names of asyncio that are not public: `_ready`, `_scheduled`, `_timer_cancelled_count`,
`_process_events`, and `_set_running_loop`. The tests of this module fail when they change.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

import outcome
import structlog
import trio

logger = structlog.get_logger("aether.storage")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BATCH: Final = 64
FEW_TIMERS: Final = 100
"""With more timers, the cancelled ones are removed when they are the majority (asyncio's rule)."""

__all__ = ["BATCH", "TrioLoop", "open_loop"]


@asynccontextmanager
async def open_loop() -> AsyncIterator[TrioLoop]:
    """Run an asyncio loop until the block ends, or a callback raises."""
    loop = TrioLoop()
    try:
        async with trio.open_nursery() as loop._nursery:
            turns = [trio.CancelScope(shield=True), trio.CancelScope(shield=True)]
            loop._nursery.start_soon(loop._keep, loop._take_turns, turns[0])
            loop._nursery.start_soon(loop._keep, loop._watch, turns[1])
            try:
                yield loop
            finally:
                with trio.CancelScope(shield=True):
                    await loop._cancel_tasks()
                for scope in turns:
                    scope.cancel()
    finally:
        loop._open = False
        loop.close()


class TrioLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop in trio's thread, made by `open_loop`."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _nursery: trio.Nursery

    def __init__(self) -> None:
        self._open = False
        self._in_turn = False
        super().__init__()
        self._open = True
        self._sleeper: trio.lowlevel.Task | None = None
        self._sleep = trio.CancelScope()
        self._waiting: set[trio.lowlevel.Task] = set()
        self._error: BaseException | None = None
        self.set_exception_handler(_complain)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run an asyncio coroutine, cancelled with this call; return its result."""
        if self._error is not None:
            coroutine.close()
            raise RuntimeError("the asyncio loop of the database connections has failed") from self._error
        task = self.create_task(coroutine)
        waiter = trio.lowlevel.current_task()
        raise_cancel: Callable[[], Any] | None = None

        def wake(_: object) -> None:
            if waiter in self._waiting:
                self._waiting.discard(waiter)
                trio.lowlevel.reschedule(waiter)

        def cancel(raise_it: Callable[[], Any]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            task.cancel()
            return trio.lowlevel.Abort.FAILED

        self._waiting.add(waiter)
        task.add_done_callback(wake)
        await trio.lowlevel.wait_task_rescheduled(cancel)
        if raise_cancel is not None and task.cancelled():
            raise_cancel()
        return task.result()

    def time(self) -> float:
        return trio.current_time()

    def is_running(self) -> bool:
        return self._open

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call `callback` in this turn of the loop, or in the next one."""
        if not self._in_turn:
            self._wake()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` at `when`, in seconds of trio's clock."""
        if not self._in_turn:
            self._wake()
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run `func` in the executor; without one, in a trio thread that may be left."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future: asyncio.Future[T] = self.create_future()
        self._nursery.start_soon(self._run_in_thread, future, partial(func, *args))
        return future

    def start_now(self, start: Callable[[], object]) -> None:
        """Call `start`, which makes callbacks ready, and take a turn before this returns.

        It saves a pass of trio's scheduler, and puts callbacks into one turn less: not for work
        that is cheaper together. What callbacks raise is raised by `open_loop`.
        """
        if self._in_turn or self._error is not None:
            start()
            return
        self._in_turn = True  # no other turn is needed
        try:
            start()
        finally:
            self._in_turn = False
        try:
            self._turn()
        except Exception as error:
            self._fail(error)
        else:
            self._arrange_next_turn()

    async def _run_in_thread(self, future: asyncio.Future[T], func: Callable[[], T]) -> None:
        try:
            result = await trio.to_thread.run_sync(func, abandon_on_cancel=True)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        except trio.Cancelled:
            future.cancel()
            raise
        else:
            if not future.done():
                future.set_result(result)

    async def _keep(self, turns: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            try:
                await turns()
            except Exception as error:
                self._error = self._error or error
                self._give_up()
                raise

    async def _take_turns(self) -> None:
        """Take a turn whenever a callback is ready or a timer is due."""
        while True:
            self._turn()
            if self._ready:
                await trio.lowlevel.checkpoint()
                continue
            self._sleep = trio.CancelScope(deadline=self._next_timer())
            with self._sleep:
                self._sleeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._wake_up)

    async def _watch(self) -> None:
        """Take a turn whenever a socket is ready."""
        while True:
            await trio.lowlevel.wait_readable(self._selector.fileno())  # type: ignore[attr-defined]
            self._turn()
            self._arrange_next_turn()

    def _arrange_next_turn(self) -> None:
        if self._ready:
            self._wake()
        elif self._sleeper is not None and (due := self._next_timer()) < self._sleep.deadline:
            self._sleep.deadline = due

    def _wake_up(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    def _next_timer(self) -> float:
        return self._scheduled[0].when() if self._scheduled else math.inf

    def _turn(self) -> None:
        """Handle present events, run ready callbacks. Raises what a callback raised."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._in_turn = True
        ready = self._ready
        try:
            self._process_events(self._selector.select(0))  # type: ignore[attr-defined]
            if self._scheduled:
                self._take_due_timers()
            for _ in range(BATCH):
                if not ready:
                    break
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            self._in_turn = False
            asyncio._set_running_loop(outer)
        if self._error is not None:
            raise self._error

    def _take_due_timers(self) -> None:
        timers = self._scheduled
        if len(timers) > FEW_TIMERS and self._timer_cancelled_count > len(timers) / 2:
            for timer in timers:
                timer._scheduled = not timer.cancelled()  # type: ignore[attr-defined]
            timers[:] = [timer for timer in timers if not timer.cancelled()]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        now = self.time()
        while timers and (timers[0].cancelled() or timers[0].when() <= now):
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer.cancelled():
                self._timer_cancelled_count -= 1
            else:
                self._ready.append(timer)

    async def _cancel_tasks(self) -> None:
        while self._error is None and (left := asyncio.all_tasks(self)):
            for task in left:
                task.cancel()
            try:
                await self.run(_wait_for(left))
            except Exception:  # the loop has failed; the nursery raises its error
                return

    def _give_up(self) -> None:
        """Fail all calls of `run` that wait, because the loop has failed."""
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            trio.lowlevel.reschedule(
                waiter, outcome.Error(RuntimeError("the asyncio loop of the database connections has failed"))
            )

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        if not self._in_turn:
            self._wake()


async def _wait_for(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, TrioLoop)
    error, forgotten = context.get("exception"), context.get("future")
    if isinstance(forgotten, asyncio.Future) and not isinstance(forgotten, asyncio.Task):
        logger.debug("an asyncio future failed, and no task awaited it", error=repr(error))
    elif isinstance(error, asyncio.CancelledError):
        # that of asyncio's streams does, in Python 3.11
        logger.debug("a callback of a cancelled asyncio task failed")
    elif isinstance(error, BaseException):
        loop._fail(error)
    else:
        logger.error("the asyncio loop of the PostgreSQL driver reports an error", message=context.get("message"))
