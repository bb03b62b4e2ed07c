"""Scenario 25: an idle SDK agent in a process, behind a proxy that counts frames."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.helpers.forwarder import Forwarder

PING_MS = 10_000
# The process must find the tests, wherever pytest was started.
ROOT = Path(__file__).resolve().parents[2]


class IdleWatch:
    """Owns forwarder and idle process; `finish` waits and returns what it saw."""

    def __init__(self, target: str) -> None:
        self.idle_s = 185.0 if os.environ.get("TESTS_SLOW") else 35.0
        self.forwarder = Forwarder(target)

    def __enter__(self) -> Self:
        self.forwarder.__enter__()
        env = {
            **os.environ,
            "AETHER_GRPC_KEEPALIVE_TIME_MS": str(PING_MS),
            "AETHER_GRPC_HTTP2_MIN_PING_INTERVAL_WITHOUT_DATA_MS": str(PING_MS),
        }
        argv = [sys.executable, "-m", "tests.interop.idle", self.forwarder.address, str(self.idle_s)]
        self.process = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.forwarder.__exit__(*exc)

    def finish(self) -> dict[str, object]:
        out, _ = self.process.communicate(timeout=self.idle_s + 60)
        return dict(json.loads(out))


async def idle(target: str, idle_s: float) -> dict[str, object]:
    """Connect, stay idle, and report whether the first connection still works."""
    from tests.helpers.sdk import World

    async with World(target) as world:
        (agent,) = await world.open(world.agent("idle"))
        await asyncio.sleep(idle_s)
        alive = agent.client.is_connected and not agent.gone.is_set()
        if alive:
            await agent.barrier()
        return {"alive": alive, "connects": 1 + agent.connects.qsize(), "monotonic_s": time.monotonic()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(idle(sys.argv[1], float(sys.argv[2])))))
