"""The bench's HTTP/2 client against h2, and hyperframe for what h2 does not send."""

from __future__ import annotations

import struct

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as hf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.transports.grpc import PATH, PREFACE, STREAM, GrpcCodec, GrpcTransport, frame

AUTHORITY = "127.0.0.1:50051"


class Server:
    """h2's side of one connection, with a codec as the client."""

    def __init__(self, initial_window: int = 65_535) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if initial_window != 65_535:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: initial_window})
        self.codec = GrpcTransport().codec(AUTHORITY)
        self.received = b""
        self.events: list[h2.events.Event] = []
        self.messages: list[bytes] = []
        self.up()

    def up(self) -> None:
        for event in self.h2.receive_data(self.codec.take()):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.received += event.data

    def down(self, step: int = 0) -> None:
        data = self.h2.data_to_send()
        for at in range(0, len(data), step or len(data) or 1):
            self.messages += self.codec.receive(data[at : at + step] if step else data)

    def answer(self) -> None:
        self.h2.send_headers(STREAM, [(":status", "200"), ("content-type", "application/grpc")])

    def event(self, kind: type[h2.events.Event]) -> h2.events.Event:
        return next(event for event in self.events if isinstance(event, kind))


def prefixed(message: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BL", compressed, len(message)) + message


def test_the_opening_is_a_grpc_request() -> None:
    server = Server()
    request = server.event(h2.events.RequestReceived)
    assert isinstance(request, h2.events.RequestReceived)
    assert dict(request.headers) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": AUTHORITY,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "aether-bench",
    }
    assert GrpcTransport().codec(AUTHORITY).take().startswith(PREFACE)


def test_receive_windows_are_as_wide_as_they_get() -> None:
    server = Server()
    assert server.h2.remote_settings.initial_window_size == 2**31 - 1
    assert server.h2.outbound_flow_control_window == 2**31 - 1


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_messages_arrive_whole_and_in_order(messages: list[bytes]) -> None:
    server = Server()
    for message in messages:
        server.codec.send(message)
    server.up()
    assert server.received == b"".join(map(prefixed, messages))


@given(st.lists(st.binary(max_size=60_000), max_size=4), st.integers(1, 40_000))
def test_send_windows_are_honoured(messages: list[bytes], window: int) -> None:
    """h2 raises FlowControlError when a client sends more than it may."""
    server = Server(window)
    server.down()  # the SETTINGS that shrink the stream's window
    for message in messages:
        server.codec.send(message)
    expected = b"".join(map(prefixed, messages))
    server.up()
    acknowledged = 0
    while acknowledged < len(server.received):
        fresh = len(server.received) - acknowledged
        server.h2.acknowledge_received_data(fresh, STREAM)
        acknowledged += fresh
        server.h2.increment_flow_control_window(max(1, fresh // 2), STREAM)
        server.down()
        server.up()
    assert server.received == expected


def test_a_held_message_is_not_overtaken() -> None:
    server = Server(10)
    server.down()
    server.codec.send(b"a" * 20)
    server.codec.send(b"b")
    server.up()
    assert server.received == prefixed(b"a" * 20)[:10]
    server.h2.increment_flow_control_window(1000, STREAM)
    server.down()
    server.up()
    assert server.received == prefixed(b"a" * 20) + prefixed(b"b")


@given(st.lists(st.binary(max_size=400), max_size=6), st.integers(1, 700), st.integers(1, 50))
def test_downstream_messages_survive_any_cut(messages: list[bytes], per_frame: int, step: int) -> None:
    server = Server()
    server.answer()
    stream = b"".join(map(prefixed, messages))
    for at in range(0, len(stream), per_frame):
        server.h2.send_data(STREAM, stream[at : at + per_frame], pad_length=at % 3 or None)
    server.down(step)
    assert server.messages == messages


def test_settings_and_pings_are_answered() -> None:
    server = Server()
    server.h2.ping(b"12345678")
    server.down()
    server.up()
    assert isinstance(server.event(h2.events.SettingsAcknowledged), h2.events.SettingsAcknowledged)
    ack = server.event(h2.events.PingAckReceived)
    assert isinstance(ack, h2.events.PingAckReceived)
    assert ack.ping_data == b"12345678"


def test_a_clean_end_waits_for_what_was_sent() -> None:
    server = Server(10)
    server.down()
    server.codec.send(b"a" * 20)
    server.codec.end()
    server.up()
    assert not any(isinstance(event, h2.events.StreamEnded) for event in server.events)
    server.h2.increment_flow_control_window(1000, STREAM)
    server.down()
    server.up()
    assert server.event(h2.events.StreamEnded)


@pytest.mark.parametrize(
    ("trailers", "status"),
    [
        ([("grpc-status", "0")], "OK"),
        ([("grpc-status", "6"), ("grpc-message", "taken")], "gRPC status 6 taken"),
        ([("x", "y")], "no gRPC status (HTTP status 200)"),
    ],
)
def test_trailers_end_the_stream(trailers: list[tuple[str, str]], status: str) -> None:
    server = Server()
    server.answer()
    server.down()
    assert not server.codec.ended
    server.h2.send_headers(STREAM, trailers, end_stream=True)
    server.down()
    assert server.codec.ended
    assert server.codec.status() == status


def test_a_reset_and_a_goaway_are_reported() -> None:
    server = Server()
    server.h2.reset_stream(STREAM, error_code=8)
    server.down()
    assert server.codec.ended
    assert server.codec.status() == "reset with HTTP/2 error 8"
    codec = GrpcTransport().codec(AUTHORITY)
    codec.receive(hf.GoAwayFrame(0, error_code=11, additional_data=b"calm").serialize())
    assert codec.status() == "GOAWAY 11 calm"


def test_headers_may_be_padded_prioritised_and_continued() -> None:
    block = b"\x88\x00\x0bgrpc-status\x010"
    first = hf.HeadersFrame(STREAM, data=block[:6], flags=["PADDED", "PRIORITY", "END_STREAM"], pad_length=3)
    last = hf.ContinuationFrame(STREAM, data=block[6:], flags=["END_HEADERS"])
    codec = GrpcTransport().codec(AUTHORITY)
    codec.receive(first.serialize())
    assert not codec.ended
    codec.receive(last.serialize())
    assert codec.ended
    assert codec.status() == "OK"


def test_compressed_messages_are_refused() -> None:
    codec = GrpcTransport().codec(AUTHORITY)
    with pytest.raises(ValueError, match="compresses"):
        codec.receive(frame(0, 0, STREAM, prefixed(b"x", 1)))


def test_credit_is_returned_before_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.transports.grpc.TOP_UP_BYTES", 1000)
    codec: GrpcCodec = GrpcTransport().codec(AUTHORITY)
    codec.take()
    codec.receive(frame(0, 0, STREAM, prefixed(bytes(995))))
    assert codec.take() == b"".join(
        hf.WindowUpdateFrame(stream, window_increment=1000).serialize() for stream in (0, STREAM)
    )
