"""The worker processes, and the lines that go to and fro."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loadtests.plan import Plan

READY_SECONDS = 60.0
READ_BYTES = 1 << 18
ERROR_LINES = 20


class WorkerFailed(Exception):
    """A worker ended before its time; the text ends with what it said."""


class Fleet:
    """Start a worker for each plan, and kill those left at the end.

    Use it as `with Fleet(plans) as fleet:`.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[socket.socket] = []
        self._rest: list[bytes] = []
        self._selector = selectors.DefaultSelector()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self.ended: set[int] = set()

    def __len__(self) -> int:
        return len(self._plans)

    def __enter__(self) -> Self:
        environment = os.environ | {"GRPC_VERBOSITY": "NONE", "PYTHONUNBUFFERED": "1"}
        root = str(Path(__file__).resolve().parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        for number, plan in enumerate(self._plans):
            ours, theirs = socket.socketpair()
            with theirs:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "loadtests.worker", str(theirs.fileno())],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                        stdout=self._said,
                        stderr=self._said,
                        env=environment,
                        start_new_session=True,  # Ctrl-C is the coordinator's to act on
                    )
                )
            self._channels.append(ours)
            self._rest.append(b"")
            self._selector.register(ours, selectors.EVENT_READ, number)
            ours.sendall(plan.to_json().encode() + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._selector.close()
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            try:
                process.wait(0.0 if error else 10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._said.close()

    def tell(self, command: str) -> None:
        """The same command to all."""
        for number, channel in enumerate(self._channels):
            try:
                channel.sendall(command.encode() + b"\n")
            except OSError:
                raise self._failed(number) from None

    def lines(self, until: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """(worker, line) of what arrives before the time `until` (monotonic seconds).

        Raises WorkerFailed.
        """
        while (wait := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(wait):
                number: int = key.data
                data = self._channels[number].recv(READ_BYTES)
                if not data:
                    if number not in self.ended:
                        raise self._failed(number)
                    self._selector.unregister(self._channels[number])
                    continue
                *lines, self._rest[number] = (self._rest[number] + data).split(b"\n")
                for line in lines:
                    found: dict[str, Any] = json.loads(line)
                    if found["kind"] == "end":
                        self.ended.add(number)
                    yield number, found
            if len(self.ended) == len(self):
                return

    def wait_ready(self) -> None:
        """Until all have imported what they need."""
        ready: set[int] = set()
        deadline = time.monotonic() + READY_SECONDS
        while len(ready) < len(self):
            if time.monotonic() > deadline:
                raise WorkerFailed(f"a worker was not ready after {READY_SECONDS:.0f} s\n{self._tail()}")
            ready.update(number for number, line in self.lines(time.monotonic() + 0.1) if line["kind"] == "ready")

    def _failed(self, number: int) -> WorkerFailed:
        code = self._processes[number].wait(10)
        return WorkerFailed(f"worker {number} ended with {code}\n{self._tail()}")

    def _tail(self) -> str:
        self._said.seek(0)
        return "\n".join(self._said.read().decode(errors="replace").splitlines()[-ERROR_LINES:])

    def complaints(self) -> str:
        """What the workers have printed: warnings and defects."""
        return self._tail()
