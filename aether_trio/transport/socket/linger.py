"""Drains a socket before its close, so that the peer can read our last bytes."""

from __future__ import annotations

import socket

import trio

_READ_BYTES = 64 * 1024


async def linger(sock: socket.socket, seconds: float) -> None:
    """Shut down sending and drop input: a close with unread input would send a reset."""
    with trio.move_on_after(seconds):
        try:
            sock.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(sock)
                if not sock.recv(_READ_BYTES):
                    return
        except OSError:
            return
