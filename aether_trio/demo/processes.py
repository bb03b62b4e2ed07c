"""Starts and kills the demo's processes: a gateway and a researcher.

Each is in a separate process group, so that Ctrl-C in the terminal reaches the demo alone, which
then ends them in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from aether_trio.demo import texts
from aether_trio.demo.planner_and_window import LIMIT_S, Missed

_POLL_S: Final = 0.02


class Process:
    """Runs a demo program, one process at a time, with its output in the file `log`."""

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
        """Return all that the program's processes have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start_module(self, *arguments: str) -> None:
        """Start `python -m` with these arguments; return at once."""
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
        """Kill the process with SIGKILL, wait for its end, and return its pid."""
        pid = self.pid
        if self._process is not None:
            if self.running:
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        return pid

    async def stop(self) -> None:
        """Send SIGTERM to the process, and SIGKILL if that does not end it in time."""
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
    """Runs `aether dev` on a free port; a restart has the same ports and data."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch / "gateway.log")
        self.data = scratch / "data"
        self.address = ""
        self.ops_address = ""
        self._ready = scratch / "ready.json"
        self._agents = scratch / "agents.yaml"
        commands = {
            name: {"command": [sys.executable, "-m", f"aether_trio.demo.{name}"]}
            for name in (texts.KEEPER, texts.SCOUT)
        }
        self._agents.write_text(json.dumps({"agents": commands}), encoding="utf-8")  # JSON is YAML

    async def start(self) -> None:
        """Start the gateway, and wait until it serves. Raises Missed with its output."""
        self._ready.unlink(missing_ok=True)
        ports = [self.address.rpartition(":")[2] or "0", self.ops_address.rpartition(":")[2] or "0"]
        await self.start_module(
            "aether_trio", "dev", "--port", ports[0], "--ops-port", ports[1], "--data-dir", str(self.data),
            "--ready-file", str(self._ready), "--agents", str(self._agents),
        )  # fmt: skip
        await self._until(self._ready.exists, "the gateway was not ready")
        ready = json.loads(self._ready.read_text())
        self.address, self.ops_address = ready["gateway"], ready["ops"]

    def started(self, topic: str) -> list[int]:
        """Return the pids of the processes that the gateway has started for an agent."""
        return [int(pid) for pid in re.findall(rf"^\S+ \S+ {topic} : process (\d+)", self.printed(), re.MULTILINE)]

    async def starts(self, topic: str, before: int) -> int:
        """Wait for an agent's next process after `before`; return its pid. Raises Missed."""
        await self._until(lambda: len(self.started(topic)) > before, f"the gateway did not start {topic}")
        return self.started(topic)[-1]

    async def stop(self) -> None:
        """Stop the gateway, and the agents that a killed one has left behind."""
        await super().stop()
        for topic in (texts.KEEPER_TOPIC, texts.SCOUT_TOPIC):
            for pid in self.started(topic):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    async def _until(self, happened: Callable[[], bool], failure: str) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                while not happened():
                    if not self.running:
                        raise Missed(f"the gateway has ended:\n{self.printed()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Missed(f"{failure} within {LIMIT_S:g} s:\n{self.printed()}") from None

    async def log_of(self, topic: str, count: int) -> list[dict[str, Any]]:
        """Return the first `count` messages of a topic, read through the ops port."""
        query = urllib.parse.urlencode({"topic": topic, "from": 0})
        return await asyncio.to_thread(_read_lines, f"http://{self.ops_address}/v1/tail?{query}", count)


def _read_lines(url: str, count: int) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as lines:  # noqa: S310  # our own gateway on loopback
        return [json.loads(lines.readline()) for _ in range(count)]
