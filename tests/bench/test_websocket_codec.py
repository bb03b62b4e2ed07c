"""The hand-written WebSocket client against wsproto as the server."""

from __future__ import annotations

import pytest
import wsproto
import wsproto.events as ev
from hypothesis import given
from hypothesis import strategies as st

from bench import wire
from bench.transports import TRANSPORTS
from bench.transports.websocket import PATH, SUBPROTOCOL, WebSocketCodec, masked

INIT = wire.agent_init("bench", "sender", "0", {})


class Server:
    """wsproto's side of one connection, with a codec as the client."""

    def __init__(self, *, accept: bool = True) -> None:
        self.ws = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        codec = TRANSPORTS["websocket"].codec("127.0.0.1:1")
        assert isinstance(codec, WebSocketCodec)
        self.codec = codec
        self.messages: list[bytes] = []
        (request,) = self.up()
        assert isinstance(request, ev.Request)
        self.request = request
        if accept:
            self.down(ev.AcceptConnection(subprotocol=SUBPROTOCOL))

    def up(self) -> list[ev.Event]:
        self.ws.receive_data(self.codec.take())
        return list(self.ws.events())

    def texts(self) -> list[bytes]:
        parts, whole = b"", []
        for event in self.up():
            assert isinstance(event, ev.BytesMessage)
            parts += event.data
            if event.message_finished:
                whole.append(parts)
                parts = b""
        return whole

    def down(self, *events: ev.Event, step: int = 0) -> None:
        data = b"".join(map(self.ws.send, events))
        for at in range(0, len(data), step or len(data) or 1):
            self.messages += self.codec.receive(data[at : at + step] if step else data)


def test_the_opening_is_an_upgrade_to_the_protobuf_codec() -> None:
    server = Server()
    assert server.request.target == PATH
    assert server.request.host == "127.0.0.1:1"
    assert server.request.subprotocols == [SUBPROTOCOL]
    assert server.request.extensions == []


def test_messages_wait_for_the_servers_consent() -> None:
    server = Server(accept=False)
    server.codec.send(INIT)
    assert server.codec.take() == b""
    server.down(ev.AcceptConnection(subprotocol=SUBPROTOCOL))
    assert server.texts() == [INIT]


@given(st.lists(st.sampled_from([0, 1, 124, 125, 126, 127, 200, 65_535, 65_536, 70_000]), max_size=6))
def test_messages_of_every_length_arrive_whole_and_in_order(sizes: list[int]) -> None:
    server = Server()
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    for message in messages:
        server.codec.send(message)
    assert server.texts() == messages


@given(st.lists(st.binary(max_size=400), max_size=6), st.integers(1, 300))
def test_downstream_messages_survive_any_cut(messages: list[bytes], step: int) -> None:
    server = Server(accept=False)
    server.down(ev.AcceptConnection(subprotocol=SUBPROTOCOL), *map(ev.BytesMessage, messages), step=step)
    assert server.messages == messages


def test_long_and_fragmented_messages_are_put_together() -> None:
    server = Server()
    long = b"x" * 70_000
    parts = [ev.BytesMessage(b"a", message_finished=False), ev.Ping(b"between"), ev.BytesMessage(b"b")]
    server.down(ev.BytesMessage(long), *parts, ev.BytesMessage(b""), step=999)
    assert server.messages == [long, b"ab", b""]
    (pong,) = server.up()
    assert isinstance(pong, ev.Pong)
    assert pong.payload == b"between"


def test_a_clean_end_is_a_close_frame() -> None:
    server = Server()
    server.codec.send(INIT)
    server.codec.end()
    server.codec.end()
    _, close = server.up()
    assert isinstance(close, ev.CloseConnection)
    assert close.code == 1000
    assert not server.codec.ended
    server.down(close.response())
    assert server.codec.ended
    assert server.codec.take() == b""


def test_a_close_by_the_server_is_answered_and_told() -> None:
    server = Server()
    server.down(ev.CloseConnection(4207, "not you"))
    assert server.codec.ended
    assert server.codec.status() == "WebSocket close 4207 not you"
    server.codec.end()
    (close,) = server.up()
    assert isinstance(close, ev.CloseConnection)
    assert close.code == 4207


def test_a_refused_upgrade_tells_the_answer() -> None:
    server = Server(accept=False)
    server.down(ev.RejectConnection(status_code=403))
    assert server.codec.ended
    assert "refused the upgrade: HTTP/1.1 403" in server.codec.status()


def test_an_upgrade_to_another_subprotocol_is_an_error() -> None:
    server = Server(accept=False)
    with pytest.raises(ValueError, match="an upgrade to something else"):
        server.down(ev.AcceptConnection())


@pytest.mark.parametrize(
    ("data", "why"), [(masked(2, b"hi"), "must not mask"), (b"\x81\x02hi", "opcode 1"), (b"\xc2\x02hi", "extension")]
)
def test_what_no_server_may_send_is_an_error(data: bytes, why: str) -> None:
    server = Server()
    with pytest.raises(ValueError, match=why):
        server.codec.receive(data)
