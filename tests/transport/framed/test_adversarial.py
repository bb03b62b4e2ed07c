"""Each mistake that docs/wire.md names gets the answer that it promises.

The bytes are written by hand. What the gateway answers is read with the codec, which is tested
elsewhere.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import msgpack
import pytest
import trio

from aether_trio.wire.framing import Ack, Deliver, Error, ErrorCode, FrameType, Nack, ServerHello
from tests.helpers.gateway import GatewayProcess, open_gateway_process, start_gateway
from tests.transport.framed.adversary import (
    MIB,
    PREFACE,
    connected,
    credit,
    delivered,
    frame,
    header,
    hello,
    init,
    is_well,
    live,
    ping,
    send,
)
from tests.transport.pki import Pki


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with start_gateway(ephemeral=True) as running:
        yield running
        assert "Traceback" not in running.output()


MISTAKES: dict[str, tuple[ErrorCode, bytes]] = {
    "another major version": (ErrorCode.UNSUPPORTED_VERSION, b"\xaeAETHER\x02" + hello()),
    "version 0": (ErrorCode.UNSUPPORTED_VERSION, b"\xaeAETHER\x00"),
    "a HELLO of 4 KiB and a byte": (ErrorCode.MALFORMED, PREFACE + header(FrameType.HELLO, 4097)),
    "a first frame of 4 GiB": (ErrorCode.FRAME_TOO_LARGE, PREFACE + header(FrameType.HELLO, 2**32 - 1)),
    "an init of 512 KiB and a byte": (
        ErrorCode.FRAME_TOO_LARGE,
        PREFACE + hello() + header(FrameType.ENVELOPE, MIB // 2 + 1),
    ),
    "an accepted client's frame over 10 MiB": (
        ErrorCode.FRAME_TOO_LARGE,
        live() + header(FrameType.SEND, 10 * MIB + 1),
    ),
    "a type that does not exist": (ErrorCode.UNKNOWN_FRAME, live() + frame(0x7F)),
    "type 0": (ErrorCode.UNKNOWN_FRAME, live() + frame(0)),
    "flags on a SEND": (ErrorCode.MALFORMED, live() + frame(FrameType.SEND, bytes(16), 0x80)),
    "a SEND of 15 bytes": (ErrorCode.MALFORMED, live() + frame(FrameType.SEND, bytes(15))),
    "a topic longer than its SEND": (
        ErrorCode.MALFORMED,
        live() + frame(FrameType.SEND, struct.pack(">qHHI", 1, 1, 9, 0) + b"short"),
    ),
    "an extra longer than its SEND": (
        ErrorCode.MALFORMED,
        live() + frame(FrameType.SEND, struct.pack(">qHHI", 1, 1, 1, 2**32 - 1) + b"tx"),
    ),
    "a topic that is no text": (ErrorCode.MALFORMED, live() + send(1, b"\xff\xfe")),
    "number 0": (ErrorCode.MALFORMED, live() + send(0)),
    "a number below 0": (ErrorCode.MALFORMED, live() + send(-5)),
    "a DELIVERED of 11 bytes": (ErrorCode.MALFORMED, live() + frame(FrameType.DELIVERED, bytes(11))),
    "a PING of 9 bytes": (ErrorCode.MALFORMED, live() + frame(FrameType.PING, bytes(9))),
    "a GOAWAY of 5 bytes": (ErrorCode.MALFORMED, live() + frame(FrameType.GOAWAY, bytes(5))),
    "a HELLO that is a list": (ErrorCode.BAD_HELLO, PREFACE + frame(FrameType.HELLO, msgpack.packb([1]))),
    "a HELLO that is noise": (ErrorCode.BAD_HELLO, PREFACE + frame(FrameType.HELLO, b"\xc1\xc1")),
    "a HELLO with a small max_frame": (ErrorCode.BAD_HELLO, PREFACE + hello(max_frame=1)),
    "a HELLO with credit below 0": (ErrorCode.BAD_HELLO, PREFACE + hello(credit_messages=-1)),
    "a HELLO with a short publisher": (ErrorCode.BAD_HELLO, PREFACE + hello(publisher=b"short")),
    "a HELLO with a text for a number": (ErrorCode.BAD_HELLO, PREFACE + hello(minor="1")),
    "a HELLO with a huge agent": (ErrorCode.BAD_HELLO, PREFACE + hello(agent="x" * 257)),
    "a HELLO nested 2,000 deep": (
        ErrorCode.BAD_HELLO,
        PREFACE + frame(FrameType.HELLO, b"\x81\xa1x" + b"\x91" * 2000 + b"\xc0"),
    ),
    "a SEND for HELLO": (ErrorCode.ILLEGAL_FRAME, PREFACE + send(1)),
    "a gateway's HELLO": (ErrorCode.ILLEGAL_FRAME, PREFACE + frame(FrameType.HELLO, b"\x80", 1)),
    "a second HELLO": (ErrorCode.ILLEGAL_FRAME, PREFACE + hello() + hello()),
    "a SEND before init": (ErrorCode.ILLEGAL_FRAME, PREFACE + hello() + send(1)),
    "a DELIVER": (ErrorCode.ILLEGAL_FRAME, live() + frame(FrameType.DELIVER, struct.pack(">Iq", 1, 1))),
    "an ACK": (ErrorCode.ILLEGAL_FRAME, live() + frame(FrameType.ACK, struct.pack(">q", 1))),
    "a CHANNEL": (ErrorCode.ILLEGAL_FRAME, live() + frame(FrameType.CHANNEL, struct.pack(">Iq", 1, 0) + b"t")),
    "a SEND behind GOAWAY": (ErrorCode.ILLEGAL_FRAME, live() + frame(FrameType.GOAWAY, bytes(6)) + send(1)),
    "DELIVERED without delivery_acks": (ErrorCode.ILLEGAL_FRAME, live(delivery_acks=False) + delivered(0, 1)),
    "a number twice": (ErrorCode.BAD_SEQUENCE, live() + send(7) + send(7)),
    "numbers that fall": (ErrorCode.BAD_SEQUENCE, live() + send(7) + send(6)),
    "a number beyond the window": (ErrorCode.BAD_SEQUENCE, live() + send(1) + send(1_000_000_000)),
    "CREDIT without a bound": (ErrorCode.BAD_CREDIT, live() + credit(1, 0)),
    "CREDIT for bytes where messages are bounded": (ErrorCode.BAD_CREDIT, live(credit_messages=1) + credit(0, 1)),
    "CREDIT beyond every number": (ErrorCode.BAD_CREDIT, live(credit_messages=2**62) + credit(1, 0)),
    "CREDIT of nothing": (ErrorCode.MALFORMED, live(credit_messages=1) + credit(0, 0)),
    "CREDIT below 0": (ErrorCode.MALFORMED, live(credit_messages=1) + credit(-1, 5)),
    "a flood of PINGs": (ErrorCode.CALM, live() + b"".join(map(ping, range(2000)))),
    "a flood of optional frames": (ErrorCode.CALM, live() + frame(0x80) * 2000),
    "a flood of CREDIT": (ErrorCode.CALM, live(credit_messages=1) + credit(1, 0) * 2000),
}


@pytest.mark.parametrize("step", ["at once", "in pieces"])
@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_named_and_ends_the_stream(gateway: GatewayProcess, name: str, step: str) -> None:
    code, data = MISTAKES[name]
    async with connected(gateway.address) as peer:
        # Behind `init` only PING, PONG and ERROR are legal until the gateway's HELLO has come.
        head, found, rest = data.partition(init("1"))
        await peer.say(head + found)
        if found:
            await peer.next(ServerHello)
        chance = random.Random(name)
        while rest:
            size = len(rest) if step == "at once" else chance.randint(1, 3 + len(rest) // 4)
            try:
                await peer.say(rest[:size])
            except trio.BrokenResourceError:
                break  # it has said what it has to say, and does not listen any more
            rest = rest[size:]
            await trio.lowlevel.checkpoint()
        error = await peer.next(Error)
        assert (ErrorCode(error.code), error.message != "") == (code, True)
        assert error.retryable is (code is ErrorCode.CALM)
        await peer.finish()
    await is_well(gateway.address)


async def test_a_mistake_under_tls_where_the_transport_was_chosen_by_alpn(pki: Pki) -> None:
    arguments = ["--set", f"tls.cert={pki.cert}", "--set", f"tls.key={pki.key}"]
    context = pki.context("aether/1")
    async with open_gateway_process(ephemeral=True, extra_args=arguments) as process:
        for wrong in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\xaeAETHEr\x01", b"\x16\x03\x01"):
            async with connected(process.address, context) as peer:
                await peer.say(wrong)
                assert (await peer.next(Error)).code == ErrorCode.BAD_PREFACE
        await is_well(process.address, context)


@pytest.mark.parametrize(
    "whole",
    [PREFACE + hello(agent="x"), live(), live() + send(1), live() + b"\0\0"],
    ids=["HELLO", "init", "SEND", "a header"],
)
async def test_a_stream_that_ends_inside_a_frame(gateway: GatewayProcess, whole: bytes) -> None:
    async with connected(gateway.address) as peer:
        head, found, tail = whole[:-1].partition(init("1"))
        await peer.say(head + found)
        if found:
            await peer.next(ServerHello)
            await peer.say(tail)
        await peer.end_our_side()
        error = await peer.next(Error)
        # Something in between may have cut it off.
        assert (error.code, error.retryable) == (ErrorCode.TRUNCATED, True)
        await peer.end()
    await is_well(gateway.address)


@pytest.mark.parametrize(
    "data", [live() + send(1), live() + frame(0x7F), live() + live()], ids=["early", "unknown", "twice"]
)
async def test_a_mistake_in_one_flight_with_hello_and_init(gateway: GatewayProcess, data: bytes) -> None:
    async with connected(gateway.address) as peer:
        await peer.say(data)
        assert (await peer.next(Error)).code >= ErrorCode.BAD_PREFACE
        await peer.finish()


async def test_what_a_client_could_not_know_better_is_no_mistake(gateway: GatewayProcess) -> None:
    """DELIVERED for an unknown channel, or for more than was delivered, is ignored."""
    async with connected(gateway.address) as peer:
        await peer.go_live()
        await peer.say(delivered(1023, 5) + delivered(0, 2**63 - 1) + send(1, b"ag::default::adversary::1"))
        deliver = await peer.next(Deliver)
        await peer.say(delivered(deliver.channel, deliver.offset + 1) + send(2))
        assert (await peer.next(Ack)).seq == 2


async def test_what_concerns_one_message_ends_nothing(gateway: GatewayProcess) -> None:
    async with connected(gateway.address) as peer:
        limit = (await peer.go_live()).max_payload
        await peer.say(send(1, payload=bytes(limit + 1)) + send(2, b"") + send(3, b"::") + send(4))
        for seq, code in ((1, "ERR_PAYLOAD_TOO_LARGE"), (2, "ERR_INVALID_TOPIC"), (3, "ERR_INVALID_TOPIC")):
            nack = await peer.next(Nack)
            assert (nack.seq, nack.code) == (seq, code)
        while (await peer.next(Ack)).seq < 4:
            pass


async def test_credit_for_each_message_is_no_flood(gateway: GatewayProcess) -> None:
    count = 3000
    async with connected(gateway.address) as peer, connected(gateway.address) as sender:
        await peer.say(live("thrifty", credit_messages=100, delivery_acks=False))
        await sender.go_live()
        await sender.say(b"".join(send(n, b"ag::default::adversary::thrifty") for n in range(1, count + 1)))
        for _ in range(count):
            await peer.next(Deliver)
            await peer.say(credit(1, 0))


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.ENVELOPE, b"\x0a\x7f"),
        frame(FrameType.ENVELOPE, b"\xff" * 20),
        frame(FrameType.ENVELOPE),
        frame(FrameType.ENVELOPE, b"\x12\x00"),
        init(""),
    ],
    ids=["cut short", "noise", "nothing", "a send", "an empty identity"],
)
async def test_what_is_no_init_is_refused_with_a_status(gateway: GatewayProcess, data: bytes) -> None:
    async with connected(gateway.address) as peer:
        await peer.say(PREFACE + hello() + data)
        error = await peer.next(Error)
        assert (error.code, error.retryable) == (3, False)
        await peer.finish()


async def test_a_second_init_is_refused_with_a_status(gateway: GatewayProcess) -> None:
    async with connected(gateway.address) as peer:
        await peer.go_live()
        await peer.say(init("1"))
        assert (await peer.next(Error)).code == 3
