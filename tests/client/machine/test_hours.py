"""Test hours with a gateway of chance: nothing spins, and nothing grows."""

from __future__ import annotations

import random

import anyio
import pytest

from aether_trio.client import AetherError, AgentClient, Job, Retry
from aether_trio.client.statistics import ClientStatistics
from tests.client.jobs.shop import worker
from tests.client.machine.hour import run_hours
from tests.client.machine.interrupted import Crash
from tests.client.machine.moody import Moody, open_moody
from tests.client.machine.tables import kept

HOUR_S = 3600.0
APPS = 8
CREDIT = 16
UNSETTLED = 8
STEPS_EACH = 30
"""For each thing that the gateway has heard, or that the program has done; of both sides."""


class Program:
    """Handles, sends, asks, works, and goes on after errors; `done` counts."""

    def __init__(self, gateway: Moody, chance: random.Random) -> None:
        self._gateway = gateway
        self._chance = chance
        self.done = 0

    async def run(self) -> None:
        with anyio.move_on_after(HOUR_S):
            while True:
                await self._live()
                self.done += 1
                await anyio.sleep(60)

    async def _live(self) -> None:
        retry = Retry(random=self._chance.random, max_attempts=self._chance.choice([None, 3]))
        client = worker(
            self._gateway.address, retry=retry, credit_messages=CREDIT, max_unsettled=UNSETTLED, worker_tasks=3
        )
        try:
            async with client, anyio.create_task_group() as group:
                for what in (self._handle, self._send, self._ask, self._work, self._work, self._listen):
                    group.start_soon(self._again_and_again, what, client)
                while True:
                    await anyio.sleep(60)
                    self._check(client)
        except* AetherError:
            pass
        finally:
            left = kept(client, over=True, taken=client.statistics().received)
            assert not left, left

    def _check(self, client: AgentClient) -> None:
        now: ClientStatistics = client.statistics()
        assert now.unsettled <= UNSETTLED
        assert now.buffered + now.unacknowledged <= CREDIT
        assert now.requests_open <= 2 * APPS
        grown = kept(client, over=False)
        for name in ("answered", "topics", "hashes", "done", "beyond the credit"):
            assert name not in grown, grown
        assert all(count <= 2 * APPS + CREDIT for name, count in grown.items() if name not in {"unsettled", "bytes"}), (
            grown
        )

    async def _again_and_again(self, what: object, client: AgentClient) -> None:
        while True:
            self.done += 1
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(what, client)  # type: ignore[arg-type]
            except* (Crash, AetherError):
                pass

    def _fail_sometimes(self) -> None:
        self.done += 1
        if self._chance.random() < 0.05:
            raise Crash

    async def _handle(self, client: AgentClient) -> None:
        async for _ in client:
            await anyio.sleep(self._chance.random() * 5)
            self._fail_sometimes()

    async def _send(self, client: AgentClient) -> None:
        with anyio.move_on_after(self._chance.random() * 60):
            for _ in range(self._chance.randint(1, 20)):
                self.done += 1
                await client.publish("ag::w::i::b", b"x")
            await client.flush()
        await anyio.sleep(self._chance.random() * 60)

    async def _ask(self, client: AgentClient) -> None:
        with anyio.move_on_after(self._chance.random() * 60):
            await client.kv.get("key")
        await anyio.sleep(self._chance.random() * 60)

    async def _listen(self, client: AgentClient) -> None:
        with client.open_feed("progress_update"), anyio.move_on_after(self._chance.random() * 60):
            await anyio.sleep_forever()

    async def _work(self, client: AgentClient) -> None:
        async for job in client.work():
            async with job:
                await self._block(job)

    async def _block(self, job: Job) -> None:
        self.done += 1
        with anyio.move_on_after(self._chance.random() * 10):
            match self._chance.randrange(3):
                case 0:
                    await job.wait_for_input()
                case 1:
                    await job.progress(0.5)
                case _:
                    await anyio.sleep(self._chance.random() * 60)
        self._fail_sometimes()


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("seed", [1])
def test_an_hour(backend: str, seed: int) -> None:
    chance = random.Random(seed)
    counts: list[int] = []

    async def main() -> None:
        async with open_moody(chance) as gateway:
            program = Program(gateway, chance)
            await program.run()
            counts.extend((gateway.heard, program.done))

    steps = run_hours(backend, main)
    heard, done = counts
    print(f"{steps} steps, {heard} things heard, {done} done")
    assert heard > 200
    assert heard + done < 40_000
    assert steps < STEPS_EACH * (heard + done)


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_an_hour_in_which_no_gateway_is_there(backend: str) -> None:
    """The pauses grow, and each task goes on waiting or hears of the end."""
    chance = random.Random(3)
    counts: list[int] = []

    async def main() -> None:
        async with open_moody(chance) as gateway:
            program = Program(gateway, chance)
            async with anyio.create_task_group() as group:
                group.start_soon(program.run)
                await anyio.sleep(100)
                gateway.gone = True
                counts.append(gateway.heard)
                await anyio.sleep(HOUR_S)
                counts.append(gateway.heard)
                counts.append(program.done)

    steps = run_hours(backend, main)
    before, after, done = counts
    print(f"{steps} steps, {after - before} attempts, {done} done")
    assert after - before < 1000
    assert steps < STEPS_EACH * (after + done)
