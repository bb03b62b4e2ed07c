"""A worker: `python -m chaos.tasks.worker ADDRESS SPECIFIER FILE SEED`.

It is meant to be killed.

Each line of the file is one moment, written with one system call, so that a kill loses none that
has happened: the worker has begun a task, or has ended one and knows how.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Final

import trio

from aether_trio.client import AgentClient, Retry
from aether_trio.client.jobs import Job

WORKSPACE: Final = "chaos"
POOL: Final = "mill"
CONCURRENCY: Final = 12
FAILS: Final = 0.12
"""Share of the attempts that fail, and of those that take long."""
LONG: Final = 0.05


async def work(address: str, specifier: str, file: Path, chance: random.Random) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(what: str, job: Job) -> None:
        line = {"what": what, "task": job.id, "attempt": job.attempt, "at": time.time()}
        os.write(descriptor, (json.dumps(line) + "\n").encode())

    async def grind(job: Job) -> None:
        try:
            async with job:
                tell("began", job)
                await trio.sleep(chance.uniform(0.2, 1.0) if chance.random() < LONG else chance.uniform(0.0, 0.03))
                if chance.random() < FAILS:
                    raise RuntimeError("the stone has split")
        except RuntimeError:
            pass
        if job.end is not None:
            tell(job.end.value, job)

    client = AgentClient(
        f"aether://{address}",
        workspace=WORKSPACE,
        implementation=POOL,
        specifier=specifier,
        connect_timeout_s=math.inf,
        ping_interval_s=10.0,
        retry=Retry(base_s=0.1, cap_s=1.0),
    )
    async with client as worker, trio.open_nursery() as nursery:
        async for job in worker.work(concurrency=CONCURRENCY):
            nursery.start_soon(grind, job)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("aether_trio.client.wire").setLevel(logging.INFO)
    trio.run(work, sys.argv[1], sys.argv[2], Path(sys.argv[3]), random.Random(int(sys.argv[4])))
