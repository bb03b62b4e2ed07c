"""Asks the kernel whether a peer has ended its connection, without reading."""

from __future__ import annotations

import select
import socket
from typing import Final

_ENDS: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def has_input(sock: socket.socket) -> bool:
    """Return whether a read of the socket would return bytes or the end."""
    if sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def has_ended(sock: socket.socket) -> bool:
    """Return whether the peer has reset the connection or ended its side.

    Unread input does not matter. Two system calls. Outside Linux only resets count.
    """
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, _ENDS)
    return bool(poll.poll(0))
