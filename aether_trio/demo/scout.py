"""The demo's scout: an agent that the first step of a workflow starts.

It uses this package's client, and does two kinds of work for the workflow `tour`: it searches, one
topic after another, and writes a report.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Final

import trio

from aether_trio.client import AgentClient, Job
from aether_trio.demo import texts

_SEARCH_S: Final = 0.6


async def _main() -> None:
    async with AgentClient.from_environment() as scout:
        await scout.run_tasks(_work, concurrency=1)


async def _work(task: Job) -> Any:
    """Do a step's work; what this returns is the step's result."""
    asked = json.loads(task.payload)
    given = asked["arguments"]
    if asked["tool_name"] == "search":
        await trio.sleep(_SEARCH_S)
        return {"topic": given["topic"], "says": texts.FOUND[given["topic"]]}
    return [given["title"], *(f"{one['topic']}: {one['says']}" for one in given["found"])]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    trio.run(_main)
