"""The bench's framed client against FramedConnection, which refuses violations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire import framing as fr
from aether_trio.wire.pb import aether_pb2 as pb
from bench import wire
from bench.transports import TRANSPORTS
from bench.transports.framed import FramedCodec

TOPIC = "ag::bench::receiver::0"
INIT = wire.agent_init("bench", "sender", "0", {})
ACK = pb.DownstreamMessage(connection_ack=pb.ConnectionAck(session_id="s")).SerializeToString()
PREFIX = TRANSPORTS["framed"].publication_prefix(TOPIC, 5)


class Gateway:
    """The gateway's side of one connection, with a codec as the client."""

    def __init__(self, transport: str = "framed", *, window: int = 4096, accept: bool = True) -> None:
        self.framing = fr.FramedConnection(fr.Side.SERVER)
        codec = TRANSPORTS[transport].codec("127.0.0.1:1")
        assert isinstance(codec, FramedCodec)
        self.codec = codec
        self.window = window
        self.events: list[fr.Event] = []
        self.messages: list[bytes] = []
        self.up()
        if accept:
            self.accept()

    def up(self) -> list[fr.Event]:
        found = list(self.framing.receive(self.codec.take()))
        self.events += found
        return found

    def down(self, *events: fr.Event, step: int = 0) -> None:
        """Gateway to client, in pieces of `step` bytes."""
        self.feed(b"".join(map(self.framing.send, events)), step)

    def feed(self, data: bytes, step: int = 0) -> None:
        for at in range(0, len(data), step or len(data) or 1):
            self.messages += self.codec.receive(data[at : at + step] if step else data)

    def accept(self) -> None:
        self.codec.send(INIT)
        self.up()
        self.down(fr.ServerHello(publish_window=self.window), fr.Envelope(ACK))
        assert self.messages == [ACK]
        self.messages.clear()


def delivery(payload: bytes) -> bytes:
    return pb.DownstreamMessage(msg=pb.IncomingMessage(source_topic=TOPIC, payload=payload)).SerializeToString()


@pytest.mark.parametrize(("transport", "acks"), [("framed", False), ("framed-acks", True)])
def test_the_opening_says_what_the_variant_does(transport: str, acks: bool) -> None:
    gateway = Gateway(transport, accept=False)
    assert gateway.events == [fr.ClientHello(agent="aether-bench", delivery_acks=acks)]


def test_an_envelope_may_follow_the_opening_at_once() -> None:
    gateway = Gateway(accept=False)
    gateway.codec.send(INIT)
    assert gateway.up() == [fr.Envelope(INIT)]


@given(st.lists(st.binary(min_size=5, max_size=5), max_size=20))
def test_publications_are_numbered_sends(payloads: list[bytes]) -> None:
    gateway = Gateway()
    for payload in payloads:
        gateway.codec.send(PREFIX + payload)
    assert gateway.up() == [
        fr.Send(seq=number, topic=TOPIC, payload=payload, message_type=wire.OPAQUE, extra=b"")
        for number, payload in enumerate(payloads, 1)
    ]
    assert gateway.codec.unsettled() == len(payloads)


def test_what_was_sent_stays_in_its_order_among_envelopes() -> None:
    gateway = Gateway()
    request = wire.kv_get("key", "id")
    for message in (PREFIX + b"first", request, PREFIX + b"later"):
        gateway.codec.send(message)
    assert [type(event) for event in gateway.up()] == [fr.Send, fr.Envelope, fr.Send]


def test_the_publish_window_is_honoured() -> None:
    """The framing raises BAD_SEQUENCE when a client goes beyond it."""
    gateway = Gateway(window=3)
    for number in range(10):
        gateway.codec.send(PREFIX + b"%05d" % number)
    sent = gateway.up()
    while sent:
        assert len(sent) <= 3
        last = sent[-1]
        assert isinstance(last, fr.Send)
        gateway.down(fr.Ack(last.seq))
        sent = gateway.up()
    payloads = [event.payload for event in gateway.events if isinstance(event, fr.Send)]
    assert payloads == [b"%05d" % number for number in range(10)]
    assert gateway.codec.unsettled() == 0
    assert gateway.codec.ack_frames == 4


def test_nothing_is_published_before_the_gateways_hello() -> None:
    gateway = Gateway(accept=False)
    gateway.codec.send(INIT)
    gateway.codec.send(PREFIX + b"early")
    assert gateway.up() == [fr.Envelope(INIT)]
    gateway.down(fr.ServerHello(), fr.Envelope(ACK))
    assert [type(event) for event in gateway.up()] == [fr.Send]


