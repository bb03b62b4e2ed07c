"""Calls into a client's event loop from threads, signal handlers and finalizers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TypeAlias

import sniffio
import trio

CallSoon: TypeAlias = Callable[[Callable[[], object]], None]
"""Has an event loop call a function soon. Never waits, never raises."""


def call_soon() -> CallSoon:
    """Return a function that calls functions soon in this event loop; none may raise."""
    enter: Callable[[Callable[[], object]], object]
    if sniffio.current_async_library() == "trio":
        enter = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        # The context of a foreign thread may say that another kind of loop runs here.
        enter = partial(asyncio.get_running_loop().call_soon_threadsafe, context=copy_context())
    process = os.getpid()

    def soon(function: Callable[[], object]) -> None:
        if sys.is_finalizing() or os.getpid() != process:
            return  # the loop's thread does not run here, and may hold the lock of its queue
        with contextlib.suppress(RuntimeError):  # the loop has ended
            enter(function)

    return soon
