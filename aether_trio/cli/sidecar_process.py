"""Runs a part beside a gateway of this process, and ends it before the drain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio


class Served(Protocol):
    """Where the gateway is."""

    @property
    def address(self) -> str: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...


class Sidecar:
    """A part that runs beside a gateway.

    `run` runs it, once. `end` ends it and returns when it has ended. `kill` ends it without
    waiting.
    """

    def __init__(self, main: Callable[[Served], Awaitable[None]], kill: Callable[[], None] = lambda: None) -> None:
        self._main = main
        self._kill = kill
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    async def run(self, gateway: Served) -> None:
        """Until it is over, or `end`."""
        try:
            with self._scope:
                await self._main(gateway)
        finally:
            self._over.set()

    async def end(self) -> None:
        """Only after `run` has been started."""
        self._scope.cancel()
        await self._over.wait()

    def kill(self) -> None:
        """End it at once. Never blocks."""
        self._scope.cancel()
        self._kill()
