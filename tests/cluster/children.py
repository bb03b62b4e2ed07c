"""Handles for nodes in processes of their own (child.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import trio

from aether_trio.cluster.timeouts import ClusterLimits
from tests.cluster.nodes import until

ROOT = Path(__file__).parents[2]


class Refused(Exception):
    """What the child's command raised, as text."""


class Child:
    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.node_id = 0
        self.told: list[tuple[str, list[str]]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._numbers = count(1)
        self._turn = trio.Lock()

    async def listen(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "ready" in said:
                    self.node_id = said["ready"]
                elif "told" in said:
                    self.told.append((said["told"], said["lost"]))
                else:
                    self._answers[said["id"]] = said

    async def wait_told(self, what: str) -> list[str]:
        """Wait until its host is told this; which identities it has lost."""
        await until(lambda: any(told == what for told, _ in self.told))
        return next(lost for told, lost in self.told if told == what)

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something. Raises Refused."""
        number = next(self._numbers)
        assert self.process.stdin is not None
        async with self._turn:
            await self.process.stdin.send_all(json.dumps({"id": number, "do": what, **arguments}).encode() + b"\n")
        await until(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    async def claim(self, identity: str, session: str, resume: str = "") -> int:
        """The epoch of its hold."""
        epoch: int = (await self.do("claim", identity=identity, session=session, resume=resume))["epoch"]
        return epoch

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)


@asynccontextmanager
async def open_children(dsn: str, schema: str, limits: ClusterLimits, number: int = 1) -> AsyncIterator[list[Child]]:
    """Start nodes, each in a process, and kill them at the end."""
    command = [sys.executable, "-m", "tests.cluster.child", dsn, schema, json.dumps(asdict(limits))]
    async with trio.open_nursery() as nursery:
        children = []
        try:
            for _ in range(number):
                process = await trio.lowlevel.open_process(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
                )
                child = Child(process)
                children.append(child)
                nursery.start_soon(child.listen)
            await until(lambda: all(child.node_id for child in children))
            yield children
        finally:
            for child in children:
                with trio.CancelScope(shield=True):
                    await child.kill()
                    assert child.process.stdin is not None
                    await child.process.stdin.aclose()
