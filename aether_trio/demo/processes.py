"""The processes of the demo: a gateway and a researcher, both to be killed and started again.

Each is in a process group of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends them in order.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

from aether_trio.demo import story
from aether_trio.demo.people import LIMIT_S, Missed

_POLL_S: Final = 0.02


class Process:
    """A program that runs, has ended, or was never started. What it prints goes to `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def printed(self) -> str:
        """All that it has printed, over all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def _start(self, *arguments: str) -> None:
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    async def kill(self) -> int:
        """kill -9, and wait for the end; the pid that is gone."""
        pid = self.pid
        if self._process is not None:
            if self.running:
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        return pid

    async def stop(self) -> None:
        """SIGTERM, and kill -9 when that is not enough."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()


class GatewayProcess(Process):
    """`aether dev` on a free port; started again it takes the same ports and the same data."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch / "gateway.log")
        self.data = scratch / "data"
        self.address = ""
        self.ops_address = ""
        self._ready = scratch / "ready.json"
        self._agents = scratch / "agents.yaml"
        command = json.dumps([sys.executable, "-m", "aether_trio.demo.keeper"])
        self._agents.write_text(f"agents:\n  {story.KEEPER}:\n    command: {command}\n", encoding="utf-8")

    async def start(self) -> None:
        """Start, and return when it serves. Raises Missed with what it printed."""
        self._ready.unlink(missing_ok=True)
        ports = [self.address.rpartition(":")[2] or "0", self.ops_address.rpartition(":")[2] or "0"]
        await self._start(
            "aether_trio", "dev", "--port", ports[0], "--ops-port", ports[1], "--data-dir", str(self.data),
            "--ready-file", str(self._ready), "--agents", str(self._agents),
        )  # fmt: skip
        try:
            async with asyncio.timeout(LIMIT_S):
                while not self._ready.exists():
                    if not self.running:
                        raise Missed(f"the gateway ended at once:\n{self.printed()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Missed(f"the gateway was not ready within {LIMIT_S:g} s:\n{self.printed()}") from None
        ready = json.loads(self._ready.read_text())
        self.address, self.ops_address = ready["gateway"], ready["ops"]

    def started(self, topic: str) -> list[int]:
        """The processes that it has started to be this agent."""
        return [int(pid) for pid in re.findall(rf"^{topic} : process (\d+)", self.printed(), re.MULTILINE)]

    async def starts(self, topic: str, before: int) -> int:
        """The process that it starts next to be this agent, after so many. Raises Missed."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while len(pids := self.started(topic)) <= before:
                    if not self.running:
                        raise Missed(f"the gateway has ended:\n{self.printed()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Missed(f"the gateway did not start {topic} within {LIMIT_S:g} s:\n{self.printed()}") from None
        return pids[-1]

    async def log_of(self, topic: str, count: int) -> list[dict[str, Any]]:
        """The first `count` messages of a topic, read from the gateway's log through its ops port."""
        query = urllib.parse.urlencode({"topic": topic, "from": 0})
        return await asyncio.to_thread(_read_lines, f"http://{self.ops_address}/v1/tail?{query}", count)


def _read_lines(url: str, count: int) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as lines:  # noqa: S310  # our own gateway on loopback
        return [json.loads(lines.readline()) for _ in range(count)]


class ResearcherProcess(Process):
    """The researcher, which may be started any number of times."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch / "researcher.log")

    async def start(self, address: str, pace_s: float) -> None:
        """Start another life of it; returns at once."""
        await self._start("aether_trio.demo.researcher", address, str(pace_s))
