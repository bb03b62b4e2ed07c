"""Make tasks for a pool and for certain workers, which record their assignments.

A worker gives a silent gateway up late, so that it stays with a node that stands still, and is
taken for dead, and goes on: there it must be given work as before.
"""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import count
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, Client
from aether_trio.client.jobs import Job
from aether_trio.client.operations.enums import TargetOfflinePolicy
from aether_trio.client.options import ClientOptions
from chaos.history import Begun, Made
from chaos.load import WORKSPACE, Load

POOL: Final = "miller"
MILLERS: Final = 3
PER_S: Final = 5.0
TARGETED: Final = 0.5
PATIENT_S: Final = 30.0
"""Between two pings: a node that stood still for less than that keeps its workers."""
CONCURRENCY: Final = 8


class Mill:
    """Tasks and their workers; `run` until the load is closed."""

    def __init__(self, load: Load, several: int = MILLERS) -> None:
        self._load = load
        self._several = several
        self._numbers = count(1)
        self._begun: set[str] = set()

    async def run(self) -> None:
        load = self._load
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.stay, "boss", partial(self._make, "boss", "1", 10.0), (self._create,))
            for number in range(1, self._several + 1):
                make = partial(self._make, POOL, str(number), PATIENT_S)
                nursery.start_soon(load.stay, f"{POOL}-{number}", make, (self._work,))

    def _make(self, implementation: str, specifier: str, ping_s: float, given: ClientOptions) -> Client:
        given["ping_interval_s"] = ping_s
        return AgentClient(
            f"aether://{self._load.address}",
            workspace=WORKSPACE,
            implementation=implementation,
            specifier=specifier,
            **given,
        )

    async def _create(self, name: str, client: Client) -> None:
        load = self._load
        while not load.quiet:
            await trio.sleep(load.chance.expovariate(PER_S))
            if load.quiet:
                return
            made = Made(f"{name}-{next(self._numbers)}", "", load.now())
            if load.chance.random() < TARGETED:
                made.target = f"ag::{WORKSPACE}::{POOL}::{load.chance.randint(1, self._several)}"
            with load.busy(), contextlib.suppress(AetherError):
                # Asked for again after a cut, which the key makes one task; if it is refused there
                # is none to be waited for.
                await client.tasks.create(
                    "grind",
                    made.name.encode(),
                    target=made.target,
                    pool="" if made.target else POOL,
                    idempotency_key=made.name,
                    offline_policy=TargetOfflinePolicy.QUEUE,
                )
                made.created_s = load.now()
                load.history.made.append(made)
                if made.name not in self._begun:
                    load.await_(made.name)

    async def _work(self, name: str, client: Client) -> None:
        assert isinstance(client, AgentClient)
        async with trio.open_nursery() as nursery:
            async for job in client.work(concurrency=CONCURRENCY):
                self._begun.add(job.text)
                self._load.history.begun.append(Begun(job.text, name, self._load.now()))
                self._load.arrived(job.text)
                nursery.start_soon(self._grind, job)

    async def _grind(self, job: Job) -> None:
        with contextlib.suppress(AetherError):
            async with job:
                await trio.sleep(self._load.chance.uniform(0.0, 0.05))
