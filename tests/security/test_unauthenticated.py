"""An unauthenticated client makes no metric label, and bounded escaped log lines."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from aether_trio.cli.options import split_address
from aether_trio.config import LoggingSettings
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.telemetry import configure_logging
from aether_trio.testing.memory import agent, message_to
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.participants import TRANSPORTS, admission, participant
from tests.security.clients import gateway_with
from tests.security.tenants import auth, key_of
from tests.transport.grpc.harness import RawClient, data, frame, message, settings

EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)
EVE = agent("red", "eve", "1", credentials={"api_key": key_of("red")})
EVIL = "evil\x1b[2J\x9b31m\n\u202e"


@asynccontextmanager
async def serving(*, strict: bool = True) -> AsyncIterator[Gateway]:
    section = {"dev": False, "strict_identifier_charset": strict}
    limits, ops = {"send_rate_per_s": 0.0}, {"workspace_label": True}
    async with gateway_with(gateway=section, auth=auth(), limits=limits, ops=ops) as gateway:
        yield gateway


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    configure_logging(LoggingSettings(), out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def attempts(gateway: Gateway) -> list[str]:
    _, text = gateway.core.metrics.render()
    return [line for line in text.decode().splitlines() if line.startswith("aether_connection_attempts_total")]


@EVERY_TRANSPORT
async def test_an_unauthenticated_client_writes_no_label(transport: str) -> None:
    async with serving() as gateway:
        for number in range(20):
            hello = agent(f"made-up-{number}", "eve", "1", credentials={"api_key": "aek_wrong"})
            assert (await admission(transport, gateway.address, hello))[0] is Status.UNAUTHENTICATED
        assert attempts(gateway) == [
            'aether_connection_attempts_total{workspace="",principal_type="agent",status="unauthenticated"} 20.0'
        ]
        async with participant(transport, gateway.address, EVE):
            assert any(
                '{workspace="red",principal_type="agent",status="success"}' in line for line in attempts(gateway)
            )
            assert (await admission(transport, gateway.address, EVE))[0] is Status.ALREADY_EXISTS
            assert any(
                '{workspace="red",principal_type="agent",status="lock_failed"}' in line for line in attempts(gateway)
            )
        _, text = gateway.core.metrics.render()
        assert b"made-up" not in text


@EVERY_TRANSPORT
async def test_an_unauthenticated_client_writes_one_bounded_line(transport: str, log: io.StringIO) -> None:
    async with serving(strict=False) as gateway:
        log.seek(0)
        log.truncate()
        for hello in (
            agent(EVIL, "eve", "1", credentials={"api_key": "aek_wrong"}),
            agent("w", "eve", "1", credentials={EVIL: "x"}),
            agent("w", "eve", "1", client_sdk=EVIL + "x" * 10_000),
            agent("w" * 10_000, "eve", "1"),
            agent("w", "eve", "1", extensions=[pb.ExtensionDeclaration(uri="u" * 1000, required=True)] * 60),
        ):
            assert (await admission(transport, gateway.address, hello))[0] is not Status.OK
        lines = log.getvalue().splitlines()
        assert len(lines) == 5
        for line in lines:
            assert "connection refused" in line
            assert line.isprintable()
            assert len(line) < 3000


async def test_types_of_messages_that_do_not_exist_are_counted_together() -> None:
    async with serving() as gateway, participant("framed", gateway.address, EVE) as stream:
        for number in range(1000, 3000, 100):
            kinds = [pb.MessageType.ValueType(kind) for kind in range(number, number + 100)]
            await stream.send(*(message_to("ag::red::absent::1", b"x", kind) for kind in kinds))
        ask = pb.CheckpointOperation(op=pb.CheckpointOperation.LIST)
        await stream.send(pb.UpstreamMessage(checkpoint_op=ask))
        await stream.next("checkpoint")
        assert len(gateway.core.router._accepted) == 1
        assert gateway.core.router.statistics().accepted == {("red", "_other"): (2000, 2000)}


async def test_the_headers_of_unauthenticated_calls_are_bounded_together() -> None:
    """Calls, and so their headers, may last as long as their callers like."""
    async with serving() as gateway:
        client = RawClient(await trio.open_tcp_stream(*split_address(gateway.address)))
        with trio.fail_after(300):
            async with client.stream, trio.open_nursery() as nursery:
                await client.send(frames.PREFACE, settings())
                await client.until_kind(frames.SETTINGS)
                watch = "/grpc.health.v1.Health/Watch"
                calls = [client.request(number, watch, x="a" * 10_000) for number in range(1, 200, 2)]
                nursery.start_soon(client.send, *calls)
                refused = await client.until_kind(frames.RST_STREAM)
                assert refused.body == int(Http2ErrorCode.REFUSED_STREAM).to_bytes(4, "big")
                await client.until_kind(frames.RST_STREAM, stream_id=199)
                [connection] = gateway._ports._transports["grpc"].connections
                assert 500_000 < connection._header_bytes <= 512 * 1024
                await client.send(frame(frames.RST_STREAM, 0, 1, bytes(4)), client.request(201, watch, x="a" * 10_000))
                await client.send(data(201, message(b""), end=True))
                await client.payload(201, 7)


async def test_the_headers_of_an_authenticated_client_are_bounded_by_their_number() -> None:
    async with serving() as gateway:
        client = RawClient(await trio.open_tcp_stream(*split_address(gateway.address)))
        with trio.fail_after(300):
            async with client.stream:
                await client.send(frames.PREFACE, settings(), client.request(1, "/aether.v1.AetherGateway/Connect"))
                await client.send(data(1, message(EVE.SerializeToString())))
                await client.payload(1, 6)
                watch = "/grpc.health.v1.Health/Watch"
                for number in range(3, 203, 2):
                    await client.send(client.request(number, watch, x="a" * 10_000))
                await client.send(data(201, message(b""), end=True))
                await client.payload(201, 7)
