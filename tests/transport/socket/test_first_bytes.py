"""What the first bytes say, as a pure question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.http2 import frames
from aether_trio.transport.socket.first_bytes import MAX_WORD_BYTES, may_become_one, refusal, speaks, transport_of
from aether_trio.wire import framing

HTTP_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"]
FIRST_FLIGHTS = [
    ("grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    ("framed", b"\xaeAETHER\x01" + bytes(20)),
    ("framed", b"\xaeAETHER\xff"),
    *(("websocket", f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode()) for method in HTTP_METHODS),
]


@pytest.mark.parametrize(("transport", "flight"), FIRST_FLIGHTS)
def test_a_transport_is_known_by_its_whole_first_word_and_by_nothing_shorter(transport: str, flight: bytes) -> None:
    known = [size for size in range(len(flight) + 1) if transport_of(flight[:size]) is not None]
    assert known == list(range(known[0], len(flight) + 1))
    assert known[0] <= MAX_WORD_BYTES
    assert {transport_of(flight[:size]) for size in known} == {transport}
    assert all(may_become_one(flight[:size]) for size in range(known[0] + 1))


def damaged(flight: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda at, byte: flight[:at] + bytes((byte,)) + flight[at + 1 :], st.integers(0, 14), st.integers(0, 255)
    )


@given(st.binary(max_size=40) | st.sampled_from([flight for _, flight in FIRST_FLIGHTS]).flatmap(damaged))
def test_whatever_comes_is_decided_within_the_longest_word(head: bytes) -> None:
    decided = [size for size in range(len(head) + 1) if transport_of(head[:size]) or not may_become_one(head[:size])]
    if len(head) > MAX_WORD_BYTES:
        assert decided
    assert decided == list(range(decided[0], len(head) + 1)) if decided else True


@given(st.binary(max_size=64), st.text(max_size=400))
def test_every_kind_of_client_can_be_told(head: bytes, text: str) -> None:
    assert refusal(head, text)


def test_a_refusal_speaks_the_language_of_who_asked() -> None:
    text = speaks(["framed"], tls=False)
    assert text == "this port speaks the aether binary framing"
    http2 = refusal(b"PRI * HTTP/2.0\r\n", text)
    assert http2 == frames.goaway(0, frames.Http2ErrorCode.HTTP_1_1_REQUIRED, text), (
        "with SETTINGS grpcio would not pause"
    )
    assert http2.endswith(text.encode())
    assert refusal(b"hello", text) == text.encode() + b"\n"
    assert refusal(b"PROPFIND / HTTP/1.1\r\n\r\n", text).startswith(b"HTTP/1.1 400 ")
    assert refusal(b"HEAD / HTTP/1.1\r\n\r\n", text).endswith(b"\r\n\r\n")
    client = framing.FramedConnection(framing.Side.CLIENT)
    client.send(framing.ClientHello())
    events = client.receive(refusal(b"\xaeAETHER\x01", text))
    assert [(type(event), event.message) for event in events] == [(framing.Error, text)]


@pytest.mark.parametrize(
    ("transports", "tls", "text"),
    [
        (["grpc"], True, "gRPC (HTTP/2 with prior knowledge), over TLS"),
        (["grpc", "websocket"], False, "gRPC (HTTP/2 with prior knowledge) and HTTP/1.1 with WebSocket"),
        (
            ["grpc", "framed", "websocket"],
            True,
            "gRPC (HTTP/2 with prior knowledge), the aether binary framing and HTTP/1.1 with WebSocket, all over TLS",
        ),
    ],
)
def test_a_port_says_what_it_speaks(transports: list[str], tls: bool, text: str) -> None:
    assert speaks(transports, tls=tls) == f"this port speaks {text}"
