"""Something that runs beside a gateway of this process, and has ended before the gateway drains."""

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
    """`run` runs it, once; `end` ends it and returns when it has ended; `kill` lets it take no more
    time for that.
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
