"""Fifty readers of one broadcast: `python -m tests.faults.swarm ADDRESS WS COUNT`.

Takes commands as lines, answers each with a line of JSON: `state` (least and most messages over the
readers, and what went wrong), `latency` (percentiles since the last `latency`, in milliseconds).
Every reader checks that it misses nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from tests.faults import numbered, upstream
from tests.helpers.rawh2 import open_raw_peer

SAMPLE_EVERY = 4
# The process must find the tests, wherever pytest was started.
ROOT = Path(__file__).resolve().parents[2]


class Readers:
    """All readers of this process."""

    def __init__(self, count: int) -> None:
        self.next_number = [0] * count
        self.connected = 0
        self.problems: list[str] = []
        self.samples_ns: list[int] = []

    async def read(self, index: int, address: str, workspace: str) -> None:
        async with open_raw_peer(address, upstream.agent(workspace, "reader", str(index))) as peer:
            while True:
                batch = await peer.receive()
                now = time.monotonic_ns()
                if not batch:
                    self.problems.append(f"reader {index}: {peer.h2.ended}")
                    return
                for data in batch:
                    found = numbered.find(data)
                    if found is None:
                        self.connected += upstream.Down.FromString(data).WhichOneof("payload") == "connection_ack"
                        continue
                    number, sent_ns = found
                    if number != self.next_number[index]:
                        self.problems.append(f"reader {index}: {number} instead of {self.next_number[index]}")
                    self.next_number[index] = number + 1
                    if number % SAMPLE_EVERY == 0:
                        self.samples_ns.append(now - sent_ns)

    def answer(self, command: str) -> dict[str, object]:
        if command == "latency":
            samples, self.samples_ns = sorted(self.samples_ns), []
            if not samples:
                return {"count": 0}
            at = {name: samples[int(share * (len(samples) - 1))] / 1e6 for name, share in (("p50", 0.5), ("p99", 0.99))}
            return {"count": len(samples), **at, "max": samples[-1] / 1e6}
        return {
            "connected": self.connected,
            "least": min(self.next_number),
            "most": max(self.next_number),
            "problems": self.problems[:5],
        }


async def serve(address: str, workspace: str, count: int) -> None:
    readers = Readers(count)
    async with trio.open_nursery() as nursery:
        for index in range(count):
            nursery.start_soon(readers.read, index, address, workspace)
        async for line in trio.wrap_file(sys.stdin):
            print(json.dumps(readers.answer(line.strip())), flush=True)
        nursery.cancel_scope.cancel()


class Swarm:
    """The process, from the test's side."""

    def __init__(self, address: str, workspace: str, count: int) -> None:
        argv = [sys.executable, "-m", "tests.faults.swarm", address, workspace, str(count)]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    async def ask(self, command: str) -> dict[str, object]:
        def exchange() -> str:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()

        answer: dict[str, object] = json.loads(await trio.to_thread.run_sync(exchange))
        return answer

    async def wait_for(self, key: str, value: int) -> None:
        """Until all readers are there. A reader that missed something fails the test here."""
        while True:
            state = await self.ask("state")
            assert state["problems"] == [], state
            if state[key] == value:
                return
            await trio.sleep(0.002)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2], int(sys.argv[3]))