def test_deliveries_and_answers_come_out_as_envelopes_wherever_the_stream_is_cut() -> None:
    whole = [delivery(b"a" * 200), ACK, delivery(b""), delivery(b"b" * 700)]
    frames = (
        fr.Channel(7, TOPIC, 10),
        fr.Deliver(7, 11, whole[0]),
        fr.Envelope(whole[1]),
        fr.Ping(3),
        fr.Deliver(7, 13, whole[2]),
        fr.Deliver(7, 14, whole[3]),
        fr.ChannelClosed(7),
    )
    for step in (0, 1, 2, 5, 13, 100):
        gateway = Gateway()
        gateway.down(*frames, step=step)
        assert gateway.messages == whole
        assert gateway.up() == [fr.Pong(3)]
        assert wire.payload_at(gateway.messages[0]) == whole[0].index(b"aaa")


@given(st.integers(1, 60))
def test_the_gateways_opening_survives_any_cut(step: int) -> None:
    gateway = Gateway(accept=False)
    gateway.codec.send(INIT)
    gateway.up()
    gateway.down(fr.ServerHello(agent="gateway"), fr.Envelope(ACK), step=step)
    assert gateway.messages == [ACK]


def test_frames_of_later_versions_are_skipped() -> None:
    gateway = Gateway()
    gateway.feed(b"\x00\x00\x00\x02\x80\x05hi")
    assert gateway.messages == []
    with pytest.raises(ValueError, match="0x0e00"):
        gateway.feed(b"\x00\x00\x00\x00\x0e\x00")


def test_one_acknowledgement_for_each_channel_of_a_read() -> None:
    gateway = Gateway("framed-acks")
    message = delivery(b"x")
    gateway.down(
        fr.Channel(1, "ag::a::b::1", 0),
        fr.Channel(2, "ga::a", 0),
        *(fr.Deliver(1, offset, message) for offset in (1, 2, 5)),
        fr.Deliver(2, 9, message),
    )
    assert gateway.up() == [fr.Delivered(1, 5), fr.Delivered(2, 9)]
    gateway.down(fr.Deliver(1, 6, message))
    assert gateway.up() == [fr.Delivered(1, 6)]


def test_a_shared_channel_is_acknowledged_message_by_message() -> None:
    gateway = Gateway("framed-acks")
    message = delivery(b"x")
    shared = fr.Channel(1, "tw::a::b", 0, shared=True)
    gateway.down(shared, fr.Deliver(1, 4, message), fr.Deliver(1, 2, message))
    assert gateway.up() == [fr.Delivered(1, 4), fr.Delivered(1, 2)]


def test_without_delivery_acks_nothing_answers_a_delivery() -> None:
    gateway = Gateway()
    gateway.down(fr.Channel(1, "ga::a", 0), fr.Deliver(1, 4, delivery(b"x")))
    assert gateway.up() == []


def test_a_refused_publication_reads_as_an_error_response() -> None:
    gateway = Gateway()
    gateway.codec.send(PREFIX + b"first")
    gateway.up()
    gateway.down(fr.Nack(1, "ERR_RATE_LIMITED", "slow down", retryable=True), fr.Ack(1))
    (message,) = gateway.messages
    assert message[0] == wire.ERROR
    assert wire.read_error(message) == ("ERR_RATE_LIMITED", "slow down")
    assert gateway.codec.unsettled() == 0


def test_an_error_ends_the_stream_with_its_words() -> None:
    gateway = Gateway(accept=False)
    gateway.down(fr.Error(7, "not you"))
    assert gateway.codec.ended
    assert gateway.codec.status() == "framed error 7 not you"


def test_a_goaway_is_remembered() -> None:
    gateway = Gateway()
    assert gateway.codec.status() == "OK"
    gateway.down(fr.GoAway(1, 500, "draining"))
    assert not gateway.codec.ended
    assert gateway.codec.status() == "GOAWAY 1 draining"


@pytest.mark.parametrize(
    "data", [b"H", b"HTTP/1.1 400 Bad Request", fr.FramedConnection(fr.Side.SERVER).send(fr.Error(1, ""))[1:]]
)
def test_another_protocol_is_no_gateway(data: bytes) -> None:
    with pytest.raises(ValueError, match="no framing"):
        TRANSPORTS["framed"].codec("127.0.0.1:1").receive(data)
