"""What a client has sent in front of a mistake counts, on every transport."""

from __future__ import annotations

import struct

import pytest
import trio

from aether_trio.testing.memory import message_to
from aether_trio.wire.framing import FrameType
from tests.security.clients import WAIT_S, gateway_with, talkers
from tests.transport.framed.adversary import frame, ping, send

SINK = "ag::w::sink::1"
COUNTS = message_to(SINK, b"counts").SerializeToString()
NO_MESSAGE = b"\xff"


def websocket_frame(payload: bytes) -> bytes:
    return bytes((0x82, 0x80 | len(payload))) + bytes(4) + payload


def grpc_message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


def envelope(payload: bytes) -> bytes:
    return frame(FrameType.ENVELOPE, payload)


FRAMES = {"grpc": grpc_message, "framed": envelope, "websocket": websocket_frame}


@pytest.mark.parametrize("transport", FRAMES)
async def test_a_message_in_front_of_one_that_cannot_be_decoded(transport: str) -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        sink, talker = await clients.connect("websocket", "sink"), await clients.connect(transport, "careless")
        with trio.fail_after(WAIT_S):
            await talker.go_on(FRAMES[transport](COUNTS) + FRAMES[transport](NO_MESSAGE))
            assert (await sink.answer("msg")).msg.payload == b"counts"


@pytest.mark.parametrize(
    "sent",
    [
        ping(1) + envelope(COUNTS) + frame(0x7F),
        frame(0x80) + envelope(COUNTS) + frame(0x7F),
        send(1, SINK.encode(), b"counts") + frame(0x7F) + send(2),
        envelope(COUNTS) + frame(FrameType.ERROR, struct.pack(">HI", 0x109, 0)),
    ],
    ids=["behind PING", "behind an optional frame", "as SEND", "in front of an ERROR of the client, who goes"],
)
async def test_a_send_between_other_frames_and_a_mistake(sent: bytes) -> None:
    async with gateway_with() as gateway, talkers(gateway) as clients:
        sink, talker = await clients.connect("websocket", "sink"), await clients.connect("framed", "careless")
        with trio.fail_after(WAIT_S):
            await talker.go_on(sent)
            assert (await sink.answer("msg")).msg.payload == b"counts"
