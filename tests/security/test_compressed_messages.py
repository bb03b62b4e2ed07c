"""Compressed messages are inflated when read, and little at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc
import pytest
import trio

from aether_trio.gateway.session_hooks import ServiceHooks
from aether_trio.model.errors import Status
from aether_trio.transport.grpc import decompression, message_encoding
from aether_trio.wire.delivery import varint
from aether_trio.wire.pb import aether_pb2 as pb
from tests.security.clients import KIB, MIB, GrpcTalker, Talker, checkpoint_of, gateway_with, gzipped, init_of, talkers

CONNECT = "/aether.v1.AetherGateway/Connect"


def bomb(size: int) -> bytes:
    """A message of so many bytes, in about a thousandth of them."""
    return gzipped(checkpoint_of(size))


async def connected(talker: Talker, name: str = "packed") -> GrpcTalker:
    assert isinstance(talker, GrpcTalker)
    await talker.go_on(gzipped(init_of(name).SerializeToString()))
    await talker.answer("connection_ack")
    return talker


async def test_grpcio_that_compresses_everything_is_served() -> None:
    def client(address: str) -> list[str | None]:
        requests = iter([init_of("grpcio").SerializeToString(), *map(checkpoint_of, (100 * KIB, 3 * MIB, 1))])
        seen: list[str | None] = []
        with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
            call = channel.stream_stream(CONNECT)(requests)
            for answer in call:
                message = pb.DownstreamMessage.FromString(answer)
                assert message.WhichOneof("payload") != "checkpoint" or message.checkpoint.success
                seen.append(message.WhichOneof("payload"))
                if seen.count("checkpoint") == 3:
                    call.cancel()
                    return seen
        return seen

    async with gateway_with() as gateway:
        seen = await trio.to_thread.run_sync(client, gateway.address)
    assert seen[0] == "connection_ack"


@pytest.mark.parametrize("size", [513 * KIB, 10 * MIB])
async def test_an_init_that_grows_is_refused_at_the_cap_of_an_opening_message(size: int) -> None:
    async with gateway_with() as gateway, talkers(gateway) as open_:
        talker = await open_.dial("grpc", compressed=True)
        long = init_of("bomb", client_sdk="x" * size).SerializeToString()
        await talker.go_on(gzipped(long))
        status, text = await talker.end()
        assert status is Status.INVALID_ARGUMENT
        assert "at most 524288 are allowed" in text


async def test_nothing_behind_the_init_is_inflated_before_the_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[int] = []
    accepted: list[int] = []

    class Watched(message_encoding.Decompression):
        def __init__(self, message: bytes, *rest: Any) -> None:
            inflated.append(len(message))
            super().__init__(message, *rest)

    monkeypatch.setattr(decompression, "Decompression", Watched)
    async with gateway_with() as gateway, talkers(gateway) as open_:
        prepare = ServiceHooks.prepare

        async def watched(hooks: ServiceHooks, session: Any) -> None:
            accepted.append(len(inflated))
            await prepare(hooks, session)

        monkeypatch.setattr(ServiceHooks, "prepare", watched)
        talker = await open_.dial("grpc", compressed=True)
        await talker.go_on(gzipped(init_of("all").SerializeToString()) + b"".join(bomb(3 * MIB) for _ in range(6)))
        for _ in range(6):
            assert (await talker.answer("checkpoint")).checkpoint.success
        assert accepted == [1]
        assert len(inflated) == 7


async def test_a_bomb_gives_the_others_a_turn_after_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    at: list[int] = []
    step = message_encoding.Decompression.step

    def watched(decompression: message_encoding.Decompression) -> bool:
        before = decompression.size
        done = step(decompression)
        at.append(turns)
        assert decompression.size - before <= message_encoding.SLICE_BYTES
        return done

    monkeypatch.setattr(message_encoding.Decompression, "step", watched)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with gateway_with() as gateway, talkers(gateway) as open_, trio.open_nursery() as nursery:
        busy = [await connected(await open_.dial("grpc", compressed=True), f"n{number}") for number in range(3)]
        at.clear()
        nursery.start_soon(others)
        for talker in busy:
            await talker.go_on(bomb(3 * MIB) * 2)
        for talker in busy:
            for _ in range(2):
                assert (await talker.answer("checkpoint")).checkpoint.success
        nursery.cancel_scope.cancel()
    assert len(at) >= 6 * 12
    # One in each turn of the scheduler, which runs the tasks of a turn in any order: the last of
    # one, the first of the next.
    assert max(Counter(at).values()) <= 2


async def test_a_connection_inflates_no_more_than_its_rate(autojump_clock: trio.testing.MockClock) -> None:
    turns = decompression.DecompressionTurns()
    one, other = decompression.Decompressor(turns), decompression.Decompressor(turns)
    packed = gzipped(bytes(10 * MIB))[message_encoding.PREFIX_BYTES :]
    begun = trio.current_time()
    for _ in range(10):
        assert len(await one.decompress(packed, "gzip", 10 * MIB)) == 10 * MIB
    rate = decompression.DECOMPRESSED_BYTES_PER_S
    assert trio.current_time() - begun >= 90 * MIB / rate - decompression.AHEAD_S
    waited = trio.current_time()
    assert len(await other.decompress(packed, "gzip", 10 * MIB)) == 10 * MIB
    assert trio.current_time() == waited, "one connection's debt is no other's"


async def test_one_large_message_at_a_time_is_half_inflated(autojump_clock: trio.testing.MockClock) -> None:
    turns = decompression.DecompressionTurns()
    packed = gzipped(bytes(10 * MIB))[message_encoding.PREFIX_BYTES :]
    small = gzipped(bytes(1000))[message_encoding.PREFIX_BYTES :]
    order: list[str] = []

    async def decompress(name: str, message: bytes) -> None:
        await decompression.Decompressor(turns).decompress(message, "gzip", 10 * MIB)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(decompress, f"large{number}", packed)
        nursery.start_soon(decompress, "small", small)
    assert order[0] == "small"
    assert len(order) == 6


async def test_health_and_reflection_take_no_more_than_an_opening_message() -> None:
    def ask(address: str, size: int, compression: grpc.Compression) -> grpc.StatusCode:
        with grpc.insecure_channel(address, compression=compression) as channel:
            try:
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a" + varint(size) + b"x" * size, timeout=60)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    async with gateway_with() as gateway:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            for size, code in ((100 * KIB, grpc.StatusCode.NOT_FOUND), (600 * KIB, grpc.StatusCode.INVALID_ARGUMENT)):
                found = await trio.to_thread.run_sync(ask, gateway.address, size, compression)
                assert found is code
