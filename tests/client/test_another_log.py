"""Test a gateway that comes back with another log, and with its offsets anew."""

from __future__ import annotations

import trio

from aether_trio.client import AgentClient
from tests.client.gateways import agent
from tests.helpers.gateway import open_gateway_process

WAIT_S = 300.0
READER = "ag::w::i::rx"


async def _next(client: AgentClient) -> bytes:
    with trio.fail_after(WAIT_S):
        async for message in client:
            return message.payload
    raise AssertionError("the client has ended")


async def test_identical_messages_of_an_ephemeral_gateway_are_none_the_less_new_after_its_restart() -> None:
    async with open_gateway_process(ephemeral=True) as gateway:
        address = f"aether://{gateway.address}"
        async with agent(address, "rx", connect_timeout_s=60.0) as reader:
            for _ in range(2):
                async with agent(address, "tx", connect_timeout_s=60.0) as writer:
                    for _ in range(3):
                        await writer.send(READER, b"tick")
                for _ in range(3):
                    assert await _next(reader) == b"tick"
                await trio.to_thread.run_sync(gateway.kill)
                await trio.to_thread.run_sync(gateway.restart)


async def test_the_buffer_of_a_log_that_is_gone_acknowledges_nothing_of_the_next_one() -> None:
    async with open_gateway_process(ephemeral=True) as gateway:
        address = f"aether://{gateway.address}"
        async with agent(address, "rx", connect_timeout_s=60.0) as reader:
            for text in (b"old", b"new"):
                async with agent(address, "tx", connect_timeout_s=60.0) as writer:
                    for number in range(3):
                        await writer.send(READER, b"%s %d" % (text, number))
                if text == b"old":
                    assert await _next(reader) == b"old 0"
                    await trio.to_thread.run_sync(gateway.kill)
                    await trio.to_thread.run_sync(gateway.restart)
            # What was buffered is still handed out, in front of what is new.
            seen = [await _next(reader) for _ in range(5)]
            assert seen == [b"old 1", b"old 2", b"new 0", b"new 1", b"new 2"]
