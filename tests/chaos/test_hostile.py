"""Each attack of the chaos runs, on one gateway, which serves others meanwhile."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from chaos.history import History
from chaos.hostile import Hostile
from tests.client.gateways import open_test_gateway
from tests.helpers.core import agent, message_to
from tests.helpers.participants import participant

ATTACKS = 12
LIMIT_S = 300.0


@asynccontextmanager
async def attacker(history: History) -> AsyncIterator[tuple[Hostile, Any]]:
    """An attacker of a gateway, and the load that it belongs to."""
    async with open_test_gateway() as gateway:
        load: Any = SimpleNamespace(
            address=gateway.address, chance=random.Random(1), now=trio.current_time, quiet=False, history=history
        )
        with trio.fail_after(LIMIT_S):
            yield Hostile(load), load


async def test_attacks_on_every_transport_end_no_gateway(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        attacker(History()) as (hostile, load),
        participant("grpc", load.address, agent("w", "a", "1")) as bystander,
        trio.open_nursery() as nursery,
    ):
        for _, _, attack in hostile.attacks:
            for seed in range(ATTACKS):
                nursery.start_soon(hostile.attack, attack, random.Random(seed))
        for number in range(10):
            await bystander.send(message_to("ag::w::a::1", b"%d" % number))
            assert (await bystander.next("msg")).msg.payload == b"%d" % number
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_it_attacks_until_the_load_is_quiet() -> None:
    history = History()
    async with attacker(history) as (hostile, load), trio.open_nursery() as nursery:
        nursery.start_soon(hostile.run)
        while not history.attacks:
            await trio.sleep(0.01)
        load.quiet = True
