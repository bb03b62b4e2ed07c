"""Many clients that are slow or talk noise are ended in time, at a bounded cost."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
import trio

from aether_trio.wire.framing import Error, ErrorCode, RemoteProtocolError
from tests.helpers.gateway import GatewayProcess, start_gateway
from tests.transport.framed.adversary import PREFACE, connected, credit, hello, init, is_well, live, ping, send

FLOOD = 400
BYTES_EACH = 24 * 1024
"""Of memory, for a connection that has promised 512 KiB and not sent them. Measured: 8 KiB."""
NOISES = 150


@pytest.fixture(scope="module")
def impatient() -> Iterator[GatewayProcess]:
    # The first is longer, as it begins before we have said anything: a stall of this process is not
    # to end what it goes on with.
    sets = ("gateway.first_bytes_timeout_s=8", "limits.init_wait_s=1")
    arguments = [part for one in sets for part in ("--set", one)]
    with start_gateway(ephemeral=True, extra_args=arguments, env={"NEW_INTERPRETERS": "1"}) as running:
        yield running
        assert "Traceback" not in running.output()


@pytest.mark.parametrize(
    "data",
    [
        PREFACE,
        PREFACE + b"\0\0",
        PREFACE + hello(agent="slow")[:-1],
        PREFACE + hello(),
        PREFACE + hello() + init("1")[:-1],
    ],
    ids=["preface", "half a header", "half a HELLO", "HELLO", "half an init"],
)
async def test_who_does_not_get_on_is_told_and_ended(impatient: GatewayProcess, data: bytes) -> None:
    async with connected(impatient.address) as peer:
        await peer.say(data)
        error = await peer.next(Error)
        assert (error.code, error.retryable) == (ErrorCode.TIMEOUT, True)
        await peer.finish()


async def test_who_does_not_say_a_whole_preface_is_ended(impatient: GatewayProcess) -> None:
    async with connected(impatient.address) as peer:
        await peer.say(PREFACE[:3])
        await peer.end()


async def test_pings_do_not_put_off_the_deadline(impatient: GatewayProcess) -> None:
    async with connected(impatient.address) as peer:
        await peer.say(PREFACE + hello())

        async def go_on() -> None:
            number = 0
            while True:
                number += 1
                await peer.say(ping(number))
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            assert (await peer.next(Error)).code == ErrorCode.TIMEOUT
            nursery.cancel_scope.cancel()


async def test_a_flood_of_slow_handshakes_costs_little_and_goes_away(impatient: GatewayProcess) -> None:
    """All of them promise half a mebibyte and say a few bytes of it."""
    await is_well(impatient.address)
    before = impatient.resident_bytes()
    most = 0
    told = 0
    ready = trio.Event()
    count = 0

    async def dawdle() -> None:
        nonlocal count, most, told
        async with connected(impatient.address) as peer:
            await peer.say(PREFACE + hello() + struct.pack(">IBB", 512 * 1024, 8, 0) + b"\x0a" * 100)
            count += 1
            if count == FLOOD:
                ready.set()
            error = await peer.next(Error)
            told += error.code == ErrorCode.TIMEOUT
            most = max(most, impatient.resident_bytes())

    async with trio.open_nursery() as nursery:
        for _ in range(FLOOD):
            nursery.start_soon(dawdle)
        await ready.wait()
        await is_well(impatient.address)
        most = max(most, impatient.resident_bytes())
    assert told == FLOOD
    assert most - before < FLOOD * BYTES_EACH
    await is_well(impatient.address)


@pytest.mark.parametrize("seed", range(2))
async def test_noise(impatient: GatewayProcess, seed: int) -> None:
    """A conversation with a few wrong bytes is served or ended with an ERROR."""
    chance = random.Random(seed)

    async def babble(number: int, random_bytes: int) -> None:
        chance = random.Random(f"{seed} {number}")
        whole = live(f"noise{number}", credit_messages=5, publisher=bytes(16))
        whole += b"".join(send(n, f"ag::default::adversary::noise{number}".encode()) for n in range(1, 20))
        whole += ping(1) + credit(5, 0) + send(30)
        data = bytearray(whole)
        for _ in range(random_bytes):
            data[chance.randrange(len(data))] = chance.randrange(256)
        async with connected(impatient.address) as peer:
            try:
                await peer.say(bytes(data))
                await peer.finish()
            except (trio.BrokenResourceError, RemoteProtocolError):
                pass  # a reset is an end, too

    async with trio.open_nursery() as nursery:
        for number in range(NOISES):
            nursery.start_soon(babble, number, chance.randint(0, 8))
    await is_well(impatient.address)
