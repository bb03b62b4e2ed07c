"""Upgrades on a real socket: what is agreed, and what is refused in which words."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.transport.link import Link
from tests.transport.websocket.harness import TransportServer, open_socket, open_transport

HEAD = "GET /v1/connect HTTP/1.1\r\n"
HEADERS = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "aether.v1.proto",
}


@pytest.fixture
async def transport() -> AsyncIterator[TransportServer]:
    async def serve(link: Link) -> None:
        await link.receive()

    async with open_transport(serve, allowed_origins=("https://app.example.com",)) as opened:
        yield opened


async def ask(transport: TransportServer, head: str = HEAD, **changes: str | None) -> tuple[int, str]:
    """(status, answer) to an upgrade with some headers changed, or left out."""
    headers = HEADERS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    async with await trio.open_tcp_stream(*transport.address) as stream:
        await stream.send_all((head + "".join(lines) + "\r\n").encode())
        answer = b""
        with trio.fail_after(300):
            while True:
                data = await stream.receive_some(65536)
                answer += data
                head, ended, body = answer.partition(b"\r\n\r\n")
                # After 405 the connection stays open for a while, for another request.
                is_whole = ended and f"Content-Length: {len(body)}\r\n".encode() in head + ended
                if not data or is_whole or answer.startswith(b"HTTP/1.1 101"):
                    return int(answer.split(b" ", 2)[1]), answer.decode()


async def test_the_example_of_the_rfc(transport: TransportServer) -> None:
    status, answer = await ask(transport)
    assert status == 101
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    assert "Sec-WebSocket-Protocol: aether.v1.proto\r\n" in answer


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"Upgrade": None}, 426, "for WebSocket connections"),
        ({"Upgrade": "h2c"}, 426, "for WebSocket connections"),
        ({"Connection": "keep-alive"}, 426, "for WebSocket connections"),
        ({"Sec_WebSocket_Version": None}, 426, "Sec-WebSocket-Version must be 13"),
        ({"Sec_WebSocket_Version": "8"}, 426, "Sec-WebSocket-Version: 13"),
        ({"Sec_WebSocket_Key": None}, 400, "Sec-WebSocket-Key must be"),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400, "Sec-WebSocket-Key must be"),
        ({"Sec_WebSocket_Key": "?!"}, 400, "Sec-WebSocket-Key must be"),
        ({"Sec_WebSocket_Protocol": None}, 400, "aether.v1.proto, aether.v1.msgpack, aether.v1.json"),
        ({"Sec_WebSocket_Protocol": "mqtt, chat"}, 400, "offer one of these"),
        ({"Sec_WebSocket_Protocol": "\u00e4\u00f6"}, 400, "offer one of these"),
        ({"Origin": "https://evil.test"}, 403, "websocket.allowed_origins"),
        ({"Origin": "null"}, 403, "'null' may not connect"),
        ({"Host": None}, 400, "Missing mandatory Host"),
        ({"Content_Length": "5"}, 413, "requests with a body"),
    ],
)
async def test_refusals(transport: TransportServer, changes: dict[str, str | None], status: int, words: str) -> None:
    got, answer = await ask(transport, **changes)
    assert got == status
    assert words in answer
    assert "Connection: close" in answer
    assert transport.server.statistics().websockets == 0


async def test_a_query_is_refused_whatever_is_in_it(transport: TransportServer) -> None:
    status, answer = await ask(transport, "GET /v1/connect?api_key=secret HTTP/1.1\r\n")
    assert status == 400
    assert "credentials go into the first message" in answer
    assert "secret" not in answer
    assert (await ask(transport, "GET /v1/connect? HTTP/1.1\r\n"))[0] == 400


async def test_upgrade_is_a_get(transport: TransportServer) -> None:
    assert (await ask(transport, "POST /v1/connect HTTP/1.1\r\n"))[0] == 405


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["aether.v1.json"], "aether.v1.json"),
        (["aether.v1.msgpack", "aether.v1.proto"], "aether.v1.msgpack"),
        (["mqtt", "aether.v2.proto", "aether.v1.proto", "aether.v1.json"], "aether.v1.proto"),
    ],
)
async def test_our_first_subprotocol_is_taken(transport: TransportServer, offered: list[str], chosen: str) -> None:
    status, answer = await ask(transport, Sec_WebSocket_Protocol=", ".join(offered))
    assert status == 101
    assert f"\r\nSec-WebSocket-Protocol: {chosen}\r\n" in answer


async def test_compression_is_never_agreed_upon(transport: TransportServer) -> None:
    status, answer = await ask(transport, Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    assert status == 101
    assert "Sec-WebSocket-Extensions" not in answer


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "localhost", 101),
        ("https://app.example.com", "anything", 101),
        ("http://localhost:50051", "localhost:50051", 101),
        ("http://127.0.0.1:50051", "127.0.0.1:50051", 101),
        ("https://evil.test", "localhost:50051", 403),
        ("http://rebound.evil.test", "rebound.evil.test", 403),
    ],
)
async def test_cross_site_hijacking(transport: TransportServer, origin: str | None, host: str, status: int) -> None:
    assert (await ask(transport, Origin=origin, Host=host))[0] == status


async def test_what_a_link_knows_of_its_client() -> None:
    peers = []

    async def serve(link: Link) -> None:
        peers.append(link.peer)

    headers = [(b"User-Agent", b"Netscape/4"), (b"Origin", b"http://localhost:1"), (b"Cookie", b"secret")]
    async with (
        open_transport(serve) as transport,
        open_socket(transport, host="localhost:1", extra_headers=headers) as client,
    ):
        assert (await client.closed()).code == 1006
        address = client.stream.socket.getsockname()
    assert peers[0].transport == "websocket"
    assert peers[0].address == f"127.0.0.1:{address[1]}"
    assert peers[0].metadata == {"user-agent": "Netscape/4", "origin": "http://localhost:1"}
    assert peers[0].certificate is None


async def test_what_comes_right_behind_the_request_is_not_lost(transport: TransportServer) -> None:
    async with await trio.open_tcp_stream(*transport.address) as stream:
        request = HEAD + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()) + "\r\n"
        masked_close = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
        await stream.send_all(request.encode() + masked_close)
        answer = b""
        with trio.fail_after(300):
            while data := await stream.receive_some(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 101")


async def test_a_request_that_never_ends_is_given_up() -> None:
    async def serve(link: Link) -> None:
        raise AssertionError("no link was to be served")

    async with (
        open_transport(serve, handshake_timeout_s=0.05) as transport,
        await trio.open_tcp_stream(*transport.address) as stream,
    ):
        await stream.send_all(HEAD.encode())
        with trio.fail_after(300):
            assert await stream.receive_some() == b""
