"""trio-asyncio, imported in this one place: importing it changes asyncio for the whole process.

Outside of trio, in any thread, `asyncio.run` would then get a loop of theirs that runs on trio in a greenlet, where
`trio.from_thread` does not work. They keep what asyncio had as a policy for each thread that has set one; here it becomes that of
all threads which have not. Their names for it are private, so the test of this module is what tells us when they change.

Their loop goes back to trio's scheduler, and so asks the kernel for events, for each callback that it runs. A statement of asyncpg
takes some five callbacks, so that most of what one costs was this. The loop of `open_loop` runs what is ready in one go instead, but
for at most BATCH callbacks, so that trio's own tasks have their turn.
"""

from __future__ import annotations

import asyncio
import heapq
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio
from sniffio import thread_local as sniffio_library

with warnings.catch_warnings():
    # They subclass what asyncio deprecates from Python 3.12 on; whoever makes errors of warnings could not import us.
    warnings.simplefilter("ignore", DeprecationWarning)
    from trio_asyncio import _loop, aio_as_trio
    from trio_asyncio import open_loop as _open_loop
    from trio_asyncio._handles import AsyncHandle

_theirs: Any = _loop
_theirs._FakedPolicy.policy = _theirs._original_policy

logger = structlog.get_logger("aether.storage")

BATCH: Final = 64

__all__ = ["aio_as_trio", "open_loop"]


@asynccontextmanager
async def open_loop() -> AsyncIterator[Any]:
    """Their loop, running until the block ends."""
    async with _open_loop() as loop:
        loop._main_loop_one = _quick_main(loop)
        loop._io_task = _quick_io
        loop.set_exception_handler(_complain)
        yield loop


def _complain(loop: Any, context: dict[str, Any]) -> None:
    forgotten = context.get("future")
    if isinstance(forgotten, asyncio.Future) and not isinstance(forgotten, asyncio.Task):
        logger.debug("nobody has asked what became of a future", error=repr(context.get("exception")))
    else:
        loop.default_exception_handler(context)


async def _quick_io(fd: int, handle: Any, wait_ready: Callable[[int], Awaitable[None]]) -> None:
    """What replaces `loop._io_task`, which lets all that is ready run before it looks at `fd` again: that costs a round of its own.

    So a transport may read twice before those are told who wait for what it has read. asyncio's transports do not mind.
    """
    with handle._scope:
        try:
            while not handle._cancelled:
                try:
                    await wait_ready(fd)
                except OSError:
                    if handle._cancelled:  # and closed meanwhile
                        return
                    raise
                if not handle._cancelled:
                    handle._run()
        except Exception as exc:
            handle._raise(exc)


def _quick_main(loop: Any) -> Callable[..., Awaitable[None]]:
    """What replaces `loop._main_loop_one`, which waits for one callback and runs it."""
    wait_for_one: Callable[..., Awaitable[None]] = loop._main_loop_one
    timers: list[asyncio.TimerHandle] = loop._timers
    ready: trio.MemoryReceiveChannel[asyncio.Handle] = loop._q_recv

    def next_ready() -> asyncio.Handle | None:
        if timers and timers[0]._when <= loop.time():  # type: ignore[attr-defined]  # a private name of asyncio's
            return heapq.heappop(timers)
        while True:
            try:
                handle = ready.receive_nowait()
            except trio.WouldBlock:
                return None
            if not isinstance(handle, asyncio.TimerHandle):
                return handle
            heapq.heappush(timers, handle)

    async def run_some(*, no_wait: bool = False) -> None:
        await wait_for_one(no_wait=no_wait)
        for _ in range(BATCH):
            handle = next_ready()
            if handle is None:
                return
            if isinstance(handle, AsyncHandle):
                handle._context.run(loop._nursery.start_soon, handle._run, name=handle._callback)
                await handle._started.wait()
            elif not handle._cancelled:
                before, sniffio_library.name = sniffio_library.name, "asyncio"
                try:
                    handle._run()
                finally:
                    sniffio_library.name = before
        await trio.lowlevel.checkpoint()

    return run_some
