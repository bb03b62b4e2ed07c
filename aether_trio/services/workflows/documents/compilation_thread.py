"""Compiles documents in threads, so that the event loop goes on meanwhile.

The largest documents take seconds. At most two are compiled at once: further ones wait, and the
event loop gets its share of the interpreter. Small ones take a few milliseconds and need no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from aether_trio.services.workflows.documents.worker_threads import WorkerThreads

T = TypeVar("T")

MOST_AT_ONCE: Final = 2
SMALL_BYTES: Final = 4096
_threads: Final = WorkerThreads("workflow document compilations", MOST_AT_ONCE)


async def compile_in_thread(work: Callable[[], T], size: int) -> T:
    """Return what `work`, of a text of `size` bytes, returns or raises."""
    if size <= SMALL_BYTES:
        return work()
    return await _threads.run(work)
