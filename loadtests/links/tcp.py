"""A TCP connection on gevent for codecs without sockets.

Reading belongs to the user's greenlet. Writing never waits: what the kernel does not take at once
goes to a greenlet that exists only for that time, so that one slow connection cannot hold up the
greenlet that talks for all.
"""

from __future__ import annotations

import socket as stdlib_socket
import struct

import gevent
from gevent import socket

from loadtests.addresses import IP_BIND_ADDRESS_NO_PORT
from loadtests.links.base import CUT, Ended, Opening, ended_by

READ_BYTES = 65_536
_RESET = struct.pack("ii", 1, 0)


class Tcp:
    """`Tcp(opening)` connects. Raises OSError."""

    __slots__ = ("_cut", "_raw", "_unsent", "_writer", "socket")

    def __init__(self, opening: Opening) -> None:
        family = socket.AF_INET6 if ":" in opening.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self._cut = False
        self._unsent = bytearray()
        self._writer: gevent.Greenlet | None = None
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if opening.receive_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, opening.receive_buffer)
            if opening.source:
                self.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                self.socket.bind((opening.source, 0))
            self.socket.connect((opening.host, opening.port))
        except BaseException:
            self.socket.close()
            raise
        # Non-blocking: gevent waits in its own way.
        self._raw: stdlib_socket.socket = self.socket._sock

    def receive(self) -> bytes:
        """Some bytes; b"" at the end. Raises Ended."""
        try:
            data: bytes = self.socket.recv(READ_BYTES)
        except OSError as error:
            raise (Ended(CUT) if self._cut else ended_by(error)) from None
        return data

    def send(self, data: bytes) -> None:
        """Write, without waiting. A broken connection is the reader's to find."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self._writer = gevent.spawn(self._write)

    def _write(self) -> None:
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent[:READ_BYTES])
                del self._unsent[:sent]
        except OSError:
            pass

    def end(self) -> None:
        """End this side, unless bytes wait to be written: then the other side must end."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self) -> None:
        """Reset the connection."""
        self._cut = True
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._writer is not None:
            self._writer.kill(block=False)
            self._writer = None
        self.socket.close()
