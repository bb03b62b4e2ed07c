"""Unfinished messages share one budget and one deadline, and disturb no client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.wire.pb import aether_pb2 as pb
from tests.security.clients import KIB, MIB, Talker, checkpoint_of, gateway_with, init_of, talkers

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "framed", "websocket"])
BUDGET = 12 * MIB
LIMITS: dict[str, Any] = {"unfinished_input_bytes": BUDGET, "message_wait_s": 3600.0}
HELD = 1536 * KIB
"""Of each message that is begun: the largest of every transport is longer."""


def shown(gateway: Gateway, name: str) -> float:
    text = gateway.core.metrics.render()[1].decode()
    (line,) = (line for line in text.splitlines() if line.startswith(f"aether_unfinished_input_{name} "))
    return float(line.split()[1])


async def until_held(gateway: Gateway, least: int) -> None:
    """Wait until the gateway has read so much of unfinished messages."""
    while shown(gateway, "bytes") < least:
        await trio.sleep(0.01)


async def begin(gateway: Gateway, talker: Talker, held: int = HELD) -> None:
    """Let a message begin, and wait until the gateway has what was sent."""
    least = shown(gateway, "bytes") + held
    await talker.begin(2 * MIB - 1, bytes(held))
    await until_held(gateway, least)


@TRANSPORTS
async def test_what_begins_without_an_end_is_bounded_for_all_connections_together(transport: str) -> None:
    async with gateway_with(limits=LIMITS) as gateway, talkers(gateway) as open_:
        idle = [await open_.connect(transport, f"idle{number}") for number in range(20)]
        for talker in idle:
            await talker.begin(2 * MIB - 1, bytes(HELD))
        while shown(gateway, "given_up_total") < 12:
            await trio.sleep(0.01)
        free = 64 * KIB * len(idle)
        assert shown(gateway, "counted_bytes") <= BUDGET
        assert shown(gateway, "bytes") <= BUDGET + free
        ends: list[tuple[Status, str]] = []

        async def read(talker: Talker) -> None:
            ends.append(await talker.end())
            if len(ends) == 12:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for talker in idle:
                nursery.start_soon(read, talker)
        assert {status for status, _ in ends} == {Status.RESOURCE_EXHAUSTED}
        assert {text for _, text in ends} == {"the gateway holds too many unfinished messages"}


@TRANSPORTS
async def test_a_message_that_goes_on_outlives_those_that_wait(transport: str) -> None:
    async with gateway_with(limits={**LIMITS, "message_wait_s": 3.0}) as gateway, talkers(gateway) as open_:
        honest = await open_.connect(transport, "honest")
        content = checkpoint_of(2 * MIB - 4 * KIB)
        await honest.begin(len(content), content[: 1 * MIB])
        sent = 1 * MIB
        for number in range(20):
            # Each of them is there for a moment only, and together they are always too much.
            await (await open_.connect(transport, f"idle{number}")).begin(2 * MIB - 1, bytes(HELD))
            await honest.go_on(content[sent : sent + 40 * KIB])
            sent += 40 * KIB
        await honest.go_on(content[sent:])
        assert (await honest.answer("checkpoint")).checkpoint.success
        assert shown(gateway, "given_up_total") > 0


@asynccontextmanager
async def unfinished(gateway: Gateway, talker: Talker) -> AsyncIterator[None]:
    """Begin a message before the block; finish it when others were given up."""
    content = checkpoint_of(2 * MIB - 4 * KIB)
    await talker.begin(len(content), content[:HELD])
    await until_held(gateway, HELD)
    yield
    while not shown(gateway, "given_up_total"):
        await trio.sleep(0.01)
    await talker.go_on(content[HELD:])
    assert (await talker.answer("checkpoint")).checkpoint.success


@TRANSPORTS
async def test_a_host_that_fills_the_budget_loses_its_own_messages(transport: str) -> None:
    async with (
        gateway_with(limits=LIMITS) as gateway,
        talkers(gateway) as open_,
        unfinished(gateway, await open_.connect(transport, "honest", host="127.0.0.2")),
    ):
        for number in range(20):
            await (await open_.connect(transport, f"idle{number}")).begin(2 * MIB - 1, bytes(1 * MIB))


@TRANSPORTS
async def test_those_that_are_not_accepted_are_given_up_first(transport: str) -> None:
    async with (
        gateway_with(limits=LIMITS) as gateway,
        talkers(gateway) as open_,
        unfinished(gateway, await open_.connect(transport, "accepted")),
    ):
        for talker in [await open_.dial(transport) for _ in range(32)]:
            await talker.begin(500 * KIB, bytes(490 * KIB))


@TRANSPORTS
async def test_a_client_that_is_not_accepted_begins_nothing_long(transport: str) -> None:
    async with gateway_with(limits=LIMITS) as gateway, talkers(gateway) as open_:
        talker = await open_.dial(transport)
        await talker.begin(513 * KIB, b"")
        if transport == "framed":
            # FRAME_TOO_LARGE is not for coming back with the same.
            with pytest.raises(AssertionError):
                await talker.end()
        elif transport == "grpc":
            assert (await talker.end())[0] is Status.INVALID_ARGUMENT
        else:
            closed = await talker.client.closed()  # type: ignore[union-attr]
            assert closed.code == 1009
        assert shown(gateway, "bytes") == 0


@TRANSPORTS
async def test_the_longest_init_is_taken(transport: str) -> None:
    long = {f"{number}": "x" * (16 * KIB - 2) for number in range(16)}
    async with gateway_with() as gateway, talkers(gateway) as open_:
        talker = await open_.dial(transport)
        await talker.say(init_of("long", credentials=long))
        await talker.answer("connection_ack")


@TRANSPORTS
@pytest.mark.parametrize("content", [b"", bytes(200), bytes(100 * KIB)], ids=["nothing", "little", "much"])
async def test_a_message_that_does_not_go_on_ends_its_stream(transport: str, content: bytes) -> None:
    async with gateway_with(limits={"message_wait_s": 0.5}) as gateway, talkers(gateway) as open_:
        talker = await open_.connect(transport, "slow")
        if transport == "websocket" and not content:
            content = b"-"  # a WebSocket header alone holds nothing
        await talker.begin(1 * MIB, content)
        status, text = await talker.end()
        assert status is Status.DEADLINE_EXCEEDED
        assert "made no progress" in text
        assert shown(gateway, "too_slow_total") == 1
        assert shown(gateway, "messages") == 0


@TRANSPORTS
async def test_a_slow_message_that_goes_on_is_waited_for(transport: str) -> None:
    async with gateway_with(limits={"message_wait_s": 2.0}) as gateway, talkers(gateway) as open_:
        talker = await open_.connect(transport, "steady")
        content = checkpoint_of(1 * MIB)
        await talker.begin(len(content), content[: 64 * KIB])
        for at in range(64 * KIB, len(content), 128 * KIB):
            await trio.sleep(0.5)
            await talker.go_on(content[at : at + 128 * KIB])
        assert (await talker.answer("checkpoint")).checkpoint.success


@TRANSPORTS
async def test_a_client_that_is_not_read_is_not_slow(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own pauses are no fault of the client's."""
    async with gateway_with(limits={"message_wait_s": 0.5}) as gateway, talkers(gateway) as open_:
        talker = await open_.connect(transport, "patient")
        log = gateway.core.log
        stands_still, goes_on = trio.Event(), trio.Event()

        async def wait_room() -> None:
            stands_still.set()
            await goes_on.wait()

        monkeypatch.setattr(log, "wait_room", wait_room)
        monkeypatch.setattr(type(log), "has_room", property(lambda _: goes_on.is_set()))
        content = checkpoint_of(1 * MIB)
        await talker.say(pb.UpstreamMessage.FromString(checkpoint_of(10)))
        await stands_still.wait()
        await talker.begin(len(content), content[: 32 * KIB])
        await trio.sleep(2.0)  # four times as long as a message may stand still
        goes_on.set()
        await talker.go_on(content[32 * KIB :])
        await talker.answer("checkpoint")
        assert (await talker.answer("checkpoint")).checkpoint.success


async def test_many_small_beginnings_do_not_count() -> None:
    async with gateway_with(limits=LIMITS) as gateway, talkers(gateway) as open_:
        for number in range(50):
            await begin(gateway, await open_.connect("framed", f"small{number}"), 60 * KIB)
        assert shown(gateway, "messages") == 50
        assert shown(gateway, "counted_bytes") == 0


async def test_what_was_held_is_forgotten_with_its_connection() -> None:
    async with gateway_with(limits=LIMITS) as gateway:
        async with talkers(gateway) as open_:
            for transport in ("grpc", "framed", "websocket"):
                await begin(gateway, await open_.connect(transport, transport))
            assert shown(gateway, "messages") == 3
        while shown(gateway, "messages"):
            await trio.sleep(0.01)
        assert shown(gateway, "counted_bytes") == 0
