"""Test clients of applications of chance, by the model of play.py."""

from __future__ import annotations

import pytest

from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.model.tasks import status
from tests.client.gateways import SCHEMES, open_test_gateway, run_on
from tests.client.machine.play import Play, Weather

LIVES = 8
MOVES = 40


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes anew does not wait long for what the one before has left."""
    graces = dict.fromkeys(status.GRACE_MS, 300)
    monkeypatch.setattr(status, "GRACE_MS", graces)


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_play(backend: str, scheme: str, seed: int) -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:

        async def play() -> None:
            direct, proxied = f"aether://{gateway.address}", f"{scheme}://{proxy.address}"
            await Play(seed, direct, proxied, Weather(proxy)).run(LIVES, MOVES)

        await run_on(backend, play)
