"""Let hours pass at once, and count the steps of a program.

    steps = run_hours(backend, main)          # Spinning is raised when they are more than MOST

Time jumps to the next deadline when nothing can go on and no socket has news. It runs on trio and
on asyncio. A loopback socket has its data at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import trio

from tests.helpers.core import run_in_virtual_time

__all__ = ["Spinning", "run_hours"]

MOST: Final = 3_000_000
"""Steps that no hour needs: a program that makes them will not end."""


class Spinning(AssertionError):
    """More than MOST steps."""


class _Steps(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        if self.count == MOST:
            self.scope.cancel()


class _Selector(selectors.SelectSelector):
    """Never waits while a deadline is known."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout if timeout is None else 0)
        if not found and timeout is not None:
            self.now += max(timeout, 0.0)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        self.count = 0
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Without a limit (Python 3.12 has one), as the threads do not live by this clock."""
        await super().shutdown_default_executor()

    def _run_once(self) -> None:
        self.count += len(self._ready)  # type: ignore[attr-defined]
        if self.count > MOST:
            raise Spinning
        super()._run_once()  # type: ignore[misc]


def run_hours(backend: str, main: Callable[[], Awaitable[None]]) -> int:
    """Run it, and count the steps."""
    if backend == "trio":
        steps = _Steps()

        async def scoped() -> None:
            with steps.scope:
                await main()
            if steps.scope.cancelled_caught:
                raise Spinning

        run_in_virtual_time(scoped, instruments=[steps])
        return steps.count
    loops: list[_Loop] = []

    def loop() -> _Loop:
        loops.append(_Loop())
        return loops[-1]

    options: dict[str, Any] = {"loop_factory": loop}
    anyio.run(partial(main), backend="asyncio", backend_options=options)
    return loops[0].count
