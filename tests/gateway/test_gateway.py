"""A running gateway: transports on one port or on several."""

from __future__ import annotations

import trio

from aether_trio.cli.options import split_address
from aether_trio.testing.memory import agent, message_to
from tests.client.gateways import open_test_gateway
from tests.helpers.participants import participant
from tests.wire.minimal_client import PREFACE
from tests.wire.minimal_client import Client as FramedClient

PLANNER, WRITER = "ag::default::planner::1", "ag::default::writer::1"


async def framed_agent(address: str, identity: str) -> FramedClient:
    return await trio.to_thread.run_sync(FramedClient, split_address(address), identity.split("::")[1:])


async def answer_to(address: str, said: bytes) -> bytes:
    host, port = split_address(address)
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(said)
        return b"".join([chunk async for chunk in stream])


async def test_transports_on_one_port_reach_each_other() -> None:
    async with open_test_gateway() as gateway:
        assert set(gateway.addresses.values()) == {gateway.address}
        assert set(gateway.addresses) == {"grpc", "framed", "websocket"}
        async with participant("grpc", gateway.address, agent("default", "planner", "1")) as planner:
            writer = await framed_agent(gateway.address, WRITER)
            await planner.send(message_to(WRITER, b"plan"))
            channel, offset, *_, source, payload = await trio.to_thread.run_sync(writer.receive)
            assert (source, payload) == (PLANNER, b"plan")
            writer.done(channel, offset)
            assert await trio.to_thread.run_sync(writer.settle, writer.send(PLANNER, b"text")) is None
            answer = (await planner.next("msg")).msg
            assert (answer.source_topic, answer.payload) == (WRITER, b"text")
            await trio.to_thread.run_sync(writer.close)
        request = b"GET /client/aether.js HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        assert (await answer_to(gateway.address, request)).startswith(b"HTTP/1.1 200 ")
        _, text = gateway.core.metrics.render()
        for transport in (b"framed", b"grpc"):
            assert b'aether_port_connections_total{transport="%s"} 1.0' % transport in text


async def test_a_transport_with_a_port_of_its_own_and_one_that_is_off() -> None:
    async with open_test_gateway(framed={"port": 0}, websocket={"enabled": False}) as gateway:
        assert set(gateway.addresses) == {"grpc", "framed"}
        assert gateway.address == gateway.addresses["grpc"] != gateway.addresses["framed"]
        writer = await framed_agent(gateway.addresses["framed"], WRITER)
        await trio.to_thread.run_sync(writer.close)
        for said in (PREFACE, b"GET / HTTP/1.1\r\n\r\n"):
            assert b"not spoken here: this port speaks gRPC" in await answer_to(gateway.address, said)
        _, text = gateway.core.metrics.render()
        assert b'aether_port_rejects_total{reason="transport_off"} 2.0' in text
