"""Reads and sends a connection's bytes, with or without TLS."""

from __future__ import annotations

import socket

import trio

from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.linger import linger
from aether_trio.transport.socket.tls import TlsSession

RECEIVE_BYTES = 64 * 1024


class ByteStream:
    """One connection's bytes, for one reader and one sender; `head` is read first."""

    __slots__ = ("head", "sock", "tls")

    def __init__(self, accepted: Accepted) -> None:
        self.sock: socket.socket = accepted.sock
        self.tls: TlsSession | None = accepted.tls
        self.head = accepted.head

    async def receive(self) -> bytes:
        """Return received bytes; b"" at the end. Raises OSError."""
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

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`, while no other task sends. A checkpoint. Raises OSError."""
        rest = self._send(memoryview(data if self.tls is None else self.tls.seal(data)))
        if not rest:
            await trio.lowlevel.checkpoint()
        while rest:
            await trio.lowlevel.wait_writable(self.sock)
            rest = self._send(rest)

    async def send_within(self, data: bytes, seconds: float) -> None:
        """Send all of `data`, while no other task sends. Raises OSError and TooSlowError.

        A checkpoint only when the kernel does not take all at once.
        """
        rest = self._send(memoryview(data if self.tls is None else self.tls.seal(data)))
        if rest:
            with trio.fail_after(seconds):
                while rest:
                    await trio.lowlevel.wait_writable(self.sock)
                    rest = self._send(rest)

    def _send(self, data: memoryview) -> memoryview:
        """Give `data` to the kernel and return what it did not take."""
        try:
            return data[self.sock.send(data) :]
        except BlockingIOError:
            return data

    async def linger(self, seconds: float) -> None:
        """Shut down sending, then read and drop until the peer ends or `seconds` passed."""
        await linger(self.sock, seconds)

    def shutdown(self, how: int = socket.SHUT_RDWR) -> None:
        """Shut the socket down in one direction or both; a reading task sees the end."""
        try:
            self.sock.shutdown(how)
        except OSError:
            pass  # it is gone already
