"""Lets an agent print on when the orchestrator that reads it was killed."""

from __future__ import annotations

import functools
import os
import select
import stat
import threading
from collections.abc import Sequence
from typing import Final

_OUTPUTS: Final = (1, 2)


@functools.cache
def guard_output() -> None:
    """Watch the outputs, once: a pipe without a reader becomes /dev/null.

    Otherwise the next print raises BrokenPipeError in the middle of the agent's work.
    """
    if not hasattr(select, "poll"):
        return
    pipes = [fd for fd in _OUTPUTS if _is_pipe(fd)]
    if pipes:
        threading.Thread(target=_watch, args=(pipes,), name="aether output guard", daemon=True).start()


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _watch(pipes: Sequence[int]) -> None:
    poll = select.poll()
    for fd in pipes:
        poll.register(fd, 0)  # an error is reported without being asked for
    left = set(pipes)
    while left:
        for fd, _ in poll.poll():
            # The program may have closed or replaced it meanwhile: look at what it is now.
            if _has_no_reader(fd):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, fd)
                os.close(null)
            poll.unregister(fd)
            left.discard(fd)


def _has_no_reader(fd: int) -> bool:
    now = select.poll()
    now.register(fd, 0)
    return _is_pipe(fd) and any(event & select.POLLERR for _, event in now.poll(0))
