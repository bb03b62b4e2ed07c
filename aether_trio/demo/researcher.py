"""The demo's researcher: an agent of the published SDK, in a separate process.

    python -m aether_trio.demo.researcher HOST:PORT PACE_S

It answers questions of all senders one after another, and reports its progress to the user. Each
step is in its checkpoint before the next, so a new process continues where a killed one was. It
ends when its standard input ends, so it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from scitrera_aether_client import AsyncAgentClient

from aether_trio.demo import texts
from aether_trio.demo.planner_and_window import CLIENT_SETTINGS, answered, say

PATIENCE_S = 60.0  # seconds that the telephone rings at the hut, at the first call


@dataclass
class Notebook:
    """The researcher's checkpoint: open and answered questions, with senders."""

    todo: list[list[str]] = field(default_factory=list)
    done: list[list[str]] = field(default_factory=list)
    rung: bool = False  # whether the hut was called before

    def take(self, question: str, sender: str) -> bool:
        """Add a question; return False if the notebook has it, as its message came again."""
        entry = [question, sender]
        if entry in self.done or entry in self.todo:
            return False
        self.todo.append(entry)
        return True

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Notebook:
        """Read a notebook from a checkpoint's data; empty data is an empty notebook."""
        return cls(**json.loads(data)) if data else cls()


class Researcher:
    """Answers the planner's questions, in one process of the demo's researcher."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self._client = AsyncAgentClient(texts.WORKSPACE, texts.RESEARCHER, "1", **CLIENT_SETTINGS)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._client.on_message = self._inbox.put_nowait
        self._notes = Notebook()

    async def live(self, address: str) -> None:
        """Connect, load the checkpoint, and answer questions until cancelled."""
        await self._client.connect(address)
        checkpoint = answered(await self._client.checkpoint_load(texts.NOTEBOOK))
        self._notes = Notebook.decode(checkpoint.data)
        if self._notes.todo:
            known = texts.came_back(len(self._notes.done), self._notes.todo[0][0])
            await say(self._client, texts.PLANNER_TOPIC, known)
        elif not self._notes.done:
            await say(self._client, texts.PLANNER_TOPIC, texts.ARRIVED)
        while True:
            if not self._notes.todo:
                await self._take_mail(wait=True)
                await asyncio.sleep(self._pace_s)
            await self._take_mail(wait=False)
            await self._work(*self._notes.todo[0])

    async def _take_mail(self, *, wait: bool) -> None:
        news = False
        while wait or not self._inbox.empty():
            message = await self._inbox.get()
            news |= self._notes.take(message.payload.decode(), message.source_topic)
            wait = not self._notes.todo
        if news:
            await self._save()

    async def _work(self, question: str, sender: str) -> None:
        await self._report(0.0, question)
        await asyncio.sleep(self._pace_s)
        if question == texts.HUT and not self._notes.rung:
            self._notes.rung = True
            await self._save()
            await self._report(0.5, texts.RINGING)
            await asyncio.sleep(PATIENCE_S)
        answer = texts.BOOK.get(question, texts.UNKNOWN)
        await say(self._client, sender, f"{question} {answer}")
        answered(await self._client.kv_increment(texts.COUNTER, scope="workspace"))
        self._notes.done.append(self._notes.todo.pop(0))
        await self._save()
        if not self._notes.todo and self._inbox.empty():
            await self._report(0.0, "done")

    async def _save(self) -> None:
        answered(await self._client.checkpoint_save(self._notes.encode(), key=texts.NOTEBOOK))

    async def _report(self, part: float, summary: str) -> None:
        done, total = len(self._notes.done), len(self._notes.done) + len(self._notes.todo)
        await self._client.report_progress(
            task_id=texts.WORKSPACE,
            completion=(done + part) / total,
            summary=summary,
            step_name="answers",
            step_sequence=done,
            step_total=total,
            recipient=f"us::{texts.USER}",
        )


async def _main(address: str, pace_s: float) -> None:
    living = asyncio.ensure_future(Researcher(pace_s).live(address))
    stdin_ends = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    done, _ = await asyncio.wait({living, stdin_ends}, return_when=asyncio.FIRST_COMPLETED)
    if living in done:
        living.result()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends us
    asyncio.run(_main(sys.argv[1], float(sys.argv[2])))
