"""Waits for sockets with one registration each, which stays from read to read.

trio registers a socket again for each wait and wakes a task for each ready socket. Here a second
epoll instance has all sockets, edge-triggered, and one system task of the trio run waits for it. It
calls what a reader has to do at once, in a plain call; the reader's task wakes only when there is
something for it.

Invariants: an edge is never lost: one that comes while no task waits, or whose bytes were not all
read, is asked for again at the next wait; what an `attempt` raises, its reader's task raises, and
the other sockets are served all the same; other tasks have their turn after TURN_S.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final, TypeVar

import outcome
import trio

__all__ = ["READ_BYTES", "SocketReader"]

T = TypeVar("T")

READ_BYTES: Final = 64 * 1024
"""The most bytes that one read takes."""
READS_AT_ONCE: Final = 64
"""Ready sockets that one look at the sockets finds."""
TURN_S: Final = 0.002
"""After so long other tasks have their turn: a socket may have many messages."""

_EDGES: Final = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_MORE: Final = select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""With these a short read may have left something: an urgent byte ends a read, as the end does."""


class SocketReader:
    """Reads one connected, non-blocking socket, for one task at a time."""

    __slots__ = ("_attempt", "_fd", "_sockets", "_task", "_unread", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._fd = -1
        self._sockets: _ReadySockets | None = None
        self._attempt: Callable[[], Any] | None = None
        self._task: trio.lowlevel.Task | None = None
        self._unread = False
        """Whether the socket may have bytes, or its end, that no further edge will announce."""

    @property
    def is_waiting(self) -> bool:
        """Whether a task waits in `until`."""
        return self._task is not None

    def read(self) -> bytes | None:
        """Read once: None if nothing has come, b"" at the end. Raises OSError."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        if len(data) == READ_BYTES:
            self._unread = True
        return data

    def until(self, attempt: Callable[[], T | None]) -> Awaitable[T]:
        """Call `attempt` when bytes may have come; return the first that is not None.

        `attempt` calls `read` once, and never blocks. It runs in a system task, and what it raises
        is raised here. A checkpoint; await it at once. Raises BusyResourceError, OSError.
        """
        if self._task is not None:
            raise trio.BusyResourceError("another task is already reading from this socket")
        if self._sockets is None:
            sockets = _sockets_of_this_run()
            self._fd = sockets.add(self)
            self._sockets = sockets
        elif self._unread:
            self._ask_again()
        self._attempt = attempt
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105 -- the caller awaits it

    def wake(self, found: object) -> None:
        """Let a task that waits in `until` return `found`; not from an `attempt`."""
        if self._attempt is not None:
            self._resume(outcome.Value(found))

    def release(self) -> None:
        """Forget the socket, which is about to be closed. Idempotent."""
        if self._sockets is not None:
            self._sockets.remove(self._fd, self)
            self._sockets = None

    # -- what the loop calls -----------------------------------------------------------------------

    def ready(self, events: int) -> None:
        """Handle an edge of the socket."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            self._unread = True
            return
        # Bytes and the end may share one edge, so that a read of the bytes has not seen the end.
        self._unread = bool(events & _MORE)
        try:
            found = attempt()
            if found is None and self._unread:
                self._ask_again()
        except Exception as error:
            self._unread = True
            self._resume(outcome.Error(error))
            return
        if found is not None:
            self._resume(outcome.Value(found))
        elif self._task is not None:
            self._attempt = attempt

    def _resume(self, result: outcome.Outcome[object]) -> None:
        task, self._task, self._attempt = self._task, None, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = self._attempt = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _ask_again(self) -> None:
        if self._sockets is not None:
            self._unread = False
            self._sockets.ask_again(self._fd)


class _ReadySockets:
    """All sockets of one trio run that are read with a SocketReader."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, SocketReader] = {}

    def add(self, reader: SocketReader) -> int:
        """Register a socket and return its number; bytes that are there are an edge."""
        number = reader.sock.fileno()
        try:
            self._epoll.register(number, _EDGES)
        except FileExistsError:  # another reader had the socket before
            self._epoll.modify(number, _EDGES)
        self._readers[number] = reader
        return number

    def ask_again(self, number: int) -> None:
        """Have the kernel report the socket again if it still has bytes or its end."""
        self._epoll.modify(number, _EDGES)

    def remove(self, number: int, reader: SocketReader) -> None:
        """Forget a socket; the kernel does so when the socket is closed."""
        if self._readers.get(number) is reader:
            del self._readers[number]

    async def run(self) -> None:
        """Serve the sockets that are ready, until the trio run ends."""
        poll, readers = self._epoll.poll, self._readers
        number = self._epoll.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(number)
                end = perf_counter() + TURN_S
                for socket_number, events in poll(0, READS_AT_ONCE):
                    reader = readers.get(socket_number)
                    if reader is not None:
                        reader.ready(events)
                        if perf_counter() > end:
                            await trio.lowlevel.checkpoint()
                            end = perf_counter() + TURN_S
        finally:
            self._epoll.close()


_THIS_RUN: Final[trio.lowlevel.RunVar[_ReadySockets]] = trio.lowlevel.RunVar("aether-trio-ready-sockets")


def _sockets_of_this_run() -> _ReadySockets:
    try:
        return _THIS_RUN.get()
    except LookupError:
        sockets = _ReadySockets()
        _THIS_RUN.set(sockets)
        trio.lowlevel.spawn_system_task(sockets.run, name="ready-sockets")
        return sockets
