from __future__ import annotations

import pytest

from aether_trio.client import AddressError
from aether_trio.client.connection.address import Address, TransportKind, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aether://localhost:1", Address("aether", TransportKind.FRAMED, False, "localhost", 1)),
        ("aethers://Gateway.Example", Address("aethers", TransportKind.FRAMED, True, "gateway.example", 50051)),
        ("ws://127.0.0.1", Address("ws", TransportKind.WEBSOCKET, False, "127.0.0.1", 80)),
        ("wss://[::1]:99/v1/connect", Address("wss", TransportKind.WEBSOCKET, True, "::1", 99)),
        ("grpc://host", Address("grpc", TransportKind.GRPC, False, "host", 50051)),
        ("grpcs://host:1", Address("grpcs", TransportKind.GRPC, True, "host", 1)),
        ("aether://host/", Address("aether", TransportKind.FRAMED, False, "host", 50051)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("localhost:50051", "no scheme"),
        ("", "no scheme"),
        ("h2://localhost", "unknown scheme 'h2'"),
        ("http://localhost", "the client's is ws://"),
        ("aether://", "no host"),
        ("aether://:50051", "no host"),
        ("aether://host:port", "cannot be read"),
        ("aether://host:70000", "cannot be read"),
        ("aether://host:0", "port 0"),
        ("aether://[::1", "cannot be read"),
        ("aether://me:secret@host", "has credentials in it"),
        ("aether://host/path", "has the path"),
        ("ws://host/other", "has the path"),
        ("aether://host?token=secret", "has a query"),
        ("ws://host/v1/connect#x", "has a query"),
        ("aether://a b", "a space"),
    ],
)
def test_mistakes_are_named_and_secrets_are_not(text: str, why: str) -> None:
    with pytest.raises(AddressError, match=why) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)
