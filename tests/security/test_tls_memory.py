"""A TLS peer without a credential cannot make a gateway keep much."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aether_trio.transport.socket.tls import client_context
from tests.helpers.gateway import GatewayProcess, start_gateway
from tests.helpers.tls_records import RecordClient, handshake
from tests.transport.pki import Pki

MIB = 1024 * 1024
JUNK_BYTES = 64 * MIB
GROWTH_BYTES = 16 * MIB
"""A quarter of the junk, and more than a gateway's memory moves without it."""
WAIT_S = 300.0
"""For a gateway that ought to end the connection. A test that waits so long has failed."""
FIRST_WORDS = {
    "h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0",
    "aether/1": b"\xaeAETHER\x01",
    "http/1.1": b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n",
    None: b"",
}
TRANSPORTS = pytest.mark.parametrize("protocol", list(FIRST_WORDS), ids=lambda protocol: protocol or "undecided")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def gateway(pki: Pki) -> Iterator[GatewayProcess]:
    tls = ["--set", f"tls.cert={pki.cert}", "--set", f"tls.key={pki.key}"]
    with start_gateway(ephemeral=True, extra_args=tls, env={"NEW_INTERPRETERS": "1"}) as process:
        yield process


def dial(gateway: GatewayProcess) -> socket.socket:
    host, port = gateway.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def context_for(pki: Pki, protocol: str | None) -> ssl.SSLContext:
    context = client_context(ca_file=pki.ca)
    context.set_alpn_protocols([protocol] if protocol else [])
    return context


def sent_until_refused(sock: socket.socket, parts: Callable[[], bytes], most_bytes: int) -> int:
    """Send until the gateway ends the connection; how many bytes the kernel took."""
    sent = 0
    with suppress(BrokenPipeError, ConnectionResetError):
        while sent < most_bytes:
            part = parts()
            sock.sendall(part)
            sent += len(part)
    return sent


def is_over(sock: socket.socket) -> bool:
    """Whether the gateway has ended its side; waits for it."""
    with suppress(ConnectionResetError):
        while sock.recv(65_536):
            pass
    return True


@TRANSPORTS
def test_what_follows_a_close_notify_is_not_kept(gateway: GatewayProcess, pki: Pki, protocol: str | None) -> None:
    before = gateway.resident_bytes()
    with dial(gateway) as sock:
        session, outgoing = handshake(sock, context_for(pki, protocol), "localhost")
        if FIRST_WORDS[protocol]:
            session.write(FIRST_WORDS[protocol])
        with pytest.raises(ssl.SSLWantReadError):
            session.unwrap()  # says close_notify, and would wait for the gateway's
        sock.sendall(outgoing.read())
        junk = bytes(MIB)
        sent_until_refused(sock, lambda: junk, JUNK_BYTES)
        assert gateway.resident_bytes() - before < GROWTH_BYTES
        assert is_over(sock)


@TRANSPORTS
@pytest.mark.parametrize("answer", [True, False], ids=["answered", "unanswered"])
def test_key_updates_without_end_end_the_connection(
    gateway: GatewayProcess, pki: Pki, tmp_path: Path, protocol: str | None, answer: bool
) -> None:
    before = gateway.resident_bytes()
    with dial(gateway) as sock:
        client = RecordClient.over(sock, context_for(pki, protocol), tmp_path)
        if FIRST_WORDS[protocol]:
            sock.sendall(client.data(FIRST_WORDS[protocol]))
        most = 16 * MIB
        assert sent_until_refused(sock, lambda: client.key_updates(500, answer=answer), most) < most
        assert is_over(sock)
    assert gateway.resident_bytes() - before < GROWTH_BYTES


def test_a_few_key_updates_are_nothing_special(gateway: GatewayProcess, pki: Pki, tmp_path: Path) -> None:
    with dial(gateway) as sock:
        client = RecordClient.over(sock, context_for(pki, "http/1.1"), tmp_path)
        sock.sendall(client.key_updates(20, answer=True) + client.data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert sock.recv(65_536), "it answers, under its own new key"
