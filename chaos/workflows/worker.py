"""A worker: `python -m chaos.workflows.worker ADDRESS SPECIFIER FILE`.

It is meant to be killed and suspended. It does steps of graphs, calls of durable functions, tasks
of rules and machines, and the functions themselves. Each line of the file is one moment, written
with one system call before what it tells of, so that a kill loses none.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from aether_trio.client import AgentClient, DuplicateIdentity, Retry
from aether_trio.client.jobs import Job
from aether_trio.client.workflows import Flow, StepFailed, StepRetry, workflow
from chaos.workflows.fate import Fate, fate, number_of, place_name
from chaos.workflows.plays import AGENT, ATTEMPTS

WORKSPACE: Final = "chaos"
CONCURRENCY: Final = 12
GRACE_S: Final = 2.0
HIBERNATE_S: Final = 1.0
AGAIN_S: Final = 0.5
"""The pause before it connects again, as a supervisor would have it do.

The node of its killed predecessor may be suspended, and has the identity until its lease ends.
"""

Tell = Callable[..., None]


def teller(file: Path) -> Tell:
    """Return what writes a moment to a file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(what: str, job: Job | None = None, **more: Any) -> None:
        line = {"what": what, "at": time.time(), **more}
        if job is not None:
            line |= {"task": job.id, "attempt": job.attempt, "epoch": int(job.assignment.number or 0)}
        os.write(descriptor, (json.dumps(line) + "\n").encode())

    return tell


def fate_of(job: Job) -> Fate:
    """Return how the attempt at a task ends."""
    metadata = job.task.metadata
    given = json.loads(job.payload) if job.payload else {}
    key = str(given.get("arguments", {}).get("key", ""))
    if not key:  # of a rule, a join or a machine
        return fate(json.dumps(given, sort_keys=True), "noted", job.attempt)
    item = metadata.get("item") or metadata.get("round")
    name = given["tool_name"] if given["tool_name"] in ("left", "right") else metadata["step_id"]
    place = place_name(name, int(item) if item else None, undo="compensates" in metadata)
    return fate(key, place, job.attempt)


def functions(tell: Tell) -> list[Any]:
    """Return the durable functions, which tell of their steps."""

    async def effect(execution: str, key: str, place: str) -> int:
        tell("effect", execution=execution, place=place)
        await trio.sleep(0.01)
        return number_of(key, place)

    @workflow(grace_s=GRACE_S)
    async def survey(flow: Flow, key: str) -> dict[str, Any]:
        async def call(tool: str) -> Any:
            try:
                retry = StepRetry(attempts=ATTEMPTS, first_s=0.05, max_s=0.4)
                return (await flow.call(AGENT, tool, {"key": key}, retry=retry))["n"]
            except StepFailed:
                return None

        first = await flow.step(effect, flow.execution_id, key, "first", name="first")
        async with flow.nursery() as branches:
            found = {tool: branches.start(call, tool) for tool in ("left", "right")}
        await flow.sleep(0.2)
        word = await flow.wait("go")
        last = await flow.step(effect, flow.execution_id, key, "end", name="end")
        return {"first": first, **{tool: one.result for tool, one in found.items()}, "go": word["id"], "end": last}

    return [survey]


async def work(address: str, specifier: str, file: Path) -> None:
    """Work until killed."""
    tell = teller(file)

    async def grind(job: Job) -> None:
        try:
            async with job:
                tell("began", job)
                found = fate_of(job)
                await trio.sleep(found.seconds)
                if found.error:
                    raise RuntimeError(found.error)
                tell("done", job)
                job.give_result(found.result)
        except RuntimeError:
            pass
        if job.end is not None:
            tell(job.end.value, job)

    client = AgentClient(
        f"aether://{address}",
        workspace=WORKSPACE,
        implementation=AGENT,
        specifier=specifier,
        connect_timeout_s=math.inf,
        ping_interval_s=10.0,
        retry=Retry(base_s=0.1, cap_s=1.0),
    )
    async with client as worker, trio.open_nursery() as nursery:
        nursery.start_soon(_serve, worker, tell)
        async for job in worker.work(concurrency=CONCURRENCY):
            nursery.start_soon(grind, job)


async def _serve(worker: AgentClient, tell: Tell) -> None:
    await worker.serve_workflows(functions(tell), hibernate_after=HIBERNATE_S)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("aether_trio.client.wire").setLevel(logging.INFO)
    while True:
        try:
            trio.run(work, sys.argv[1], sys.argv[2], Path(sys.argv[3]))
            break
        except DuplicateIdentity:
            time.sleep(AGAIN_S)
