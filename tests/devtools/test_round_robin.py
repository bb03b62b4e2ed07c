"""Several targets behind one proxy, in turn, and without those that do not accept."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import trio

from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.devtools.round_robin import RoundRobin
from tests.devtools.test_fault_proxy import LIMIT_S, address_of, connect_to


@pytest.fixture
async def listeners() -> AsyncIterator[list[trio.SocketListener]]:
    async with AsyncExitStack() as stack:
        opened = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(3)]
        for one in opened:
            await stack.enter_async_context(one)
        yield opened


async def test_each_connection_goes_to_the_next_one_that_accepts(listeners: list[trio.SocketListener]) -> None:
    addresses = [address_of(one.socket) for one in listeners]
    turns = RoundRobin(addresses)
    with trio.fail_after(LIMIT_S):
        async with open_fault_proxy(turns) as proxy, AsyncExitStack() as stack:

            async def connect(number: int) -> str:
                await stack.enter_async_context(await connect_to(proxy))
                return (await proxy.connection(number)).target_address

            assert [await connect(number) for number in range(4)] == [*addresses, addresses[0]]
            await listeners[1].aclose()
            assert [await connect(number) for number in range(4, 7)] == [addresses[2], addresses[2], addresses[0]]
            turns.out = {addresses[2]}
            assert {await connect(number) for number in range(7, 10)} == {addresses[0]}
            proxy.cut_all(addresses[2])
            while any(one.target_address == addresses[2] for one in proxy.open.values()):
                await trio.sleep(0.01)
            assert {one.target_address for one in proxy.open.values()} == {addresses[0]}


async def test_a_connection_that_no_node_takes_is_reset() -> None:
    with socket.socket() as bound, trio.fail_after(LIMIT_S):
        bound.bind(("127.0.0.1", 0))
        for addresses in ([], [address_of(bound)]):
            async with open_fault_proxy(RoundRobin(addresses)) as proxy:
                async with await connect_to(proxy) as stream:
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some(1)
                assert proxy.statistics().unreachable == 1
