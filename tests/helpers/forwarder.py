"""A TCP forwarder in threads that counts HTTP/2 frames and can refuse connections.

For what happens below the SDK: pings, GOAWAYs, and how many connections a client made. It never
changes a byte.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, PING, GOAWAY = 0x1, 0x6, 0x7
ACK = 0x1


class FrameCounter:
    """Counts the frames of one direction of one connection, however they are split."""

    def __init__(self, *, preface: bool) -> None:
        self._buffer = bytearray()
        self._preface_left = len(PREFACE) if preface else 0
        self.frames: collections.Counter[tuple[int, bool]] = collections.Counter()

    def feed(self, data: bytes) -> None:
        if self._preface_left:
            skip = min(self._preface_left, len(data))
            self._preface_left -= skip
            data = data[skip:]
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            self.frames[kind, bool(flags & ACK)] += 1
            del self._buffer[: 9 + length]


class Forwarder:
    """Listens on a free loopback port and forwards every connection to `target`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._counters: list[tuple[FrameCounter, FrameCounter]] = []
        self._threads: list[threading.Thread] = []
        self._refusing = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(30)

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            counters = FrameCounter(preface=True), FrameCounter(preface=False)
            self._counters.append(counters)
            self._sockets += [client, server]
            self._start(self._pump, client, server, counters[0])
            self._start(self._pump, server, client, counters[1])

    def _pump(self, source: socket.socket, sink: socket.socket, counter: FrameCounter) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                counter.feed(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def refuse(self) -> None:
        """Cut what is connected, and close new connections at once."""
        self._refusing = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Undo `refuse` for connections to come."""
        self._refusing = False

    def _count(self, side: int, kind: int, *, ack: bool) -> int:
        return sum(counters[side].frames[kind, ack] for counters in self._counters)

    @property
    def client_streams(self) -> int:
        """RPCs that clients started, as grpcio shares connections between clients."""
        return sum(n for counters in self._counters for (kind, _), n in counters[0].frames.items() if kind == HEADERS)

    @property
    def client_pings(self) -> int:
        return self._count(0, PING, ack=False)

    @property
    def server_ping_acks(self) -> int:
        return self._count(1, PING, ack=True)

    @property
    def server_goaways(self) -> int:
        return self._count(1, GOAWAY, ack=False)
