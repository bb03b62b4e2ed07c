"""The encoders: round trips, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given

from aether_trio.wire import framing
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.framing import ErrorCode, FrameDecoder, LocalProtocolError, encode
from tests.wire.framing.strategies import events


@given(events)
def test_every_event_comes_back(event: framing.Event) -> None:
    assert FrameDecoder(preface=False).receive(encode(event)) == [event]


def test_every_event_has_an_encoder() -> None:
    skipped = framing.Skipped(0x80, 3)
    with pytest.raises(LocalProtocolError, match="0x80"):
        encode(skipped)


def test_a_delivery_goes_out_as_it_was_encoded() -> None:
    message = encode_delivery(delivery_prefix("ag::w::i::1"), b"payload", delivery_suffix(1, "w"))
    frame = framing.encode_deliver(5, 118, message)
    assert frame.endswith(message)
    assert framing.join([framing.deliver_header(5, 118, len(message)), message]) == frame


def test_a_text_that_is_too_long_is_cut_between_characters() -> None:
    (event,) = FrameDecoder(preface=False).receive(framing.encode_error(1, "x" + "é" * 600))
    assert isinstance(event, framing.Error)
    assert event.message == "x" + "é" * 511
    (event,) = FrameDecoder(preface=False).receive(framing.encode_nack(1, "E", "half of a pair: \ud800"))
    assert isinstance(event, framing.Nack)
    assert event.message == "half of a pair: ?"


REFUSED: dict[str, framing.Event] = {
    "seq 0": framing.Send(0, "t", b""),
    "seq of 65 bits": framing.Send(2**63, "t", b""),
    "topic too long": framing.Send(1, "t" * 65536, b""),
    "topic with half a pair": framing.Send(1, "\ud800", b""),
    "message type": framing.Send(1, "t", b"", 65536),
    "offset 0": framing.Deliver(1, 0, b""),
    "channel": framing.Deliver(2**32, 1, b""),
    "ack 0": framing.Ack(0),
    "nack 0": framing.Nack(0, "E"),
    "no code": framing.Nack(1, ""),
    "code too long": framing.Nack(1, "é" * 33),
    "code with half a pair": framing.Nack(1, "\ud800"),
    "delay": framing.Nack(1, "E", retry_after_ms=-1),
    "delivered 0": framing.Delivered(1, 0),
    "no credit": framing.GrantCredit(0, 0),
    "negative credit": framing.GrantCredit(1, -1),
    "ping": framing.Ping(-1),
    "pong": framing.Pong(2**64),
    "reason": framing.GoAway(65536),
    "error 0": framing.Error(0),
    "no topic": framing.Channel(1, ""),
    "channel topic too long": framing.Channel(1, "t" * 257),
    "channel topic with half a pair": framing.Channel(1, "\ud800"),
    "position": framing.Channel(1, "t", -1),
    "closed channel": framing.ChannelClosed(-1),
    "publisher": framing.ClientHello(publisher=b"short"),
    "agent": framing.ClientHello(agent="a" * 257),
    "agent with half a pair": framing.ClientHello(agent="\ud800"),
    "max_frame": framing.ServerHello(max_frame=1),
    "minor": framing.ServerHello(minor=2**70),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_peer_could_accept_is_refused(name: str) -> None:
    with pytest.raises(LocalProtocolError) as raised:
        encode(REFUSED[name])
    assert raised.value.code is ErrorCode.MALFORMED
    assert "LocalProtocolError(MALFORMED" in repr(raised.value)


def test_a_header_for_a_delivery_is_refused_like_the_delivery() -> None:
    for channel, offset, size in ((1, 0, 5), (2**32, 1, 5), (1, 1, 2**32)):
        with pytest.raises(LocalProtocolError):
            framing.deliver_header(channel, offset, size)
