"""Keeps TCP ports for longer than the process that listens on them.

A port that was free a moment ago, or whose owner has just been killed, may be given to another
process by the kernel. A port that is bound and not listened on is given to none; a process that
asks for it by its number gets it, if both sockets have SO_REUSEADDR (socket(7)), as servers' have.
Until a process listens, connections to it are refused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from aether_trio.transport.socket.listener import bind_tcp


@contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Reserve a free port that no other process is given until the block ends."""
    sockets = bind_tcp(host, 0)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        for one in sockets:
            one.close()


class HeldPorts:
    """Reserves the ports of an ended process that is to be started again on them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, addresses: Iterable[str]) -> None:
        """Reserve the free ports of these ("HOST:PORT" or "") instead of earlier ones."""
        self.release()
        for address in filter(None, addresses):
            host, _, port = address.rpartition(":")
            with suppress(OSError):
                self._sockets += bind_tcp(host.strip("[]"), int(port))

    def release(self) -> None:
        """Release the reserved ports."""
        while self._sockets:
            self._sockets.pop().close()
