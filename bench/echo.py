"""The echo's clients: ten connections, 200 bytes, one message in flight on each."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter, process_time_ns, sleep
from typing import Self

from bench.loop import READ_BYTES, Loop, dial
from bench.process import ProcessProbe
from bench.units import Window

CONNECTIONS = 10
MESSAGE_BYTES = 200
DRAIN_SECONDS = 30.0


class EchoProcess:
    """An echo server in another process, with its clients; use it in a `with`."""

    def __init__(self, connections: int = CONNECTIONS, message_bytes: int = MESSAGE_BYTES) -> None:
        self._connections = connections
        self._message = bytes(message_bytes)

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "bench.echo_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        port = int(self._server.stdout.readline())
        self.probe = ProcessProbe([self._server.pid])
        self._loop = Loop()
        self._clients = [_EchoClient(self, port, self._message) for _ in range(self._connections)]
        for client in self._clients:
            self._loop.add(client)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._server:  # closes the pipes, which ends the server, and waits
            self._loop.__exit__()

    def window(self, seconds: float) -> Window:
        """Echo for a window, and wait for its last rounds, whose CPU counts."""
        self.rounds = 0
        self.stopping = False
        cpu, load, start = self.probe.cpu_ns(), process_time_ns(), perf_counter()
        for client in self._clients:
            client.ask()
            self._loop.wants_write(client)
        self._loop.run(start + seconds)
        self.stopping = True
        if not self._loop.run(perf_counter() + DRAIN_SECONDS, lambda: not any(c.waiting for c in self._clients)):
            raise TimeoutError("the echo server does not answer")
        elapsed, used = perf_counter() - start, process_time_ns() - load
        sleep(0.002)  # the server goes back to sleep after its last answer
        return Window(elapsed, self.rounds, self.probe.cpu_ns() - cpu, used)

    def answered(self, client: _EchoClient) -> None:
        self.rounds += 1
        if not self.stopping:
            client.ask()
            self._loop.wants_write(client)


class _EchoClient:
    def __init__(self, owner: EchoProcess, port: int, message: bytes) -> None:
        self._owner = owner
        self._message = message
        self._out = b""
        self.waiting = 0
        self.socket = dial("127.0.0.1", port)

    def ask(self) -> None:
        self._out = self._message
        self.waiting = len(self._message)

    def take(self) -> bytes:
        data, self._out = self._out, b""
        return data

    def readable(self) -> None:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the echo server has closed a connection")
        self.waiting -= len(data)
        if not self.waiting:
            self._owner.answered(self)
