"""Test what the command line and the gateway say when TLS between them fails."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from tests.cli.shell import AETHER, Shell, sets
from tests.helpers.gateway import GatewayProcess, start_gateway

PAST = datetime(2020, 1, 1, tzinfo=UTC)
GET = ("kv", "get", "a")


class Files:
    """Authorities and certificates in a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority, self.clients = trustme.CA(), trustme.CA()
        self.authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.clients.cert_pem.write_to_path(str(directory / "clients-ca.pem"))
        self._write("server", self.authority.issue_cert("127.0.0.1"))
        self._write("expired-server", self.authority.issue_cert("127.0.0.1", not_after=PAST))
        self._write("client", self.clients.issue_cert("client", common_name="sv::cert::1"))
        self._write("expired", self.clients.issue_cert("client", common_name="sv::cert::1", not_after=PAST))
        self._write("foreign", trustme.CA().issue_cert("client", common_name="sv::cert::1"))

    def _write(self, name: str, leaf: trustme.LeafCert) -> None:
        leaf.private_key_and_cert_chain_pem.write_to_path(self[name])

    def __getitem__(self, name: str) -> str:
        return str(self.directory / f"{name}.pem")

    def serve(self, server: str, *more: str) -> list[str]:
        return sets(
            "gateway.host=127.0.0.1",
            f"tls.cert={self[server]}",
            f"tls.key={self[server]}",
            "access.default=open",
            *more,
        )

    def shown(self, name: str) -> tuple[str, ...]:
        return ("--tls-cert", self[name], "--tls-key", self[name])

    @property
    def trusted(self) -> tuple[str, str]:
        return ("--tls-ca", self["ca"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def mutual(files: Files) -> Iterator[GatewayProcess]:
    arguments = files.serve("server", f"tls.client_ca={files['clients-ca']}", "tls.require_client_cert=true")
    with start_gateway(ephemeral=True, command=[*AETHER, "serve"], extra_args=arguments) as process:
        yield process


def test_a_missing_client_certificate_is_named_on_both_sides(mutual: GatewayProcess, files: Files) -> None:
    shell = Shell(mutual)
    for scheme in ("", "aethers://", "grpcs://"):
        where = ("--gateway", f"{scheme}{mutual.address}")
        text = "the gateway wants a client certificate: --tls-cert FILE --tls-key FILE"
        shell.fails(5, text, *GET, *files.trusted, *where)
    log = mutual.output()
    assert "TLS with 127.0.0.1:" in log
    assert "failed: the client showed no certificate (tls.require_client_cert)" in log


def test_a_client_certificate_that_is_not_accepted(mutual: GatewayProcess, files: Files) -> None:
    shell = Shell(mutual)
    shell.fails(5, "refused the client certificate: it has expired", *GET, *files.trusted, *files.shown("expired"))
    shell.fails(5, "the gateway does not know its authority", *GET, *files.trusted, *files.shown("foreign"))
    log = mutual.output()
    assert "the client's certificate is not accepted: certificate has expired" in log


def test_a_gateway_that_is_not_trusted(mutual: GatewayProcess, files: Files) -> None:
    shell = Shell(mutual)
    shell.fails(4, "--tls-ca FILE names the authority to trust", *GET, "--tls")
    shell.fails(4, "is not trusted", *GET, "--tls-ca", files["clients-ca"])
    assert "as one does that does not trust the gateway's certificate" in mutual.output()


def test_no_tls_at_a_port_with_tls(mutual: GatewayProcess) -> None:
    Shell(mutual).fails(4, "give --tls or --tls-ca", *GET)
    assert "the client does not speak TLS, which this port requires" in mutual.output()


def test_tls_at_a_port_without_it(gateway: GatewayProcess, files: Files) -> None:
    shell = Shell(gateway)
    shell.fails(4, "(--no-tls)", *GET, *files.trusted)
    shell.fails(4, "(--no-tls)", *GET, "--gateway", f"aethers://{gateway.address}")
    assert "the client began TLS, and this port is without TLS" in gateway.output()


def test_an_expired_certificate_of_the_gateway(files: Files) -> None:
    with start_gateway(ephemeral=True, command=[*AETHER, "serve"], extra_args=files.serve("expired-server")) as process:
        text = "is not trusted: certificate has expired; the gateway needs a new one"
        Shell(process).fails(4, text, *GET, *files.trusted)
