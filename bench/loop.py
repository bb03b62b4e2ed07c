"""The load's event loop: one epoll set, no tasks, no futures.

An event costs a dictionary look-up and a method call. Everything that handlers queue while a batch
of events is worked off leaves at the end of the batch, one `send` per connection, so that a burst
of receipts becomes a burst of sends.

Invariant: only `run` touches sockets, and it returns between batches, so a scenario sees its own
state at rest.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Protocol, Self

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
READ_BYTES = 65_536


class Pollable(Protocol):
    """A connection that the loop watches."""

    socket: socket.socket

    def readable(self) -> None:
        """Read: the socket has bytes, or its end."""
        ...

    def take(self) -> bytes:
        """Take the bytes to write now."""
        ...


class Loop:
    """An event loop; a context manager whose time is `perf_counter` seconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Pollable] = {}
        self._dirty: set[Pollable] = set()
        self._unsent: dict[Pollable, bytes] = {}
        self._ending: set[Pollable] = set()

    @property
    def watched(self) -> list[Pollable]:
        """All connections of the loop."""
        return list(self._watched.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection in self.watched:
            self.discard(connection)
        self._epoll.close()

    def add(self, connection: Pollable) -> None:
        """Watch a non-blocking socket, also one that is still connecting."""
        fd = connection.socket.fileno()
        self._watched[fd] = connection
        self._epoll.register(fd, READ)
        self._dirty.add(connection)

    def discard(self, connection: Pollable) -> None:
        """Forget a connection and close it, also one that is forgotten already."""
        fd = connection.socket.fileno()
        if fd >= 0 and self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        self._dirty.discard(connection)
        self._ending.discard(connection)
        self._unsent.pop(connection, None)
        connection.socket.close()

    def wants_write(self, connection: Pollable) -> None:
        """Have `connection.take` asked at the end of this round; cheap to repeat."""
        self._dirty.add(connection)

    def ends_writing(self, connection: Pollable) -> None:
        """Half-close a connection behind all that it has to write."""
        self._dirty.add(connection)
        self._ending.add(connection)

    def run(
        self, until: float, done: Callable[[], bool] | None = None, pulse: Callable[[float], float] | None = None
    ) -> bool:
        """Move bytes until `done()` (True) or the time `until` (False).

        `pulse(now)` is called in each round and returns when it wants to be called next; it makes
        waits precise to some 50 µs, which epoll's milliseconds are not, for the price of one more
        system call.
        """
        poll, watched = self._epoll.poll, self._watched
        while True:
            now = perf_counter()
            wake = min(until, pulse(now)) if pulse else until
            self._flush()
            if done is not None and done():
                return True
            if now >= until:
                return False
            # `done` may have queued something (a new connection's opening): do not sleep on it.
            timeout = 0.0 if self._dirty else max(0.0, wake - perf_counter())
            if pulse and timeout:
                select.select([self._epoll], [], [], timeout)
                timeout = 0.0
            for fd, mask in poll(timeout):
                connection = watched.get(fd)
                if connection is None:
                    continue  # closed by an earlier event of this batch
                if mask & WRITE:
                    self._epoll.modify(fd, READ)
                    self._dirty.add(connection)
                if mask & ~WRITE:
                    connection.readable()

    def _flush(self) -> None:
        if not self._dirty:
            return
        unsent = self._unsent
        for connection in self._dirty:
            data = connection.take()
            if unsent and connection in unsent:
                data = unsent.pop(connection) + data
            if not data:
                continue
            try:
                sent = connection.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                continue  # the reading side will see the reset and say why
            if sent < len(data):
                unsent[connection] = data[sent:]
                self._epoll.modify(connection.socket.fileno(), READ | WRITE)
        self._dirty.clear()
        if self._ending:
            self._end_writing()

    def _end_writing(self) -> None:
        for connection in self._ending.difference(self._unsent):
            self._ending.discard(connection)
            with suppress(OSError):  # a peer that has gone is seen by the reading side
                connection.socket.shutdown(socket.SHUT_WR)


def dial(host: str, port: int) -> socket.socket:
    """Begin a non-blocking TCP connection; what is written before it is open waits."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_STREAM)
    raw.setblocking(False)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.connect_ex((host, port))
    return raw
