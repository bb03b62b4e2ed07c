"""The echo's clients: ten connections, 200 bytes, one message in flight on each.

A window can be paced instead: rounds on a schedule, by the connections in turn. This shows what any
trio server pays when it sleeps between messages: waking up, and cold caches.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from time import perf_counter, perf_counter_ns, process_time_ns, sleep
from typing import Self

from bench.loop import READ_BYTES, Loop, dial
from bench.process import ProcessProbe
from bench.schedule import Schedule
from bench.units import Window

CONNECTIONS = 10
MESSAGE_BYTES = 200
DRAIN_SECONDS = 30.0


class EchoProcess:
    """An echo server in another process, with its clients; use it in a `with`."""

    def __init__(
        self, connections: int = CONNECTIONS, message_bytes: int = MESSAGE_BYTES, loop: Loop | None = None
    ) -> None:
        """Echo on a loop that others use as well, or on a new one."""
        self._connections = connections
        self._loop = loop or Loop()
        self._shared = loop is not None
        self._message = bytes(message_bytes)
        self.rounds = 0

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "bench.echo_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        port = int(self._server.stdout.readline())
        self.probe = ProcessProbe([self._server.pid])
        self._clients = [_EchoClient(self, port, self._message) for _ in range(self._connections)]
        for client in self._clients:
            self._loop.add(client)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._server:  # closes the pipes, which ends the server, and waits
            for client in self._clients:
                self._loop.discard(client)
            if not self._shared:
                self._loop.__exit__()

    def window(self, seconds: float) -> Window:
        """Echo for a window, and wait for its last rounds, whose CPU counts."""
        return self._take(lambda: self._saturate(seconds))

    def paced_window(self, seconds: float, schedule: Schedule, took_ns: Callable[[int], None]) -> Window:
        """Echo on a schedule; `took_ns` gets the time from each intended round to its end."""
        return self._take(lambda: self._pace(seconds, schedule, took_ns))

    def _take(self, work: Callable[[], None]) -> Window:
        self.rounds = 0
        self.stopping = False
        cpu, load, start = self.probe.cpu_ns(), process_time_ns(), perf_counter()
        work()
        self.stopping = True
        if not self._loop.run(perf_counter() + DRAIN_SECONDS, lambda: not any(c.due for c in self._clients)):
            raise TimeoutError("the echo server does not answer")
        elapsed, used = perf_counter() - start, process_time_ns() - load
        sleep(0.002)  # the server goes back to sleep after its last answer
        return Window(elapsed, self.rounds, self.probe.cpu_ns() - cpu, used)

    def _saturate(self, seconds: float) -> None:
        self._answered = self._again
        for client in self._clients:
            self._ask(client, 0)
        self._loop.run(perf_counter() + seconds)

    def _again(self, client: _EchoClient, due_ns: int) -> None:
        if not self.stopping:
            self._ask(client, 0)

    def _pace(self, seconds: float, schedule: Schedule, took_ns: Callable[[int], None]) -> None:
        schedule.run(self._loop, seconds, self.sender(took_ns))

    def sender(self, took_ns: Callable[[int], None]) -> Callable[[int], None]:
        """A function for a schedule that begins a round; `took_ns` gets each round's time."""
        self._answered = lambda client, due_ns: took_ns(perf_counter_ns() - due_ns)
        turn = 0

        def send(due_ns: int) -> None:
            nonlocal turn
            self._ask(self._clients[turn % len(self._clients)], due_ns)
            turn += 1

        return send

    def _ask(self, client: _EchoClient, due_ns: int) -> None:
        client.ask(due_ns)
        self._loop.wants_write(client)

    def answered(self, client: _EchoClient, due_ns: int) -> None:
        """Count a round that was meant to begin at `due_ns`."""
        self.rounds += 1
        self._answered(client, due_ns)


class _EchoClient:
    def __init__(self, owner: EchoProcess, port: int, message: bytes) -> None:
        self._owner = owner
        self._message = message
        self._out = b""
        self._missing = len(message)
        self.due: deque[int] = deque()
        """The nanoseconds of the rounds on their way, the oldest first."""
        self.socket = dial("127.0.0.1", port)

    def ask(self, due_ns: int) -> None:
        self._out += self._message
        self.due.append(due_ns)

    def take(self) -> bytes:
        data, self._out = self._out, b""
        return data

    def readable(self) -> None:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the echo server has closed a connection")
        self._missing -= len(data)
        while self._missing <= 0:
            self._missing += len(self._message)
            self._owner.answered(self, self.due.popleft())
