"""Lists of revoked client certificates: which are read, and whom they name."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from aether_trio.config import AuthSettings, TlsSettings
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.credentials.checker import AcceptedCredential, CredentialChecker
from aether_trio.services.credentials.revocations import RevokedCertificates, read_revocations
from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.client_certificates import issuer_of
from tests.helpers.clocks import ManualClock
from tests.security.certificates import Authority

AGENT = Identity.agent("red", "worker", "1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def shown(path: Path) -> PeerCertificate:
    """What the gateway knows of a client's certificate."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    encoded = ssl.PEM_cert_to_DER_cert(path.read_text()[path.read_text().index("-----BEGIN CERT") :])
    serial = f"{certificate.serial_number:X}"
    serial = serial if len(serial) % 2 == 0 else f"0{serial}"  # as OpenSSL writes it
    return PeerCertificate(str(AGENT), serial_number=serial, issuer=issuer_of(encoded))


def read(authority: Authority, crl: Path, **more: str) -> RevokedCertificates:
    return read_revocations(TlsSettings(**{**authority.tls, "client_crl": str(crl), **more}), 0)


@pytest.mark.parametrize("der", [False, True])
def test_the_list_names_its_certificates(authority: Authority, der: bool) -> None:
    bad = [authority.issue(str(AGENT)) for _ in range(8)]
    good = authority.issue(str(AGENT))
    revoked = read(authority, authority.revoke(*bad, der=der))
    assert len(revoked) == 8
    assert all(revoked.has(shown(one)) for one in bad)
    assert not revoked.has(shown(good))


def test_an_empty_list_names_none(authority: Authority) -> None:
    assert not read(authority, authority.revoke()).has(shown(authority.issue(str(AGENT))))


def test_the_same_number_of_another_authority_is_another_certificate(authority: Authority, tmp_path: Path) -> None:
    bad = authority.issue(str(AGENT))
    revoked = read(authority, authority.revoke(bad))
    certificate = shown(bad)
    assert not revoked.has(PeerCertificate(str(AGENT), serial_number=certificate.serial_number, issuer=b"x"))


def test_several_lists_in_a_file(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = Authority(tmp_path / "two")
    bad = authority.issue(str(AGENT)), other.issue(str(AGENT))
    both = tmp_path / "both.crl"
    both.write_bytes(authority.revoke(bad[0]).read_bytes() + b"\n# more\n" + other.revoke(bad[1]).read_bytes())
    authorities = tmp_path / "both.pem"
    authorities.write_bytes((tmp_path / "ca.pem").read_bytes() + (tmp_path / "two" / "ca.pem").read_bytes())
    revoked = read(authority, both, client_ca=str(authorities))
    assert all(revoked.has(shown(one)) for one in bad)
    with pytest.raises(OSError, match="has signed list 2"):
        read(authority, both)


def test_a_list_by_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = Authority(tmp_path / "two")
    with pytest.raises(OSError, match=r"no authority of tls\.client_ca has signed"):
        read(authority, other.revoke())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_what_is_no_list(authority: Authority, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.crl"
    path.write_bytes(content)
    with pytest.raises(OSError, match="list of revoked certificates") as caught:
        read(authority, path)
    assert caught.value.filename == str(path)


def test_a_list_that_is_out_of_date_still_counts(authority: Authority) -> None:
    bad = authority.issue(str(AGENT))
    crl = authority.revoke(bad, due=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    now_ms = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    assert read_revocations(TlsSettings(**authority.tls, client_crl=str(crl)), now_ms).has(shown(bad))


def test_a_revoked_certificate_is_refused_and_ends_its_sessions(authority: Authority) -> None:
    bad = authority.issue(str(AGENT))
    checker = CredentialChecker(AuthSettings(), ManualClock())
    accepted = AcceptedCredential(certificate=checker.check_certificate(AGENT, shown(bad)))
    assert checker.ended(accepted, shown(bad)) is None
    tls = TlsSettings(**authority.tls, client_crl=str(authority.revoke(bad)))
    checker.use(checker.prepare(AuthSettings(), tls))
    with pytest.raises(StatusError, match="it was revoked") as caught:
        checker.check_certificate(AGENT, shown(bad))
    assert caught.value.status is Status.UNAUTHENTICATED
    assert "was revoked" in (checker.ended(accepted, shown(bad)) or "")
    checker.use(checker.prepare(AuthSettings(), TlsSettings(**authority.tls)))
    assert checker.ended(accepted, shown(bad)) is None
