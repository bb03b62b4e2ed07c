"""Test operations on a connection to a real gateway that is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from aether_trio.client import AgentClient, ConnectionLost
from aether_trio.client.feeds import CONNECTION_LOST
from aether_trio.client.operations.namespace import Namespace
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from tests.client.gateways import agent, open_test_gateway

SCHEMES = ["aether", "ws"]


@asynccontextmanager
async def behind_a_proxy(scheme: str) -> AsyncIterator[tuple[AgentClient, FaultProxy]]:
    async with (
        open_test_gateway() as gateway,
        open_fault_proxy(gateway.address) as proxy,
        agent(f"{scheme}://{proxy.address}", "a") as a,
    ):
        yield a, proxy


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_what_belongs_to_a_connection_ends_with_it(scheme: str) -> None:
    async with behind_a_proxy(scheme) as (a, proxy):
        unmatched = Namespace(a)._exchange_feed("task_event", match=lambda payload: False, capacity=8)
        with a.open_feed(CONNECTION_LOST) as feed, unmatched as exchange:
            (await proxy.connection(0)).cut()
            assert isinstance(await anext(feed), ConnectionLost)
            assert isinstance(await anext(exchange), ConnectionLost)
            await a.kv.put("k", b"v")  # on the next connection
            assert a.connections == 2


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_reading_survives_a_cut_and_writing_is_in_doubt(scheme: str) -> None:
    async with behind_a_proxy(scheme) as (a, proxy):
        await a.kv.put("n", b"5")
        connection = await proxy.connection(0)
        connection.downstream.stall()
        outcomes: dict[str, object] = {}

        async def read() -> None:
            outcomes["read"] = await a.kv.get("n")

        async def write() -> None:
            try:
                await a.kv.increment("n")
            except ConnectionLost as error:
                outcomes["write"] = error.in_doubt

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            before = proxy.statistics().upstream_bytes
            while proxy.statistics().upstream_bytes == before:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            connection.cut()
        assert outcomes["read"] in {b"5", b"6"}
        assert outcomes["write"] is True
        # It was done once, if at all.
        assert await a.kv.get("n") in {b"5", b"6"}
