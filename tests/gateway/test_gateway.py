"""A running gateway: transports on one port or on several, and how they all end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.cli.options import split_address
from aether_trio.gateway import Gateway, open_gateway
from aether_trio.model.errors import StatusError
from aether_trio.transport.link import LinkBroken
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import settings_for_tests
from tests.helpers.grpc_stream import GrpcStream, open_grpc
from tests.wire.minimal_client import PREFACE, Ended
from tests.wire.minimal_client import Client as FramedClient

PLANNER, WRITER = "ag::default::planner::1", "ag::default::writer::1"


@asynccontextmanager
async def gateway_with(**sections: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    settings = settings_for_tests(**{"gateway": {"ephemeral": True, "port": 0}, "ops": {"enabled": False}, **sections})
    with trio.fail_after(300):
        async with open_gateway(settings) as gateway:
            yield gateway


@asynccontextmanager
async def grpc_agent(address: str, identity: str) -> AsyncIterator[GrpcStream]:
    host, port = split_address(address)
    _, workspace, implementation, specifier = identity.split("::")
    agent = pb.AgentIdentity(workspace=workspace, implementation=implementation, specifier=specifier)
    async with open_grpc(host, port) as transport:
        await transport.send(pb.UpstreamMessage(init=pb.InitConnection(agent=agent)))
        answer = await transport.receive()
        assert answer is not None
        assert answer.WhichOneof("payload") == "connection_ack"
        yield transport


async def framed_agent(address: str, identity: str) -> FramedClient:
    return await trio.to_thread.run_sync(FramedClient, split_address(address), identity.split("::")[1:])


async def answer_to(address: str, said: bytes) -> bytes:
    host, port = split_address(address)
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(said)
        return b"".join([chunk async for chunk in stream])


async def test_transports_on_one_port_reach_each_other() -> None:
    async with gateway_with() as gateway:
        assert set(gateway.addresses.values()) == {gateway.address}
        assert set(gateway.addresses) == {"grpc", "framed", "websocket"}
        async with grpc_agent(gateway.address, PLANNER) as planner:
            writer = await framed_agent(gateway.address, WRITER)
            await planner.send(pb.UpstreamMessage(send=pb.SendMessage(target_topic=WRITER, payload=b"plan")))
            channel, offset, *_, source, payload = await trio.to_thread.run_sync(writer.receive)
            assert (source, payload) == (PLANNER, b"plan")
            writer.done(channel, offset)
            assert await trio.to_thread.run_sync(writer.settle, writer.send(PLANNER, b"text")) is None
            while (answer := await planner.receive()) is not None and not answer.HasField("msg"):
                pass  # what the gateway tells of itself
            assert answer is not None
            assert (answer.msg.source_topic, answer.msg.payload) == (WRITER, b"text")
            await trio.to_thread.run_sync(writer.close)
        request = b"GET /client/aether.js HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        assert (await answer_to(gateway.address, request)).startswith(b"HTTP/1.1 200 ")
        _, text = gateway.core.metrics.render()
        for line in (
            b'aether_port_connections_total{transport="framed"} 1.0',
            b'aether_port_connections_total{transport="grpc"} 1.0',
        ):
            assert line in text


async def test_a_transport_with_a_port_of_its_own_and_one_that_is_off() -> None:
    async with gateway_with(framed={"port": 0}, websocket={"enabled": False}) as gateway:
        assert set(gateway.addresses) == {"grpc", "framed"}
        assert gateway.address == gateway.addresses["grpc"] != gateway.addresses["framed"]
        writer = await framed_agent(gateway.addresses["framed"], WRITER)
        await trio.to_thread.run_sync(writer.close)
        for said in (PREFACE, b"GET / HTTP/1.1\r\n\r\n"):
            assert b"not spoken here: this port speaks gRPC" in await answer_to(gateway.address, said)
        _, text = gateway.core.metrics.render()
        assert b'aether_port_rejects_total{reason="transport_off"} 2.0' in text


async def test_a_drain_ends_every_transport() -> None:
    async with gateway_with() as gateway:
        writer = await framed_agent(gateway.address, WRITER)
        async with grpc_agent(gateway.address, PLANNER) as planner, trio.open_nursery() as nursery:
            nursery.start_soon(gateway.drain)
            with pytest.raises((StatusError, LinkBroken)):
                while await planner.receive() is not None:
                    pass
            with pytest.raises(Ended):
                await trio.to_thread.run_sync(writer.receive)
            writer.socket.close()
        await gateway.wait_closed()
        with pytest.raises(OSError, match="all attempts to connect"):
            await answer_to(gateway.address, PREFACE)
