"""Both ends of a framed connection: what they refuse to send, count and limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.wire import framing
from aether_trio.wire.framing import (
    Ack,
    Channel,
    ChannelClosed,
    ClientHello,
    ConnectionState,
    Deliver,
    Delivered,
    Envelope,
    Error,
    ErrorCode,
    FramedConnection,
    GoAway,
    GrantCredit,
    LocalProtocolError,
    Nack,
    Ping,
    RemoteProtocolError,
    Send,
    ServerHello,
    Side,
)
from aether_trio.wire.framing.constants import (
    DEFAULT_MAX_FRAME_BYTES,
    HEADER_BYTES,
    LEAST_MAX_FRAME_BYTES,
    OPENING_FRAME_BYTES,
    PREFACE,
)


class Pair:
    def __init__(self, hello: ClientHello | None = None, welcome: ServerHello | None = None) -> None:
        hello = hello or ClientHello()
        self.client = FramedConnection(Side.CLIENT, max_frame_bytes=hello.max_frame)
        self.server = FramedConnection(Side.SERVER)
        self.up(hello)
        self.up(Envelope(b"init"))
        self.down(welcome or ServerHello())

    def up(self, event: framing.Event) -> None:
        assert list(self.server.receive(self.client.send(event))) == [event]

    def down(self, event: framing.Event) -> None:
        assert list(self.client.receive(self.server.send(event))) == [event]


def live(hello: ClientHello | None = None, welcome: ServerHello | None = None) -> Pair:
    pair = Pair(hello, welcome)
    pair.down(Envelope(b"ack"))
    return pair


def refused(connection: FramedConnection, event: framing.Event, code: ErrorCode) -> None:
    """Check that an event is refused, twice with the same reason: nothing has changed."""
    before = connection.state, connection.peer_state
    for _ in range(2):
        with pytest.raises(LocalProtocolError) as raised:
            connection.send(event)
        assert raised.value.code is code
    assert (connection.state, connection.peer_state) == before


def test_the_preface_goes_in_front_of_the_first_frame_only() -> None:
    client = FramedConnection(Side.CLIENT)
    assert client.send(ClientHello()).startswith(PREFACE)
    assert not client.send(Envelope(b"init")).startswith(PREFACE)
    assert FramedConnection(Side.SERVER).send(Error(14)).startswith(PREFACE)


def test_both_ends_agree_on_their_states_through_a_whole_life() -> None:
    pair = Pair()
    assert (pair.client.state, pair.server.state) == (ConnectionState.LIVE, ConnectionState.ANSWERING)
    pair.down(Envelope(b"ack"))
    pair.up(Send(1, "t", b"payload"))
    pair.down(Ack(1))
    pair.up(GoAway())
    pair.down(GoAway(1))
    assert (pair.client.state, pair.client.peer_state) == (ConnectionState.LEAVING, ConnectionState.LEAVING)
    assert (pair.server.state, pair.server.peer_state) == (ConnectionState.LEAVING, ConnectionState.LEAVING)
    pair.client.end()
    pair.server.receive_end()
    assert pair.server.peer_state is pair.client.state is ConnectionState.DONE


def test_a_side_sends_nothing_that_the_other_would_refuse() -> None:
    refused(FramedConnection(Side.CLIENT), Ping(), ErrorCode.ILLEGAL_FRAME)
    refused(FramedConnection(Side.SERVER), ServerHello(), ErrorCode.ILLEGAL_FRAME)
    pair = live(welcome=ServerHello(publish_window=2))
    refused(pair.client, Ack(1), ErrorCode.ILLEGAL_FRAME)
    refused(pair.client, Delivered(1, 1), ErrorCode.BAD_CHANNEL)
    refused(pair.client, GrantCredit(1, 0), ErrorCode.BAD_CREDIT)
    refused(pair.server, Send(1, "t", b""), ErrorCode.ILLEGAL_FRAME)
    refused(pair.server, Ack(1), ErrorCode.BAD_SEQUENCE)
    refused(pair.server, Nack(1, "E"), ErrorCode.BAD_SEQUENCE)
    refused(pair.server, Deliver(1, 1, b""), ErrorCode.BAD_CHANNEL)
    refused(pair.server, ChannelClosed(1), ErrorCode.BAD_CHANNEL)
    pair.up(Send(5, "t", b""))
    refused(pair.client, Send(5, "t", b""), ErrorCode.BAD_SEQUENCE)
    refused(pair.client, Send(7, "t", b""), ErrorCode.BAD_SEQUENCE)
    pair.up(Send(6, "t", b""))
    pair.down(Channel(1, "t", 10))
    refused(pair.server, Deliver(1, 10, b""), ErrorCode.BAD_OFFSET)
    refused(pair.client, Delivered(1, 11), ErrorCode.BAD_OFFSET)


def test_a_server_speaks_at_most_the_clients_minor_version() -> None:
    client, server = FramedConnection(Side.CLIENT), FramedConnection(Side.SERVER)
    server.receive(client.send(ClientHello(minor=3)))
    refused(server, ServerHello(minor=4), ErrorCode.BAD_HELLO)
    client.receive(server.send(ServerHello(minor=2)))
    assert client.minor == server.minor == 2


def test_a_hello_says_what_its_sender_accepts() -> None:
    refused(FramedConnection(Side.CLIENT), ClientHello(max_frame=LEAST_MAX_FRAME_BYTES), ErrorCode.BAD_HELLO)
    with pytest.raises(ValueError, match="max_frame_bytes"):
        FramedConnection(Side.CLIENT, max_frame_bytes=LEAST_MAX_FRAME_BYTES - 1)


def test_nothing_new_begins_when_the_other_side_is_leaving() -> None:
    pair = live()
    pair.up(Send(1, "t", b""))
    pair.down(Channel(1, "t"))
    pair.down(Deliver(1, 1, b""))
    pair.down(GoAway(1))
    refused(pair.client, Send(2, "t", b""), ErrorCode.ILLEGAL_FRAME)
    pair.up(Envelope(b"an answer to what the gateway has forwarded"))
    pair.down(Ack(1))
    pair.up(Delivered(1, 1))
    pair.up(GoAway())
    pair.up(Envelope(b"another one"))
    assert not pair.server.deliverable
    refused(pair.server, Deliver(1, 2, b""), ErrorCode.ILLEGAL_FRAME)
    refused(pair.server, Channel(2, "u"), ErrorCode.ILLEGAL_FRAME)
    pair.down(Envelope(b"answer"))


@pytest.mark.parametrize("leave", [lambda pair: pair.up(GoAway()), lambda pair: pair.server.receive_end()])
def test_a_server_delivers_nothing_to_a_client_that_has_left(leave: Callable[[Pair], None]) -> None:
    pair = live()
    pair.down(Channel(1, "t"))
    assert pair.server.deliverable
    leave(pair)
    assert not pair.server.deliverable
    with pytest.raises(LocalProtocolError):
        pair.server.count_deliver(1, 1, 0)


def test_what_was_on_its_way_when_the_other_side_left_is_heard() -> None:
    pair = live()
    sent = pair.client.send(Send(1, "t", b""))
    pair.down(GoAway(1))
    assert pair.server.receive(sent) == [Send(1, "t", b"")]
    pair = live()
    pair.down(Channel(1, "t"))
    delivered = pair.server.send(Deliver(1, 1, b"m"))
    pair.up(GoAway())
    assert pair.client.receive(delivered) == [Deliver(1, 1, b"m")]


def test_only_credit_makes_a_server_deliver() -> None:
    pair = live(ClientHello(credit_messages=2, credit_bytes=5))
    pair.down(Channel(1, "t"))
    pair.down(Deliver(1, 1, b"1234"))
    pair.down(Deliver(1, 2, b"1234"))
    assert not pair.server.deliverable
    refused(pair.server, Deliver(1, 3, b""), ErrorCode.BAD_CREDIT)
    pair.up(GrantCredit(1, 0))
    assert not pair.server.deliverable
    pair.up(GrantCredit(0, 4))
    assert pair.server.deliverable
    pair.down(Deliver(1, 3, b""))
    assert (pair.server.credit.message_count, pair.server.credit.byte_count) == (0, 1)
    assert (pair.client.credit.message_count, pair.client.credit.byte_count) == (0, 1)


def test_a_delivery_that_was_encoded_for_many_is_counted() -> None:
    pair = live(ClientHello(credit_messages=1))
    pair.down(Channel(1, "ga::w"))
    frame = framing.encode_deliver(1, 4, b"message")
    pair.server.count_deliver(1, 4, len(b"message"))
    assert pair.client.receive(frame) == [Deliver(1, 4, b"message")]
    assert not pair.server.deliverable


@pytest.mark.parametrize("messages", [[], [b""], [b"one", b"two" * 100]])
def test_envelopes_that_are_sent_together_are_those_sent_one_by_one(messages: list[bytes]) -> None:
    together, one_by_one = live(), live()
    frames = together.server.send_envelopes(messages)
    assert frames == [one_by_one.server.send(Envelope(message)) for message in messages]
    assert list(together.client.receive(b"".join(frames))) == [Envelope(message) for message in messages]


def test_envelopes_that_are_sent_together_may_open_a_connection_and_have_its_limits() -> None:
    opening = FramedConnection(Side.CLIENT)
    with pytest.raises(LocalProtocolError):
        opening.send_envelopes([b"before the HELLO"])
    pair = live(ClientHello(max_frame=LEAST_MAX_FRAME_BYTES))
    with pytest.raises(LocalProtocolError, match="cannot send a frame of"):
        pair.server.send_envelopes([b"short", bytes(LEAST_MAX_FRAME_BYTES + 1)])


def test_a_delivered_that_comes_too_late_is_left_out() -> None:
    pair = live()
    pair.down(Channel(1, "t"))
    pair.down(Deliver(1, 9, b""))
    late = pair.client.send(Delivered(1, 9))
    pair.down(ChannelClosed(1))
    assert pair.server.receive(late + pair.client.send(Ping(1))) == [Ping(1)]
    refused(pair.client, Delivered(1, 9), ErrorCode.BAD_CHANNEL)
    pair.down(Channel(1, "t", 3))
    assert pair.server.receive(late + pair.client.send(Ping(2))) == [Ping(2)]


def test_channels_are_few() -> None:
    pair = live()
    for number in range(1024):
        pair.down(Channel(number, "t"))
    refused(pair.server, Channel(1024, "t"), ErrorCode.BAD_CHANNEL)
    pair.down(ChannelClosed(0))
    pair.down(Channel(1024, "t"))
    assert len(pair.client.channels) == 1024


def test_a_client_that_is_not_accepted_yet_sends_short_frames_only() -> None:
    pair = Pair()
    long = Send(1, "t", bytes(OPENING_FRAME_BYTES))
    refused(pair.client, long, ErrorCode.FRAME_TOO_LARGE)
    with pytest.raises(RemoteProtocolError) as raised:
        Pair().server.receive(framing.encode(long)[:6])
    assert raised.value.code is ErrorCode.FRAME_TOO_LARGE
    pair.down(Envelope(b"ack"))
    pair.up(long)


def test_a_frame_of_exactly_the_peers_limit_is_sent_whatever_its_kind_and_none_beyond() -> None:
    pair = live(ClientHello(max_frame=LEAST_MAX_FRAME_BYTES))
    pair.down(Channel(1, "t"))
    refused(pair.server, Envelope(bytes(LEAST_MAX_FRAME_BYTES + 1)), ErrorCode.FRAME_TOO_LARGE)
    pair.down(Envelope(bytes(LEAST_MAX_FRAME_BYTES)))
    refused(pair.server, Deliver(1, 1, bytes(LEAST_MAX_FRAME_BYTES - 11)), ErrorCode.FRAME_TOO_LARGE)
    pair.down(Deliver(1, 1, bytes(LEAST_MAX_FRAME_BYTES - 12)))
    refused(pair.client, Envelope(bytes(DEFAULT_MAX_FRAME_BYTES + 1)), ErrorCode.FRAME_TOO_LARGE)
    pair.up(Envelope(bytes(DEFAULT_MAX_FRAME_BYTES)))
    room = DEFAULT_MAX_FRAME_BYTES - (len(framing.encode(Send(1, "t", b""))) - HEADER_BYTES)
    refused(pair.client, Send(1, "t", bytes(room + 1)), ErrorCode.FRAME_TOO_LARGE)
    pair.up(Send(1, "t", bytes(room)))


def test_the_first_frames_may_be_as_long_as_the_opening_allows() -> None:
    client, server = FramedConnection(Side.CLIENT), FramedConnection(Side.SERVER)
    server.receive(client.send(ClientHello()))
    refused(client, Envelope(bytes(OPENING_FRAME_BYTES + 1)), ErrorCode.FRAME_TOO_LARGE)
    largest = Envelope(bytes(OPENING_FRAME_BYTES))
    assert list(server.receive(client.send(largest))) == [largest]


def test_a_longer_limit_is_used_as_soon_as_both_know_it() -> None:
    five, four_and_a_half = 5 * 1024 * 1024, bytes(9 * 512 * 1024)
    pair = live(ClientHello(max_frame=five))
    pair.up(Envelope(four_and_a_half))
    pair.down(Envelope(four_and_a_half))
    refused(pair.server, Envelope(bytes(five + 1)), ErrorCode.FRAME_TOO_LARGE)
    refused(pair.client, Envelope(bytes(DEFAULT_MAX_FRAME_BYTES + 1)), ErrorCode.FRAME_TOO_LARGE)


def test_credit_may_be_as_large_as_the_specification_says() -> None:
    pair = live(ClientHello(credit_bytes=1))
    pair.up(GrantCredit(0, 2**62 - 1))
    refused(pair.client, GrantCredit(0, 1), ErrorCode.BAD_CREDIT)


def test_after_a_mistake_of_the_peer_an_error_can_be_sent_and_nothing_is_heard() -> None:
    pair = live()
    with pytest.raises(RemoteProtocolError) as raised:
        pair.server.receive(framing.encode(Send(1, "t", b"")) + framing.encode(Send(1, "t", b"")) + b"more")
    assert raised.value.events == (Send(1, "t", b""),)
    with pytest.raises(RemoteProtocolError) as again:
        pair.server.receive(framing.encode(Ping()))
    assert again.value.code is ErrorCode.BAD_SEQUENCE
    assert again.value.events == ()
    assert pair.server.statistics().buffered_bytes == 0
    assert pair.server.peer_state is ConnectionState.DONE
    pair.down(Error(raised.value.code, raised.value.message))
    refused(pair.server, Ping(), ErrorCode.ILLEGAL_FRAME)


def test_so_many_events_come_at_once_and_what_is_left_is_no_part_of_a_frame() -> None:
    client, server = FramedConnection(Side.CLIENT), FramedConnection(Side.SERVER, at_once=2)
    hello, init, ping = ClientHello(), Envelope(b"init"), framing.encode(Ping())
    server.receive(client.send(hello) + client.send(init))
    for event in (ServerHello(), Envelope(b"in")):
        client.receive(server.send(event))
    assert server.receive(ping * 5 + ping[:4]) == [Ping()] * 2
    assert (server.more, server.held_bytes) == (True, 0)
    assert server.receive(b"") == [Ping()] * 2
    assert (server.more, server.held_bytes) == (True, 0)
    assert server.receive(b"") == [Ping()]
    assert (server.more, server.held_bytes) == (False, 4)
    assert server.receive(ping[4:]) == [Ping()]
    assert (server.more, server.held_bytes) == (False, 0)


def test_an_end_inside_of_a_frame_is_told() -> None:
    pair = live()
    pair.server.receive(framing.encode(Ping())[:-1])
    with pytest.raises(RemoteProtocolError) as raised:
        pair.server.receive_end()
    assert raised.value.code is ErrorCode.TRUNCATED


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.sampled_from(["send", "ack", "nack", "deliver", "delivered", "credit", "pass up", "pass down"])
    return draw(st.lists(st.tuples(kinds, st.integers(1, 5)), max_size=60))


@settings(max_examples=200)
@given(scripts(), st.integers(1, 9), st.integers(0, 4), st.integers(0, 40))
def test_what_one_end_allows_the_other_accepts_however_late_it_comes(
    script: list[tuple[str, int]], window: int, messages: int, size: int
) -> None:
    """No end is blamed for what it could not know: bytes are under way both ways."""
    pair = live(ClientHello(credit_messages=messages, credit_bytes=size), ServerHello(publish_window=window))
    pair.down(Channel(1, "t"))
    up, down = bytearray(), bytearray()
    heard = said = 0

    def attempt(end: FramedConnection, event: framing.Event, wire: bytearray) -> None:
        nonlocal said
        try:
            wire += end.send(event)
            said += 1
        except LocalProtocolError:
            pass  # it was not legal here; then nothing goes out

    def flow(wire: bytearray, end: FramedConnection, share: int) -> None:
        nonlocal heard
        length = len(wire) * share // 5
        heard += len(end.receive(wire[:length]))
        del wire[:length]

    for kind, number in script:
        match kind:
            case "send":
                attempt(pair.client, Send(pair.client.sequence.last + number, "t", b"p"), up)
            case "ack":
                attempt(pair.server, Ack(pair.server.sequence.acked + number), down)
            case "nack":
                attempt(pair.server, Nack(pair.server.sequence.acked + number, "E"), down)
            case "deliver":
                channel = pair.server.channels.get(1)
                assert channel is not None
                attempt(pair.server, Deliver(1, channel.position + number, bytes(number * 4)), down)
            case "delivered":
                attempt(pair.client, Delivered(1, number), up)
            case "credit":
                attempt(pair.client, GrantCredit(number - 1, number), up)
            case "pass up":
                flow(up, pair.server, number)
            case _:
                flow(down, pair.client, number)
    flow(up, pair.server, 5)
    flow(down, pair.client, 5)
    assert heard == said
