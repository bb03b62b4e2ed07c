"""How the keys of identity providers are fetched over sockets."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

from aether_trio.services.credentials.jwks import MAX_BYTES, JwksError, fetch_jwks
from tests.helpers.identity_provider import HttpKeys, jwk, key_set, provider, rsa_key


@pytest.fixture
async def http() -> AsyncIterator[HttpKeys]:
    async with HttpKeys(key_set(jwk(rsa_key()))).open() as opened:
        yield opened


async def test_a_key_set_over_http(http: HttpKeys) -> None:
    assert json.loads(await fetch_jwks(provider(jwks_url=f"{http.url}?tenant=1"))) == json.loads(http.body)
    assert http.requests[0].startswith(b"GET /keys?tenant=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", r"not HTTP|ended"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"", r"not HTTP|ended|broke"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_BYTES + 1), "more than"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000, "not HTTP"),
    ],
    ids=range(7),
)
async def test_answers_that_are_not_taken(http: HttpKeys, answer: bytes, text: str) -> None:
    http.raw = answer
    with trio.fail_after(60), pytest.raises(JwksError, match=text):
        await fetch_jwks(provider(jwks_url=http.url))


async def test_https_checks_the_certificate(tmp_path: Path) -> None:
    authority, foreign = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    foreign.cert_pem.write_to_path(tmp_path / "other.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    body = key_set(jwk(rsa_key()))

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except trio.BrokenResourceError:
            return

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
            port = listener.transport_listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            url = f"https://127.0.0.1:{port}/keys"
            assert await fetch_jwks(provider(jwks_url=url, jwks_ca=str(tmp_path / "ca.pem"))) == body
            for untrusted in (str(tmp_path / "other.pem"), None):
                with pytest.raises(JwksError, match=r"certificate verify failed|CERTIFICATE"):
                    await fetch_jwks(provider(jwks_url=url, jwks_ca=untrusted))
            nursery.cancel_scope.cancel()


async def test_a_port_where_nothing_listens() -> None:
    with pytest.raises(OSError, match=r"connect|refused"):
        await fetch_jwks(provider(jwks_url="http://127.0.0.1:1/keys"))
