"""Compiles documents in threads, so that the event loop goes on meanwhile.

The largest documents take seconds. At most two are compiled at once: further ones wait, and the
event loop gets its share of the interpreter. Small ones take a few milliseconds and need no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

MOST_AT_ONCE: Final = 2
SMALL_BYTES: Final = 4096
_limiter: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("workflow document compilations")


async def compile_in_thread(work: Callable[[], T], size: int) -> T:
    """Return what `work`, of a text of `size` bytes, returns or raises."""
    if size <= SMALL_BYTES:
        return work()
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MOST_AT_ONCE)
        _limiter.set(limiter)
    return await trio.to_thread.run_sync(work, limiter=limiter)
