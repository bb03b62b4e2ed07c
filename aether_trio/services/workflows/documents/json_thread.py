"""Reads and writes large JSON beside the event loop.

The interpreter's lock is not given up within one call of the json module. So a large value is
written in pieces, and numbers are read by a function in Python: both let the event loop go on.
These threads are others than those that compile, whose work takes longer (compilation_thread.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from aether_trio.model.limits import KIB
from aether_trio.services.workflows.documents.worker_threads import WorkerThreads

T = TypeVar("T")

MOST_AT_ONCE: Final = 2
SMALL_BYTES: Final = 16 * KIB
"""JSON of this size is read or written in about a millisecond."""
_threads: Final = WorkerThreads("workflow JSON", MOST_AT_ONCE)


async def in_json_thread(work: Callable[[], T], size: int) -> T:
    """Return what `work`, on JSON of `size` bytes, returns or raises."""
    if size <= SMALL_BYTES:
        return work()
    return await _threads.run(work)
