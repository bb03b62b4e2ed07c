"""SIGHUP that comes while a command starts that reads files anew at SIGHUP."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hangups:
    """Notes a SIGHUP that comes before a command handles it, and would end it."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the signal within the block, but where the command itself receives it."""

        def note(_number: int, _frame: object) -> None:
            self.came = True

        before = signal.signal(signal.SIGHUP, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)
