"""Reads and sends a connection's bytes, with TLS or without, for HTTP/1.1.

The socket is a plain non-blocking one, closed by the Acceptor. `send` never blocks and never
waits: what the kernel does not take is handed back.
"""

from __future__ import annotations

import socket

import trio

from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.linger import linger
from aether_trio.transport.socket.tls import TlsSession

RECEIVE_BYTES = 64 * 1024


class ByteStream:
    """Reads and sends the bytes of one HTTP/1.1 connection, with TLS or without.

    One task reads, and one task at a time sends. `head` is read first.
    """

    __slots__ = ("head", "sock", "tls")

    def __init__(self, accepted: Accepted) -> None:
        self.sock: socket.socket = accepted.sock
        self.tls: TlsSession | None = accepted.tls
        self.head = accepted.head

    async def receive(self) -> bytes:
        """Return received bytes, at least one; b"" at the end.

        Raises OSError. A checkpoint, except for the head.
        """
        if self.head:
            head, self.head = self.head, b""
            return head
        sock, tls = self.sock, self.tls
        while True:
            if tls is not None and tls.ended:
                await trio.lowlevel.checkpoint()
                return b""
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            if tls is None or not data:
                return data
            data = tls.open(data)
            if data:
                return data

    def unread(self, data: bytes) -> None:
        """Put received bytes back for the next `receive`."""
        self.head = data + self.head

    async def receive_or_end(self) -> bytes:
        """Receive bytes; return b"" also when the connection has broken."""
        try:
            return await self.receive()
        except OSError:
            return b""

    def send(self, data: bytes) -> memoryview | None:
        """Give `data` to the kernel and return what it did not take, for `send_rest`.

        Under TLS these are records. Raises OSError.
        """
        if self.tls is not None:
            data = self.tls.seal(data)
        return self.send_rest(memoryview(data))

    def send_rest(self, data: memoryview) -> memoryview | None:
        """Give the kernel what `send` returned, and return what still remains."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            return data
        return None if sent == len(data) else data[sent:]

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`, while no other task sends. Raises OSError."""
        rest = self.send(data)
        if rest is None:
            await trio.lowlevel.checkpoint()
        while rest is not None:
            await trio.lowlevel.wait_writable(self.sock)
            rest = self.send_rest(rest)

    async def linger(self, seconds: float) -> None:
        """Shut down sending, then read and drop until the peer ends or `seconds` passed."""
        await linger(self.sock, seconds)

    def shutdown(self, how: int = socket.SHUT_RDWR) -> None:
        """Shut the socket down in one direction or both; a reading task sees the end."""
        try:
            self.sock.shutdown(how)
        except OSError:
            pass  # it is gone already
