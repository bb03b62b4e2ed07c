"""Runs a part beside a gateway of this process, and ends it before the drain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio


class Served(Protocol):
    """The addresses of a running gateway."""

    @property
    def address(self) -> str: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...


class Sidecar:
    """A part that runs beside a gateway, such as an orchestrator."""

    def __init__(self, main: Callable[[Served], Awaitable[None]], kill: Callable[[], None] = lambda: None) -> None:
        self._main = main
        self._kill = kill
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    async def run(self, gateway: Served) -> None:
        """Run the part until it returns, or until `end`. Call it once."""
        try:
            with self._scope:
                await self._main(gateway)
        finally:
            self._over.set()

    async def end(self) -> None:
        """End the part, and wait for its end. Only after `run` has been started."""
        self._scope.cancel()
        await self._over.wait()

    def kill(self) -> None:
        """End the part at once. Never blocks."""
        self._scope.cancel()
        self._kill()
