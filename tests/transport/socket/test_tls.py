"""TLS 1.3, ALPN and client certificates, over real sockets and with real clients."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from aether_trio.transport.grpc.client import open_channel
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.port import Port
from aether_trio.transport.socket.tls import ClientCertificates, TlsFiles, client_context, server_context
from fuzz.tls import connected
from tests.transport.grpc.harness import Probe, serving
from tests.transport.pki import Pki

ONE = "/probe.Probe/One"


class Identified(Probe):
    def __init__(self) -> None:
        super().__init__()
        self.certificates: list[PeerCertificate | None] = []

    async def one(self, stream: ServerStream) -> None:
        self.certificates.append(stream.peer.cert())
        await super().one(stream)


def port_for(pki: Pki, mode: ClientCertificates | None = None) -> tuple[GrpcServer, Port, Identified]:
    probe = Identified()
    server = GrpcServer([probe])
    return server, Port({"grpc": server}, tls=server_context(pki.files(mode)), first_bytes_timeout_s=10), probe


async def call(port: int, context: ssl.SSLContext) -> str:
    async with open_channel("127.0.0.1", port, tls=context) as channel:
        reply = await channel.unary(ONE, HealthCheckRequest(service="over TLS"), HealthCheckRequest)
    return reply.service


async def test_a_call_over_tls_and_a_large_one(pki: Pki) -> None:
    server, listener, probe = port_for(pki)
    async with serving(server, listener.serve) as port:
        assert await call(int(port), client_context(ca_file=pki.ca)) == "over TLS"
        async with open_channel("127.0.0.1", int(port), tls=client_context(ca_file=pki.ca)) as channel:
            big = HealthCheckRequest(service="b" * 2_000_000)
            assert await channel.unary(ONE, big, HealthCheckRequest) == big
    assert probe.certificates == [None, None]


async def test_grpcio_over_mutual_tls_is_known_by_its_certificate(pki: Pki) -> None:
    server, listener, probe = port_for(pki, ClientCertificates.REQUIRED)
    credentials = grpc.ssl_channel_credentials(
        pki.ca.read_bytes(), pki.client_key.read_bytes(), pki.client_cert.read_bytes()
    )

    def client(port: int) -> list[bytes]:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            channel.unary_unary(ONE)(HealthCheckRequest(service="x").SerializeToString())
            return list(channel.stream_stream("/probe.Probe/Echo")(iter([b"z" * 100_000] * 50)))

    async with serving(server, listener.serve) as port:
        assert await trio.to_thread.run_sync(client, int(port)) == [b"z" * 100_000] * 50
    (certificate,) = probe.certificates
    assert certificate is not None
    assert certificate.common_name == "agent-7"
    assert certificate.dns_names == ("agent.example",)
    assert certificate.serial_number


@pytest.mark.parametrize(
    ("client", "mode", "error"),
    [
        ("without a certificate", ClientCertificates.REQUIRED, Exception),
        ("of another authority", ClientCertificates.OPTIONAL, Exception),
        ("of an older TLS", None, ssl.SSLError),
    ],
)
async def test_a_client_that_is_refused(
    pki: Pki, tmp_path: Path, client: str, mode: ClientCertificates | None, error: type[Exception]
) -> None:
    server, listener, probe = port_for(pki, mode)
    context = client_context(ca_file=pki.ca)
    if client == "of another authority":
        foreign = Pki(tmp_path)
        context = client_context(ca_file=pki.ca, cert_file=foreign.client_cert, key_file=foreign.client_key)
    elif client == "of an older TLS":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(server, listener.serve) as port:
        with pytest.raises(error, match=r".*"):
            await call(int(port), context)
        while not listener.statistics().rejects:
            await trio.sleep(0.01)
    assert probe.certificates == []
    assert listener.statistics().rejects == {"tls_handshake": 1}


def test_a_session_seals_and_opens_any_amount_at_once() -> None:
    server, client = connected()
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
