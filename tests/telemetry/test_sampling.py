"""Samples: read when asked, not too often, and absent when they are old."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aether_trio.storage.base import StorageUnavailable
from aether_trio.telemetry.families import Family
from aether_trio.telemetry.metrics import WAIT_S, Metrics
from aether_trio.telemetry.sampling import BREAK, EVERY_S, KEEP_S, SLOW_S, Figures, Sample

NAME = "waiting"
FAMILIES = {NAME: Family(NAME, "gauge", "Waiting.")}


class Source:
    """What a sample reads; each reading takes `takes_s`, and fails with `error`."""

    def __init__(self) -> None:
        self.readings = 0
        self.takes_s = 0.0
        self.error: Exception | None = None

    async def read(self) -> Figures:
        self.readings += 1
        await trio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return {NAME: {(): self.readings}}


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
async def sample(source: Source) -> AsyncIterator[Sample]:
    sample = Sample("test", [NAME], source.read, clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sample.run)
        yield sample
        nursery.cancel_scope.cancel()


@pytest.fixture
async def metrics(sample: Sample) -> Metrics:
    metrics = Metrics(families=FAMILIES)
    metrics.sample(sample)
    return metrics


async def shown(metrics: Metrics) -> float | None:
    body = (await metrics.scrape())[1].decode()
    (value,) = [line.split()[1] for line in body.splitlines() if line.startswith(f"{NAME} ")] or [None]
    return None if value is None else float(value)


async def test_a_scrape_reads_and_the_next_ones_use_it(
    autojump_clock: MockClock, metrics: Metrics, source: Source
) -> None:
    assert [await shown(metrics) for _ in range(3)] == [1, 1, 1]
    await trio.sleep(EVERY_S)
    assert await shown(metrics) == 2
    await trio.sleep(100 * EVERY_S)
    assert source.readings == 2, "without a scrape nothing is read"


async def test_a_reading_that_takes_long_is_not_waited_for(
    autojump_clock: MockClock, metrics: Metrics, source: Source
) -> None:
    source.takes_s = 3.0
    began = trio.current_time()
    assert await shown(metrics) is None
    assert trio.current_time() - began < WAIT_S + 0.1
    assert await shown(metrics) is None
    await trio.sleep(3)
    assert await shown(metrics) == 1
    await trio.sleep(BREAK * 3.0 - 3)
    await shown(metrics)
    assert source.readings == 1, "it rests in proportion"
    await trio.sleep(4)
    await shown(metrics)
    assert source.readings == 2


@pytest.mark.parametrize("error", [StorageUnavailable("away"), OSError("full"), RuntimeError("a mistake")])
async def test_while_it_fails_the_figures_stay_and_then_are_absent(
    autojump_clock: MockClock, metrics: Metrics, sample: Sample, source: Source, error: Exception
) -> None:
    assert await shown(metrics) == 1
    assert not sample.failing
    source.error = error
    await trio.sleep(EVERY_S)
    assert await shown(metrics) == 1
    assert sample.failing
    assert sample.failures == 1
    await trio.sleep(KEEP_S)
    assert await shown(metrics) is None
    source.error = None
    await trio.sleep(EVERY_S)
    assert await shown(metrics) == source.readings
    assert not sample.failing


async def test_a_reading_that_hangs_counts_as_one_that_fails(
    autojump_clock: MockClock, metrics: Metrics, sample: Sample, source: Source
) -> None:
    source.takes_s = 10_000.0
    await shown(metrics)
    assert not sample.failing
    await trio.sleep(SLOW_S)
    await shown(metrics)
    assert sample.failing
    assert source.readings == 1


async def test_many_scrapes_at_once_share_a_reading(
    autojump_clock: MockClock, metrics: Metrics, source: Source
) -> None:
    source.takes_s = 0.5
    got: list[Any] = []

    async def one() -> None:
        got.append(await shown(metrics))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
        await wait_all_tasks_blocked()
    assert got == [1] * 10
    assert source.readings == 1
