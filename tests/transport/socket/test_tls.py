"""TLS 1.3, ALPN and client certificates, over real sockets and with real clients."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from aether_trio.transport.grpc.client import open_channel
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.port import Port
from aether_trio.transport.socket.tls import ClientCertificates, TlsFiles, TlsSession, client_context, server_context
from tests.transport.grpc.harness import Probe, serving

ONE = "/probe.Probe/One"


class Identified(Probe):
    def __init__(self) -> None:
        super().__init__()
        self.certificates: list[PeerCertificate | None] = []

    async def one(self, stream: ServerStream) -> None:
        self.certificates.append(stream.peer.cert())
        await super().one(stream)


class Pki:
    """A CA, a server certificate for 127.0.0.1, and a client certificate, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ca = trustme.CA()
        self.ca = self._write("ca.pem", ca.cert_pem)
        server = ca.issue_cert("127.0.0.1", "localhost")
        client = ca.issue_cert("agent.example", common_name="agent-7")
        self.cert, self.key = self._pair("server", server)
        self.client_cert, self.client_key = self._pair("client", client)

    def _write(self, name: str, blob: Any) -> Path:
        path = self.folder / name
        blob.write_to_path(path)
        return path

    def _pair(self, name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
        cert = self.folder / f"{name}.pem"
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        return cert, self._write(f"{name}.key", leaf.private_key_pem)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def port_for(pki: Pki, mode: ClientCertificates | None = None) -> tuple[GrpcServer, Port, Identified]:
    probe = Identified()
    server = GrpcServer([probe])
    context = server_context(
        TlsFiles(pki.cert, pki.key)
        if mode is None
        else TlsFiles(pki.cert, pki.key, client_ca_file=pki.ca, client_certificates=mode)
    )
    return server, Port({"grpc": server}, tls=context, first_bytes_timeout_s=10), probe


async def call(port: int, context: ssl.SSLContext) -> str:
    async with open_channel("127.0.0.1", port, tls=context) as channel:
        reply = await channel.unary(ONE, HealthCheckRequest(service="over TLS"), HealthCheckRequest)
    return reply.service


async def test_a_call_over_tls_and_a_large_one(pki: Pki) -> None:
    server, door, probe = port_for(pki)
    async with serving(server, door.serve) as port:
        assert await call(int(port), client_context(ca_file=pki.ca)) == "over TLS"
        async with open_channel("127.0.0.1", int(port), tls=client_context(ca_file=pki.ca)) as channel:
            big = HealthCheckRequest(service="b" * 2_000_000)
            assert await channel.unary(ONE, big, HealthCheckRequest) == big
    assert probe.certificates == [None, None]


async def test_grpcio_over_mutual_tls_is_known_by_its_certificate(pki: Pki) -> None:
    server, door, probe = port_for(pki, ClientCertificates.REQUIRED)
    credentials = grpc.ssl_channel_credentials(
        pki.ca.read_bytes(), pki.client_key.read_bytes(), pki.client_cert.read_bytes()
    )

    def client(port: int) -> list[bytes]:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            channel.unary_unary(ONE)(HealthCheckRequest(service="x").SerializeToString())
            return list(channel.stream_stream("/probe.Probe/Echo")(iter([b"z" * 100_000] * 50)))

    async with serving(server, door.serve) as port:
        assert await trio.to_thread.run_sync(client, int(port)) == [b"z" * 100_000] * 50
    (certificate,) = probe.certificates
    assert certificate is not None
    assert certificate.common_name == "agent-7"
    assert certificate.dns_names == ("agent.example",)
    assert certificate.serial_number


async def test_a_required_certificate_that_is_missing_is_refused(pki: Pki) -> None:
    server, door, probe = port_for(pki, ClientCertificates.REQUIRED)
    async with serving(server, door.serve) as port:
        with pytest.raises(Exception, match=r".*"):
            await call(int(port), client_context(ca_file=pki.ca))
        while not door.statistics().rejects:
            await trio.sleep(0.01)
    assert probe.certificates == []
    assert door.statistics().rejects == {"tls_handshake": 1}


async def test_an_optional_certificate_may_be_missing(pki: Pki) -> None:
    server, door, probe = port_for(pki, ClientCertificates.OPTIONAL)
    with_certificate = client_context(ca_file=pki.ca, cert_file=pki.client_cert, key_file=pki.client_key)
    async with serving(server, door.serve) as port:
        await call(int(port), client_context(ca_file=pki.ca))
        await call(int(port), with_certificate)
    assert [found and found.common_name for found in probe.certificates] == [None, "agent-7"]


async def test_a_certificate_of_another_ca_is_refused(pki: Pki, tmp_path: Path) -> None:
    server, door, probe = port_for(pki, ClientCertificates.OPTIONAL)
    foreign = Pki(tmp_path)
    context = client_context(ca_file=pki.ca, cert_file=foreign.client_cert, key_file=foreign.client_key)
    async with serving(server, door.serve) as port:
        with pytest.raises(Exception, match=r".*"):
            await call(int(port), context)
    assert probe.certificates == []


async def test_an_older_tls_is_refused(pki: Pki) -> None:
    server, door, _ = port_for(pki)
    context = client_context(ca_file=pki.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(server, door.serve) as port:
        with pytest.raises(ssl.SSLError):
            await call(int(port), context)
    assert door.statistics().rejects == {"tls_handshake": 1}


async def test_a_client_that_does_not_finish_its_handshake_is_cut_off(
    pki: Pki, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.2
    server, door, _ = port_for(pki)
    async with serving(server, door.serve) as port:
        stream = await port.connect()
        await stream.send_all(b"\x16\x03\x01")
        assert await stream.receive_some() == b""
    assert door.statistics().rejects == {"timeout": 1}


async def test_plain_text_to_a_tls_port_is_refused(pki: Pki) -> None:
    server, door, _ = port_for(pki)
    async with serving(server, door.serve) as port:
        stream = await port.connect()
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while await stream.receive_some():
            pass
    assert door.statistics().rejects == {"tls_missing": 1}


def test_a_session_seals_and_opens_any_amount_at_once(pki: Pki) -> None:
    server = TlsSession(server_context(TlsFiles(pki.cert, pki.key)))
    client = TlsSession(client_context(ca_file=pki.ca), server_hostname="localhost", server_side=False)
    for _ in range(3):
        for side, other in ((client, server), (server, client)):
            try:
                side._object.do_handshake()
            except ssl.SSLWantReadError:
                pass
            other._incoming.write(side._outgoing.read())
    body = bytes(range(256)) * 4000
    records = client.seal(body)
    cut = len(records) // 2
    assert server.open(records[:cut]) + server.open(records[cut:]) == body
    assert client.open(server.seal(b"")) == b""
    assert (server.alpn, server.version) == ("h2", "TLSv1.3")
    with pytest.raises(ssl.SSLError):
        server.open(b"\x17\x03\x03\x00\x05wrong")


@pytest.mark.parametrize(
    ("files", "culprit", "reason"),
    [
        ({"cert_file": "junk"}, "junk", "no certificate"),
        ({"cert_file": "key"}, "key", "no certificate"),
        ({"key_file": "junk"}, "junk", "no private key"),
        ({"key_file": "cert"}, "cert", "no private key"),
        ({"key_file": "client_key"}, "client_key", "not the key of the certificate"),
        ({"key_file": "locked"}, "locked", "encrypted"),
        ({"client_ca_file": "junk"}, "junk", "no certificate"),
    ],
)
def test_a_file_of_no_use_is_named(pki: Pki, tmp_path: Path, files: dict[str, str], culprit: str, reason: str) -> None:
    junk, locked = tmp_path / "junk.pem", tmp_path / "locked.key"
    junk.write_text("junk")
    key = serialization.load_pem_private_key(pki.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    paths = {"junk": junk, "locked": locked, "cert": pki.cert, "key": pki.key, "client_key": pki.client_key}
    chosen = {"cert_file": pki.cert, "key_file": pki.key} | {field: paths[name] for field, name in files.items()}
    with pytest.raises(OSError, match=reason) as refused:
        server_context(TlsFiles(**chosen))
    assert refused.value.filename == str(paths[culprit])
