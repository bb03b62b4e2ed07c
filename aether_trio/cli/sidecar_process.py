"""Runs an orchestrator or another sidecar beside a gateway, until its drain."""

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


def together(*sidecars: Sidecar) -> Sidecar:
    """Make one sidecar of several, which run side by side."""

    async def main(gateway: Served) -> None:
        async with trio.open_nursery() as nursery:
            for one in sidecars:
                nursery.start_soon(one.run, gateway)

    def kill() -> None:
        for one in sidecars:
            one.kill()

    return Sidecar(main, kill)


class Sidecar:
    """An async function that runs beside a gateway, such as an orchestrator."""

    def __init__(self, main: Callable[[Served], Awaitable[None]], kill: Callable[[], None] = lambda: None) -> None:
        self._main = main
        self._kill = kill
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    async def run(self, gateway: Served) -> None:
        """Run the sidecar's function until it returns, or until `end`. Call it once."""
        try:
            with self._scope:
                await self._main(gateway)
        finally:
            self._over.set()

    async def end(self) -> None:
        """Cancel the sidecar, and wait for its end. Only after `run` has been started."""
        self._scope.cancel()
        await self._over.wait()

    def kill(self) -> None:
        """Cancel the sidecar, and call its `kill` function. Never blocks."""
        self._scope.cancel()
        self._kill()
